#!/usr/bin/env python3
"""Compares a trace with one that was recorded before: exit status 1 at the first difference.

    python tools/compare_traces.py WANT.safetensors GOT.safetensors

The same metadata, tensors, types, shapes, token ids and rows; stages within 1e-12 (F64) or 1e-5 (F32) of each row's
largest value: another processor may add in another order.
"""

import argparse
import sys

import numpy as np
from safetensors import safe_open

import golden_lib as lib

LIMITS = {"float64": 1e-12, "float32": 1e-5}


def read(path):
    with safe_open(path, "numpy") as f:
        return f.metadata(), {name: f.get_tensor(name) for name in f.keys()}


def must_be_same(what, got, want):
    if got != want:
        raise ValueError(f"{what}: expected {want}, got {got}")


def compare(want_path, got_path):
    (want_meta, want), (got_meta, got) = read(want_path), read(got_path)
    must_be_same("metadata keys", sorted(got_meta), sorted(want_meta))
    for key, value in want_meta.items():
        must_be_same(f"metadata {key}", got_meta[key], value)
    must_be_same("tensors", sorted(got), sorted(want))
    stages, values, worst, where = 0, 0, 0.0, ""
    for name, rows in want.items():
        must_be_same(f"{name}: type and shape", (got[name].dtype.name, got[name].shape), (rows.dtype.name, rows.shape))
        if rows.dtype == np.int32:
            must_be_same(name, got[name].tolist(), rows.tolist())
            continue
        error = lib.row_error(got[name], rows)
        if not error <= LIMITS[rows.dtype.name]:
            raise ValueError(f"{name}: differs by {error:.3g} of a row's largest value")
        stages, values = stages + 1, values + rows.size
        if error >= worst:
            worst, where = error, name
    if values == 0:
        raise ValueError("no stage was compared")
    print(f"{got_path}: as {want_path}: {len(want_meta)} metadata entries, {len(want) - stages} integer tensors, "
          f"{stages} stages, {values} values; worst row error {worst:.3g} ({where})")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("want")
    parser.add_argument("got")
    args = parser.parse_args()
    try:
        compare(args.want, args.got)
    except (ValueError, OSError) as error:
        sys.exit(f"{args.got} is not as {args.want}: {error}")


if __name__ == "__main__":
    main()
