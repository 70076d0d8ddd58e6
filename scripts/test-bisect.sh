#!/usr/bin/env bash
# The self-test of `greta bisect` at length: 300 plantings on SmolLM2 and two synthetic shapes, 1,000 clean runs over every
# type. Needs build/release (scripts/test.sh). An hour on two cores; status 1 where a fault was missed or an alarm was false.
set -euo pipefail
source "$(dirname "$0")/lib.sh"
cd "$ROOT"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
greta=build/release/greta
synth() { "$greta" synth --quiet -o "$@"; }

say "100 plantings, 25 clean runs: SmolLM2-135M Q4_1"
"$greta" bisect "$(scripts/models.sh smollm2)" --self-test --plantings 100 --clean 25 --quiet
say "100 plantings, 25 clean runs: dim 256, 4 layers, 8 heads over 2, Q4_K, biases, YaRN"
synth "$work/q4_k.gguf" --dim 256 --layers 4 --ffn-dim 768 --heads 8 --kv-heads 2 --vocab 1000 --type q4_k --bias --rope-scaling yarn:4:512
"$greta" bisect "$work/q4_k.gguf" --self-test --plantings 100 --clean 25 --seed 2 --quiet
say "100 plantings, 25 clean runs: dim 192, 3 layers, 3 heads over 1 of 64, F16, tied"
synth "$work/f16.gguf" --dim 192 --layers 3 --ffn-dim 400 --heads 3 --kv-heads 1 --vocab 500 --type f16 --tied
"$greta" bisect "$work/f16.gguf" --self-test --plantings 100 --clean 25 --seed 3 --quiet
for type in f32 f16 bf16 q4_0 q4_1 q5_0 q5_1 q8_0 q2_k q3_k q4_k q5_k q6_k; do
  say "6 plantings, 75 clean runs: $type"
  synth "$work/t.gguf" --dim 256 --layers 2 --ffn-dim 512 --heads 4 --kv-heads 2 --vocab 300 --context 256 --type "$type"
  "$greta" bisect "$work/t.gguf" --self-test --plantings 6 --clean 75 --quiet | tail -n 2
done
