#!/usr/bin/env bash
# scripts/kernel-lab.sh [OPTION...]: the kernel lab (bench/README.md) on a machine with an NVIDIA GPU. It builds nothing:
# build/cuda/greta_kernel_lab is made elsewhere (cmake --preset cuda && cmake --build --preset cuda --target greta_kernel_lab) and
# brought along. Options are the program's (--help). Status: 0 every check passed, 1 one did not, 2 it cannot start.
set -euo pipefail
source "$(dirname "$0")/lib.sh"

lab=$ROOT/build/cuda/greta_kernel_lab
[ -x "$lab" ] || { echo "scripts/kernel-lab.sh: there is no build/cuda/greta_kernel_lab" >&2; exit 2; }
find_cublas
exec "$lab" "$@"
