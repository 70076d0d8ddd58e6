#!/usr/bin/env bash
# Records the traces of tests/golden/traces again with tools/trace_hf.py and compares them; then one of every architecture,
# which trace_hf.py holds against its plain numpy pass. torch takes 6 GB of disk.
set -euo pipefail
source "$(dirname "$0")/lib.sh"
cd "$ROOT"

python=$(transformers_python)
again=$(mktemp -d)
trap 'rm -rf "$again"' EXIT
for dtype in float64 float32; do
  "$python" tools/trace_hf.py tests/golden/models/bf16.gguf -o "$again/bf16_$dtype.safetensors" \
    --token-ids 1,75,108,35,100,111,111 --max-tokens 6 --dtype "$dtype"
  "$python" tools/compare_traces.py "tests/golden/traces/bf16_$dtype.safetensors" \
    "$again/bf16_$dtype.safetensors"
done
models=(mixtral qwen2 qwen3 qwen3moe gemma2 gemma3 phi3_longrope olmo2)
for model in "${models[@]}"; do
  "$python" tools/trace_hf.py "tests/golden/models/$model.gguf" -o "$again/$model.safetensors" \
    --token-ids 1,75,108,35,100,111,111,40,50,60 --max-tokens 5 --context 64
done
echo "scripts/test-traces.sh: 2 traces compared, none differs; ${#models[@]} architectures recorded, numpy agrees"
