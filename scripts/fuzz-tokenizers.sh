#!/usr/bin/env bash
# 100,000 random strings a family, our tokenizers against `tokenizers` and SentencePiece; then as many with Gemma 3's
# vocabulary against SentencePiece. Needs build/release (scripts/test.sh).
set -euo pipefail
source "$(dirname "$0")/lib.sh"
cd "$ROOT"

ensure_packages python3-venv
[ -x build/oracles/bin/python ] || python3 -m venv build/oracles
build/oracles/bin/pip install --quiet --disable-pip-version-check \
  gguf==0.19.0 numpy==2.4.6 sentencepiece==0.2.3 tokenizers==0.23.3 protobuf
fuzz() { build/oracles/bin/python tools/fuzz_tokenizer.py --binary build/release/tests/tokenizer_tests "$@"; }
fuzz --vocabulary "smollm=$(scripts/models.sh smollm2)" "$@"
fuzz --vocabulary "spm=$(scripts/models.sh gemma3-270m)" "$@" --families spm
