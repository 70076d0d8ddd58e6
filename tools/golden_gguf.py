#!/usr/bin/env python3
"""Makes tests/golden/gguf with the `gguf` Python package's own writer.

  python tools/golden_gguf.py tests/golden/gguf          (needs: pip install gguf numpy)

all_types.gguf            every metadata type, arrays, an array of arrays, tensors of several types and ranks
aligned_256.gguf          the same tensors at general.alignment 256
split-0000N-of-00003.gguf seven tensors in three parts
vocab.gguf                metadata alone
"""
import sys
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType as T
from gguf import GGUFValueType as V
from gguf import GGUFWriter
from gguf.constants import GGML_QUANT_SIZES


def add_metadata(w):
    w.add_uint8("test.u8", 200)
    w.add_int8("test.i8", -100)
    w.add_uint16("test.u16", 60000)
    w.add_int16("test.i16", -30000)
    w.add_uint32("test.u32", 4000000000)
    w.add_int32("test.i32", -2000000000)
    w.add_float32("test.f32", 0.1)
    w.add_uint64("test.u64", 2**63 + 5)
    w.add_int64("test.i64", -(2**62) - 3)
    w.add_float64("test.f64", 0.1)
    w.add_bool("test.yes", True)
    w.add_bool("test.no", False)
    w.add_string("test.string", "na\u00efve \u2581 text")
    w.add_array("test.strings", ["<unk>", "", "\u2581the"])
    w.add_array("test.f32s", [0.5, -1.25, 1e30])
    w.add_array("test.i32s", [1, -2, 3])
    w.add_key_value("test.nested", [[1, 2], [3], [4, 5, 6]], V.ARRAY, V.ARRAY)


def add_tensors(w):
    w.add_tensor("plain.f32", np.arange(24, dtype=np.float32).reshape(2, 3, 4))  # GGUF shape [4, 3, 2]
    w.add_tensor("half.f16", np.arange(5, dtype=np.float16))
    for qtype, rows, row in [(T.Q8_0, 2, 64), (T.Q4_K, 3, 256), (T.BF16, 1, 7)]:
        block, size = GGML_QUANT_SIZES[qtype]
        data = (np.arange(rows * row // block * size) * 7 % 251).astype(np.uint8).reshape(rows, -1)
        w.add_tensor(f"raw.{qtype.name.lower()}", data, raw_dtype=qtype)


def finish(w):
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def main():
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    w = GGUFWriter(out / "all_types.gguf", "test")
    add_metadata(w)
    add_tensors(w)
    finish(w)
    w = GGUFWriter(out / "aligned_256.gguf", "test")
    w.add_custom_alignment(256)
    add_tensors(w)
    finish(w)
    w = GGUFWriter(out / "split.gguf", "test", split_max_tensors=3)
    w.add_string("test.string", "of the first part")
    for i in range(7):
        w.add_tensor(f"tensor.{i}", np.full((2, 4), i, dtype=np.float32))
    finish(w)
    w = GGUFWriter(out / "vocab.gguf", "test")
    add_metadata(w)
    finish(w)


if __name__ == "__main__":
    main()
