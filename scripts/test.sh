#!/usr/bin/env bash
# scripts/test.sh: what CI runs. scripts/test.sh --full: everything, hours of it; its output is kept under
# docs/measurements/. scripts/test.sh --full WORDS: of that the steps alone whose name has these words, so that a part can be
# run again. Each step prints its time; the last lines are the test runner's summary and the count of skips.
set -euo pipefail
source "$(dirname "$0")/lib.sh"
cd "$ROOT"

full=no words=''
case "$#:${1:-}" in
  0:) ;;
  1:--full) full=yes ;;
  2:--full) full=yes words=$2 ;;
  *) echo "usage: scripts/test.sh [--full [WORDS]]" >&2; exit 2 ;;
esac

wanted() { [[ $1 == *"$words"* ]]; }
ran=0
step() {
  local name=$1 start=$SECONDS
  shift
  wanted "$name" || return 0
  ran=$((ran + 1))
  say "$name"
  "$@"
  echo "-- $name: $((SECONDS - start)) s"
}

check_format() { git ls-files '*.cpp' '*.h' '*.inl' | xargs clang-format --dry-run --Werror; }
# tidy_sources: all in a full run; else those that changed, themselves or their header, since scripts/tidy-base, the commit at
# which all were clean (all where this clone does not have it).
tidy_sources() {
  local base
  base=$(cat scripts/tidy-base)
  if [ $full = yes ] || ! git cat-file -e "$base^{commit}" 2>/dev/null; then
    git ls-files 'src/*.cpp'
  else
    git diff --name-only --diff-filter=d "$base" -- src | sed -n 's/\.h$/.cpp/p; /\.cpp$/p' | sort -u | xargs -r git ls-files
  fi | grep -v -e _avx512 -e _avx2 -e gpu/cuda/ -e gpu/hip/ || true
}
check_tidy() { tidy_sources | xargs -r -P2 -n2 clang-tidy --quiet -p build/release --extra-arg=-Wno-unknown-warning-option 2>/dev/null; }
# build_release: with the long tests in a full run.
build_release() {
  cmake --preset ci -Wno-dev -DGRETA_LONG_TESTS="$([ $full = yes ] && echo ON || echo OFF)" >/dev/null
  build ci
}
# gpu_code_compiles: the kernels for AMD's GPUs, and for NVIDIA's where nvcc is; nothing of them runs here (scripts/test-gpu.sh).
not_compiled=0
gpu_code_compiles() {
  local cuda=OFF targets=(greta_hip)
  ensure_packages "${HIP_PACKAGES[@]}"
  if PATH=$PATH:/usr/local/cuda/bin command -v nvcc >/dev/null; then
    cuda=ON
    targets+=(greta_cuda)
  fi
  cmake --preset ci-gpu -Wno-dev -DGRETA_CUDA=$cuda >/dev/null
  cmake --build --preset ci-gpu --target "${targets[@]}" | tail -n 1
  echo "HIP kernels for gfx942: compiled, not run"
  if [ $cuda = ON ]; then
    echo "CUDA kernels for sm_80 and sm_90a: compiled, not run"
  else
    echo "CUDA not compiled: no nvcc"
    not_compiled=1
  fi
}
# every_folder: the test programs, one a folder of tests/ (tests/CMakeLists.txt); gpu's need the emulation, whose fibers a
# sanitizer's build leaves out.
every_folder() { find tests -name '*_test.cpp' -printf '%h\n' | sort -u | xargs -n1 basename | grep -vx gpu; }
# sanitized asan|tsan FOLDER...: those programs under a sanitizer.
sanitized() {
  local kind=$1
  shift
  build "ci-$kind" "${@/%/_tests}"
  ctest --test-dir "build/$kind" --output-on-failure -j2 -R "^($(IFS='|'; echo "$*"))\\." | tail -n 15
}

# report_in_browser: the page of a bisect with a planted fault, clicked through against its summary; then the sample pages.
report_in_browser() {
  local work
  work=$(mktemp -d)
  build/release/greta synth --quiet -o "$work/m.gguf" --dim 128 --layers 3 --ffn-dim 256 --heads 4 --kv-heads 2 --vocab 300 --type q4_1
  printf 'A second prompt, long enough for a few calls of its own.' >"$work/second.txt"
  local status=0
  build/release/greta bisect "$work/m.gguf" --b cpu,fault=gqa-group@1 --prompts "p0_short,$work/second.txt" --layers 0,1,2 --quiet -o "$work/run" || status=$?
  [ $status -eq 1 ] || { echo "expected status 1 of a bisect with a planted fault, got $status" >&2; return 1; }
  scripts/test-report.sh "$work/run/report.html" --summary "$work/run/summary.json"
  scripts/test-report.sh
  rm -rf "$work"
}

step "packages" ensure_packages "${BUILD_PACKAGES[@]}" "${CHECK_PACKAGES[@]}"
step "format" check_format
step "model" scripts/models.sh smollm2
step "build (release, warnings are errors)" build_release
step "clang-tidy" check_tidy
step "GPU code compiles" gpu_code_compiles
if [ $full = yes ]; then
  # shellcheck disable=SC2046
  step "address and undefined-behaviour sanitizers, everything" sanitized asan $(every_folder)
  # shellcheck disable=SC2046
  step "thread sanitizer, everything" sanitized tsan $(every_folder)
  step "bisect: 300 plantings, 1,000 clean runs" scripts/test-bisect.sh
  step "traces of transformers, recorded again" scripts/test-traces.sh
  step "Gemma 3 270M against transformers, and its self-test" scripts/test-gemma3.sh
  step "tokenizers: 100,000 random strings a family" scripts/fuzz-tokenizers.sh
else
  step "address and undefined-behaviour sanitizers" sanitized asan base gguf quant model tokenizer trace cli
  step "thread sanitizer" sanitized tsan base engine
fi

step "bisect's report in a browser" report_in_browser

if ! wanted "tests (release)"; then
  [ $ran -gt 0 ] || { echo "scripts/test.sh: expected words of a step's name, got \"$words\", which none has: see the steps in the script" >&2; exit 2; }
  exit 0
fi
say "tests (release)"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0
ctest --test-dir build/release --output-on-failure -j2 | tee "$log" || status=$?
skipped=$(grep -c '\*\*\*Skipped' "$log" || true)
echo "scripts/test.sh: $SECONDS s in all, $((skipped + not_compiled)) tests skipped"
exit "$status"
