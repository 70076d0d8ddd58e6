# Shared by the scripts beside it; sourced, not run.
# shellcheck shell=bash

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/greta

# What building and running need, and what the tests need beside it.
BUILD_PACKAGES=(g++ cmake ninja-build ccache git ca-certificates python3 python3-pip
  libcli11-dev libfmt-dev libspdlog-dev nlohmann-json3-dev libssl-dev libboost-context-dev libgtest-dev libgmock-dev)
CHECK_PACKAGES=(clang-format clang-tidy)
# What compiles the kernels for AMD GPUs.
HIP_PACKAGES=(clang-19 clang-tools-19 lld-19 llvm-19 libamdhip64-dev rocm-device-libs)

say() { printf '\n== %s\n' "$*"; }

# ensure_packages NAME...: installs those that are missing; offline, with all of them there, it does nothing.
ensure_packages() {
  local missing=() package
  if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
    printf 'This system has no apt: install what corresponds to these Debian packages and run again:\n  %s\n' "$*" >&2
    exit 2
  fi
  for package in "$@"; do
    [ "$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
  done
  [ ${#missing[@]} -eq 0 ] && return 0
  say "installing: ${missing[*]}"
  local as_root=()
  [ "$(id -u)" -eq 0 ] || as_root=(sudo)
  "${as_root[@]}" apt-get update -qq
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# build PRESET [TARGET...]
build() {
  local preset=$1
  shift
  (cd "$ROOT" && cmake --preset "$preset" -Wno-dev >/dev/null && cmake --build --preset "$preset" ${1:+--target "$@"})
}

# transformers_python: prints a Python that has transformers and its torch (6 GB of disk), made on the first call.
transformers_python() {
  ensure_packages python3-venv >&2
  local venv=$ROOT/build/oracles-hf
  [ -x "$venv/bin/python" ] || python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.15.0 transformers==5.24.0 gguf==0.19.0 safetensors==0.8.0 numpy==2.4.6 >&2
  echo "$venv/bin/python"
}

# find_cublas: NVIDIA's library of products, where this machine has it, for programs that are started from here on.
find_cublas() {
  local found
  found=$(ldconfig -p 2>/dev/null | sed -n 's/.*libcublasLt\.so\.13.* => //p' | head -n 1) || true
  [ -n "$found" ] || found=$(find /usr/local /opt -name libcublasLt.so.13 -print -quit 2>/dev/null) || true
  [ -n "$found" ] || return 0
  LD_LIBRARY_PATH=$(dirname "$found")${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
  export LD_LIBRARY_PATH
}
