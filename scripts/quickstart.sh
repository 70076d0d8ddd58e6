#!/usr/bin/env bash
# From a bare Debian machine to generated text and a proof of it: packages, build, model, check, run, bisect.
set -euo pipefail
source "$(dirname "$0")/lib.sh"

ensure_packages "${BUILD_PACKAGES[@]}"
say "building build/release/greta"
build release greta
say "getting SmolLM2-135M-Instruct (98 MB, once)"
model=$("$ROOT/scripts/models.sh" smollm2)
say "greta check"
"$ROOT/build/release/greta" check "$model"
say "greta run"
"$ROOT/build/release/greta" run "$model" --greedy --max-tokens 120 --prompt '<|im_start|>user
Explain in two sentences why the sky is blue.<|im_end|>
<|im_start|>assistant
'
say "greta bisect: every operator of every layer and token, judged in FP64 (a minute or two)"
cd "$ROOT"
build/release/greta bisect "$model" --prompts p0_short,p6_len_16,p6_len_32 --layers 0,1,2,4,8 --max-tokens 5
