#!/usr/bin/env python3
"""Makes tests/golden/quant: what the `gguf` Python package dequantises and quantises.

  python tools/golden_quant.py tests/golden/quant        (needs: pip install gguf numpy)

<TYPE>.dequantize.bin  u32 blocks, the blocks' bytes, then the float32 elements that gguf.quants.dequantize gives.
<TYPE>.quantize.bin    u32 blocks, float32 elements, then the blocks' bytes that gguf.quants.quantize gives
                       (the types that the package quantises: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, BF16, F16).
The random bytes come from a fixed seed; running it again gives the same files.
"""
import sys
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType as T
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize, quantize

# Where the f16 numbers of a block lie.
HALVES = {
    T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0],
    T.Q2_K: [80, 82], T.Q3_K: [108], T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208],
}
# Zero, minus zero, the smallest and the largest subnormal, the smallest normal, one, the largest; and negatives.
EDGE_HALVES = [0x0000, 0x8000, 0x0001, 0x8001, 0x03FF, 0x83FF, 0x0400, 0x8400, 0x3C00, 0xBC00, 0x7BFF, 0xFBFF]


def random_halves(rng, n):
    """Finite f16 numbers of every exponent and both signs."""
    h = rng.integers(0, 0x10000, n, dtype=np.uint32).astype(np.uint16)
    return np.where((h & 0x7C00) == 0x7C00, h & 0xBFFF, h)


def blocks_of(rng, qtype):
    block, size = GGML_QUANT_SIZES[qtype]
    if qtype == T.F32:
        x = rng.standard_normal(512).astype(np.float32)
        x[:8] = [0.0, -0.0, 1e-45, -1e-45, 3.4028235e38, -3.4028235e38, np.inf, -np.inf]
        return x.view(np.uint8).reshape(-1, 4)
    if qtype in (T.F16, T.BF16):  # the ends of every exponent, zero and infinity, both signs; every eleventh number
        top, exponent = {T.F16: (0x7C00, 0x0400), T.BF16: (0x7F80, 0x0080)}[qtype]
        ends = [e + at for e in range(0, 0x10000, exponent) for at in (0, 1, exponent // 2, exponent - 2, exponent - 1)]
        h = np.unique(np.concatenate([ends, np.arange(0, 0x10000, 11)])).astype(np.uint16)
        return h[(h & 0x7FFF) <= top].view(np.uint8).reshape(-1, 2)
    count = 64 if block == 256 else 200
    blocks = rng.integers(0, 256, (count, size), dtype=np.uint32).astype(np.uint8)
    for at in HALVES[qtype]:  # scales as in real files (1e-5 .. 10) for most blocks, of any size for the rest
        usual = (10.0 ** rng.uniform(-5, 1, count) * rng.choice([-1, 1], count)).astype(np.float16).view(np.uint16)
        h = np.where(np.arange(count) % 3 == 0, random_halves(rng, count), usual)
        h[: len(EDGE_HALVES)] = EDGE_HALVES if at == HALVES[qtype][0] else EDGE_HALVES[::-1]
        blocks[:, at : at + 2] = h.astype(np.uint16).view(np.uint8).reshape(-1, 2)
    keep = np.ones(size, dtype=bool)
    for at in HALVES[qtype]:
        keep[at : at + 2] = False
    for i, byte in enumerate([0x00, 0xFF, 0x0F, 0xF0, 0x55, 0xAA, 0x80, 0x7F]):  # codes all alike
        blocks[20 + i, keep] = byte
    return blocks


def floats_for(rng, qtype):
    block = GGML_QUANT_SIZES[qtype][0]
    if qtype in (T.F16, T.BF16):
        x = rng.standard_normal(4096) * 10.0 ** rng.uniform(-8, 4, 4096)
        return np.clip(x, -65000, 65000).astype(np.float32).reshape(-1, 1)
    x = rng.standard_normal((200, block)) * 10.0 ** rng.uniform(-3, 3, (200, 1)) + rng.standard_normal((200, 1))
    x[0] = 0
    x[1] = np.abs(x[1])
    x[2] = -np.abs(x[2])
    x[3, 1:] = 0
    x[4] = 1.5
    return x.astype(np.float32)


def main():
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    for number, qtype in enumerate([T.F32, T.F16, T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q8_0, T.Q2_K, T.Q3_K, T.Q4_K, T.Q5_K,
                                    T.Q6_K, T.BF16]):
        rng = np.random.default_rng(1000 + number)
        blocks = np.ascontiguousarray(blocks_of(rng, qtype))
        values = np.ascontiguousarray(dequantize(blocks, qtype), dtype=np.float32)
        assert not np.isnan(values).any(), qtype
        head = np.array([len(blocks)], dtype=np.uint32).tobytes()
        (out / f"{qtype.name}.dequantize.bin").write_bytes(head + blocks.tobytes() + values.tobytes())
        if qtype in (T.F16, T.BF16, T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q8_0):
            x = floats_for(rng, qtype)
            head = np.array([len(x)], dtype=np.uint32).tobytes()
            stored = np.ascontiguousarray(quantize(x, qtype))
            (out / f"{qtype.name}.quantize.bin").write_bytes(head + x.tobytes() + stored.tobytes())


if __name__ == "__main__":
    main()
