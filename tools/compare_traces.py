#!/usr/bin/env python3
"""Compares a trace with one that was recorded before: exit status 1 at the first difference.

    python tools/compare_traces.py WANT.safetensors GOT.safetensors

The same metadata, tensors, types, shapes, token ids and rows; stages within 1e-12 (F64) or 1e-5 (F32) of each row's
largest value: another processor may add in another order. What is not finite must have the same bits. The first difference
is that of the pass: embed_out, then layer by layer, then the head.
"""

import argparse
import re
import sys

import numpy as np
from safetensors import SafetensorError, safe_open

import golden_lib as lib

LIMITS = {"float64": 1e-12, "float32": 1e-5}
INTEGERS = {"token_ids", "sequence_offsets", "sequence", "positions"}


def read(path):
    try:
        with safe_open(path, "numpy") as f:
            return f.metadata() or {}, {name: f.get_tensor(name) for name in f.keys()}
    except SafetensorError as error:
        raise ValueError(f"{path}: expected a safetensors file, got another ({error})") from error


def in_order(names):
    """Whole numbers first, then the stages of the pass, then names that are none."""
    layers = sorted({int(found[1]) for name in names if (found := re.match(r"layers\.(\d+)\.", name))})
    stages = lib.stage_order(layers, names)
    return [*sorted(names & INTEGERS), *stages, *sorted(names - INTEGERS - set(stages))]


def row_error(got, want):
    """lib.row_error() where both are finite; values of the same bits agree whatever they are."""
    same = got.view(f"u{got.itemsize}") == want.view(f"u{want.itemsize}")
    if not np.isfinite(got[~same]).all() or not np.isfinite(want[~same]).all():
        return float("nan")
    return lib.row_error(np.where(np.isfinite(got), got, 0), np.where(np.isfinite(want), want, 0))


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
    for name in in_order(set(want)):
        rows = want[name]
        must_be_same(f"{name}: type and shape", (got[name].dtype.name, got[name].shape), (rows.dtype.name, rows.shape))
        if rows.dtype.kind == "i":
            must_be_same(name, got[name].tolist(), rows.tolist())
            continue
        if rows.dtype.name not in LIMITS:
            raise ValueError(f"{name}: expected {' or '.join(LIMITS)}, got {rows.dtype.name}")
        error = row_error(got[name], rows)
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
