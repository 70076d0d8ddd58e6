#!/usr/bin/env bash
# The second real model at length: Gemma 3 270M against a float64 trace of transformers on the same file, the audit, and the
# self-test of bisect on it. Needs build/release (scripts/test.sh); fetches the model (253 MB) and torch (6 GB of disk).
set -euo pipefail
source "$(dirname "$0")/lib.sh"
cd "$ROOT"

model=$(scripts/models.sh gemma3-270m)
python=$(transformers_python)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

say "trace of transformers in float64: eleven positions"
"$python" tools/trace_hf.py "$model" -o "$work/hf64.safetensors" --token-ids 2,818,5279,529,7001,563 --max-tokens 6 --dtype float64
for side in reference cpu; do
  say "bisect: $side against transformers (expected: NONE)"
  build/release/greta bisect "$model" --a "$side" --b "trace=$work/hf64.safetensors" --quiet -o "$work/$side"
done
say "verify (expected: every row passes)"
build/release/greta verify "$model" --quiet
say "100 plantings, 25 clean runs"
build/release/greta bisect "$model" --self-test --plantings 100 --clean 25 --quiet
