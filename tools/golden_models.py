#!/usr/bin/env python3
"""Writes tests/golden/models: tiny random llama GGUFs and what transformers makes of them in true float64.

    python tools/golden_models.py [--out tests/golden/models] [--only NAME]

For each model: NAME.gguf, NAME.safetensors (every stage at a few positions), NAME.logits.safetensors (the logits of
every position). Each golden is the transformers model's own value; a plain numpy float64 pass that reads the GGUF must
agree within 1e-12 of every row's largest value, and with one mistake planted it must not agree within 1e-6 (a golden
that no mistake moves would judge nothing).
"""

import argparse
import json
import math
import os
from dataclasses import dataclass, field

import numpy as np
import gguf

import golden_lib as lib

LOGITS_STD = 3.0


@dataclass
class Shape:
    name: str
    purpose: str
    dim: int = 32
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 0  # 0: dim / heads, and no key_length in the file
    ffn: int = 40
    vocab: int = 260
    tied: bool = True
    bias: tuple = ()  # suffixes of the block tensors that have one
    eps: float = 1e-5
    base: float = 10000.0
    context: int = 256
    rotary: int = 0  # 0: head_dim
    scaling: dict = field(default_factory=dict)  # transformers' rope parameters beyond theta
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32
    tokens: int = 40
    faults: tuple = ()  # mistakes this model must notice, beyond those that every model must
    seed: int = 0

    @property
    def width(self):
        return self.head_dim or self.dim // self.heads

    def f32(self, value):
        """The float32 value that the file will hold, as a Python float."""
        return float(np.float32(value))


ATTENTION = ("attn_q", "attn_k", "attn_v", "attn_output")
MLP = ("ffn_gate", "ffn_up", "ffn_down")
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}

F16, BF16 = gguf.GGMLQuantizationType.F16, gguf.GGMLQuantizationType.BF16
# Small, so that the repository stays so: the F16 rope models are as exact as F32 ones and half their size.
SHAPES = [
    Shape("mha_tied", "as many kv heads as heads, tied head", dim=24, kv_heads=4),
    Shape("gqa_1kv", "four heads share one kv head", dim=24, kv_heads=1),
    Shape("head_dim", "head_dim 10 where dim / heads is 6 (key_length, value_length)", dim=24, layers=1, head_dim=10,
          faults=("head_dim_scale",)),
    Shape("separate_head", "output.weight of its own", dim=24, layers=1, tied=False, faults=("tied_head",)),
    Shape("attn_bias", "biases on q, k, v and the attention's output; eps 0.1", dim=24, layers=1, bias=ATTENTION,
          eps=0.1, faults=tuple("bias:" + b for b in ATTENTION)),
    Shape("mlp_bias", "biases on all seven matrices", dim=24, layers=1, bias=ATTENTION + MLP,
          faults=tuple("bias:" + b for b in ATTENTION + MLP)),
    Shape("rope_linear", "linear rope scaling by 4; F16", layers=1, heads=2, kv_heads=1, kind=F16,
          scaling={"rope_type": "linear", "factor": 4.0}, faults=("rope_scaling",)),
    Shape("rope_yarn", "YaRN, factor 4 over 1024, the rest by default; context 4096", layers=1, heads=2, kv_heads=1,
          context=4096, scaling=YARN, faults=("rope_scaling", "yarn_ramp", "yarn_mscale")),
    Shape("rope_yarn_betas", "YaRN with yarn_beta_fast 16, yarn_beta_slow 2 and attn_factor 0.75 in the file; F16",
          layers=1, heads=2, kv_heads=1, kind=F16, context=4096,
          scaling={**YARN, "factor": 2.5, "beta_fast": 16.0, "beta_slow": 2.0, "attn_factor": 0.75},
          faults=("rope_scaling", "yarn_ramp", "yarn_mscale", "yarn_betas", "yarn_attn_factor")),
    Shape("rope_llama3", "Llama-3 scaling as a rope_freqs.weight tensor, no rope.scaling keys; F16", layers=1, heads=2,
          kv_heads=1, kind=F16, base=500000.0, context=512, scaling=LLAMA3, faults=("rope_freqs", "rope_base")),
    Shape("partial_rotary", "rope turns the first 8 of 16 dimensions of each head; F16", layers=1, heads=2, kv_heads=1,
          kind=F16, rotary=8, faults=("full_rotary",)),
    Shape("rope_base", "rope base 1,000,000 and 200 tokens; F16", layers=1, heads=2, kv_heads=1, kind=F16, base=1e6,
          context=2048, tokens=200, faults=("rope_base",)),
    Shape("awkward_f16", "F16; dim 96, ffn 200, 3 heads over 1, vocabulary of 301", dim=96, layers=1, heads=3,
          kv_heads=1, ffn=200, vocab=301, kind=F16),
    Shape("bf16", "BF16 matrices, two layers", kind=BF16),
]
# The same model as rope_llama3 in a file that says rope.scaling.type = none beside its tensor: the same goldens.
TWIN = ("rope_llama3_none", "rope_llama3")


def rounded(array, kind):
    """The float32 values that a tensor of this type holds."""
    if kind == gguf.GGMLQuantizationType.F32:
        return array.astype(np.float32)
    return gguf.quants.dequantize(gguf.quants.quantize(array.astype(np.float32), kind), kind).reshape(array.shape)


def random_weights(shape):
    """The file's tensors as float32 arrays [rows, columns], in GGUF's names and row order."""
    rng = np.random.default_rng([20250101, shape.seed])
    q, kv = shape.heads * shape.width, shape.kv_heads * shape.width
    tensors = {}

    def matrix(name, rows, columns, gain):
        tensors[name] = rounded(rng.standard_normal((rows, columns)) * gain / math.sqrt(columns), shape.kind)

    def norm(name):
        tensors[name] = np.clip(1 + 0.3 * rng.standard_normal(shape.dim), 0.2, 2).astype(np.float32)

    matrix("token_embd.weight", shape.vocab, shape.dim, 3.0)
    for n in range(shape.layers):
        norm(f"blk.{n}.attn_norm.weight")
        matrix(f"blk.{n}.attn_q.weight", q, shape.dim, 1.5)
        matrix(f"blk.{n}.attn_k.weight", kv, shape.dim, 1.5)
        matrix(f"blk.{n}.attn_v.weight", kv, shape.dim, 1.0)
        matrix(f"blk.{n}.attn_output.weight", shape.dim, q, 1.0)
        norm(f"blk.{n}.ffn_norm.weight")
        matrix(f"blk.{n}.ffn_gate.weight", shape.ffn, shape.dim, 1.5)
        matrix(f"blk.{n}.ffn_up.weight", shape.ffn, shape.dim, 1.0)
        matrix(f"blk.{n}.ffn_down.weight", shape.dim, shape.ffn, 1.0)
        for suffix in shape.bias:
            rows = len(tensors[f"blk.{n}.{suffix}.weight"])
            tensors[f"blk.{n}.{suffix}.bias"] = (0.3 * rng.standard_normal(rows)).astype(np.float32)
    norm("output_norm.weight")
    if not shape.tied:
        matrix("output.weight", shape.vocab, shape.dim, 3.0)
    if shape.scaling.get("rope_type") == "llama3":
        tensors["rope_freqs.weight"] = llama3_factors(shape)
    return tensors, rng


def llama3_factors(shape):
    """What each pair's frequency is divided by, as converters store it: float32, one a pair."""
    p, pairs = shape.scaling, (shape.rotary or shape.width) // 2
    out = []
    for i in range(pairs):
        wavelength = 2 * math.pi * math.pow(shape.base, i / pairs)
        turns = p["original_max_position_embeddings"] / wavelength
        blend = (turns - p["low_freq_factor"]) / (p["high_freq_factor"] - p["low_freq_factor"])
        blend = min(max(blend, 0.0), 1.0)
        out.append(1 / ((1 - blend) / p["factor"] + blend))
    return np.array(out, np.float32)


def add_tokenizer(writer, vocab):
    """A SentencePiece vocabulary in which every text has ids: three specials, 256 bytes, then a few pieces."""
    pieces = ["\u2581", "e", "t", "a", "o", "n", "i", "s", "r", "h", "l", "d", "u", "c", "m", "w", "\u2581t", "he",
              "\u2581a", "in", "\u2581the", "er", "an", "re", "on", "\u2581s", "\u2581w", "nd", "\u2581o", "ou", "es",
              "is", "at", "en", "it", "or", "ed", "\u2581m", "al", "ar", "ing", "\u2581and"]
    if not 260 <= vocab <= 259 + len(pieces):
        raise ValueError(f"vocabulary: expected 260 to {259 + len(pieces)}, got {vocab}")
    kinds = gguf.TokenType
    tokens = [("<unk>", 0.0, kinds.UNKNOWN), ("<s>", 0.0, kinds.CONTROL), ("</s>", 0.0, kinds.CONTROL)]
    tokens += [(f"<0x{b:02X}>", 0.0, kinds.BYTE) for b in range(256)]
    tokens += [(piece, -1.0 - n, kinds.NORMAL) for n, piece in enumerate(pieces[:vocab - 259])]
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([t[0].encode() for t in tokens])
    writer.add_token_scores([t[1] for t in tokens])
    writer.add_token_types([int(t[2]) for t in tokens])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(True)


def write_gguf(shape, tensors, path, scaling_none=False):
    writer = gguf.GGUFWriter(path, "llama")
    file_types = {"F32": gguf.LlamaFileType.ALL_F32, "F16": gguf.LlamaFileType.MOSTLY_F16,
                  "BF16": gguf.LlamaFileType.MOSTLY_BF16}
    writer.add_type("model")
    writer.add_name("golden " + shape.name)
    writer.add_file_type(file_types[shape.kind.name])
    writer.add_vocab_size(shape.vocab)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.dim)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    if shape.head_dim:
        writer.add_key_length(shape.head_dim)
        writer.add_value_length(shape.head_dim)
    writer.add_layer_norm_rms_eps(shape.eps)
    writer.add_rope_dimension_count(shape.rotary or shape.width)
    writer.add_rope_freq_base(shape.base)
    scaling = shape.scaling
    if scaling.get("rope_type") in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(scaling["rope_type"]))
        writer.add_rope_scaling_factor(scaling["factor"])
    if scaling.get("rope_type") == "yarn":
        writer.add_rope_scaling_orig_ctx_len(scaling["original_max_position_embeddings"])
        if "beta_fast" in scaling:
            writer.add_rope_scaling_yarn_beta_fast(scaling["beta_fast"])
            writer.add_rope_scaling_yarn_beta_slow(scaling["beta_slow"])
        if "attn_factor" in scaling:
            writer.add_rope_scaling_attn_factors(scaling["attn_factor"])
    if scaling_none:
        writer.add_rope_scaling_type(gguf.RopeScalingType.NONE)
    add_tokenizer(writer, shape.vocab)
    for name, array in tensors.items():
        if array.ndim == 2 and shape.kind == gguf.GGMLQuantizationType.F16:
            writer.add_tensor(name, array.astype(np.float16))
        elif array.ndim == 2 and shape.kind != gguf.GGMLQuantizationType.F32:
            writer.add_tensor(name, gguf.quants.quantize(array, shape.kind), raw_dtype=shape.kind)
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def hf_model(torch, transformers, shape, tensors):
    """The transformers model with the arrays that went into the file."""
    rope = {"rope_theta": shape.f32(shape.base), "rope_type": "default",
            **{k: shape.f32(v) if isinstance(v, float) else v for k, v in shape.scaling.items()}}
    if shape.rotary:
        rope["partial_rotary_factor"] = shape.rotary / shape.width
    config = {
        "vocab_size": shape.vocab, "hidden_size": shape.dim, "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads, "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.width, "max_position_embeddings": shape.context, "rms_norm_eps": shape.f32(shape.eps),
        "rope_parameters": rope, "tie_word_embeddings": shape.tied}
    model = (lib.hf_glm if shape.rotary else lib.hf_llama)(torch, transformers, config, tensors)
    if "rope_freqs.weight" in tensors:
        use_stored_factors(torch, model.model.rotary_emb, shape, tensors["rope_freqs.weight"])
    return model


def use_stored_factors(torch, rotary, shape, factors):
    """transformers computes Llama-3's factors in float64; the file stores them in float32, and those are the model's.

    They must be transformers' own to float32's rounding before they take their place.
    """
    plain = 1.0 / shape.base ** (torch.arange(0, shape.width, 2) / shape.width)
    stored = plain / torch.from_numpy(factors.astype(np.float64))
    error = float((stored / rotary.inv_freq - 1).abs().max())
    if not error <= 2.0**-23:
        raise AssertionError(f"llama3 factors differ from transformers' by {error:.3g}")
    rotary.inv_freq.copy_(stored)


def notice_faults(shape, model, ids, want):
    """Each planted mistake must move the logits by far more than any comparison allows; the smallest move."""
    faults = ("rope_pairs", "eps", "causal", *shape.faults)
    if shape.kv_heads not in (1, shape.heads):
        faults += ("kv_head_order",)
    moves = {}
    for fault in dict.fromkeys(faults):
        moves[fault] = lib.row_error(lib.numpy_forward(model, ids, fault)["logits"], want)
        if not moves[fault] >= 1e-6:
            raise AssertionError(f"{shape.name}: the mistake {fault} moves the logits by {moves[fault]:.3g} only")
    return moves


def make(torch, transformers, shape, out):
    path = os.path.join(out, shape.name + ".gguf")
    tensors, rng = random_weights(shape)
    ids = [1, *(int(i) for i in rng.integers(3, shape.vocab, shape.tokens - 1))]
    write_gguf(shape, tensors, path)
    std = lib.numpy_forward(lib.GgufModel(path), ids)["logits"].std()
    tensors["output_norm.weight"] = (tensors["output_norm.weight"] * (LOGITS_STD / std)).astype(np.float32)
    write_gguf(shape, tensors, path)

    hf = hf_model(torch, transformers, shape, tensors)
    lib.assert_dtype(hf, "float64")
    stages = lib.record(torch, hf, ids, shape.heads, shape.kv_heads, half_split=not shape.rotary)
    model = lib.GgufModel(path)
    error, where = lib.cross_check(stages, lib.numpy_forward(model, ids))
    moves = notice_faults(shape, model, ids, stages["logits"])

    chosen = [0, 1, shape.tokens // 2, shape.tokens - 1]
    metadata = {
        "schema_version": "1", "model": shape.name + ".gguf", "model_sha256": lib.sha256_of(path),
        "device": "transformers, true float64", "oracle": type(hf).__name__, "script": "tools/golden_models.py",
        "stage_sources": json.dumps(lib.STAGE_SOURCES), "cross_check": "plain numpy float64 pass over the GGUF",
        "cross_check_worst_row_error": f"{error:.3g}",
        **{"version_" + k: v for k, v in lib.versions(torch, transformers).items()},
    }
    if "rope_freqs.weight" in tensors:
        metadata["rope_frequencies"] = "the file's float32 factors in place of transformers' float64 ones"
    order = lib.stage_order(range(shape.layers))
    golden, logits = shape.name + ".safetensors", shape.name + ".logits.safetensors"
    lib.write_safetensors(os.path.join(out, golden),
                          lib.trace_tensors(ids, chosen, {name: stages[name][chosen] for name in order}), metadata)
    lib.write_safetensors(os.path.join(out, logits),
                          lib.trace_tensors(ids, range(len(ids)), {"logits": stages["logits"]}), metadata)
    print(f"{shape.name:16s} {os.path.getsize(path):7d} bytes, logits std {stages['logits'].std():.2f}, "
          f"cross-check {error:.2g} ({where}), least fault {min(moves.values()):.2g} ({min(moves, key=moves.get)})")
    entry = {"name": shape.name, "purpose": shape.purpose, "gguf": shape.name + ".gguf", "golden": golden,
             "golden_logits": logits, "gguf_sha256": metadata["model_sha256"], "oracle": metadata["oracle"],
             "tokens": shape.tokens, "positions": chosen, "layers": shape.layers}
    return entry, tensors


def check_files(out, manifest):
    """What was written reads back with the safetensors package, and nothing is too big to be kept."""
    from safetensors.numpy import load_file

    total = 0
    for file in sorted(os.listdir(out)):
        size = os.path.getsize(os.path.join(out, file))
        total += size
        if file.endswith(".gguf") and not size <= 300_000 or not size <= 1_000_000:
            raise AssertionError(f"{file}: {size} bytes")
    if not total <= 3_000_000:
        raise AssertionError(f"{out}: {total} bytes, expected 3,000,000 at most")
    for entry in manifest:
        stages = load_file(os.path.join(out, entry["golden"]))
        logits = load_file(os.path.join(out, entry["golden_logits"]))
        if not np.array_equal(stages["logits"], logits["logits"][stages["positions"]]):
            raise AssertionError(f"{entry['name']}: the two goldens differ")
    print(f"{len(manifest)} models, {total} bytes")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=os.path.join(os.path.dirname(__file__), "..", "tests", "golden", "models"))
    parser.add_argument("--only", help="one model's name; the manifest is then left as it is")
    args = parser.parse_args()
    torch, transformers = lib.import_in_float64()
    os.makedirs(args.out, exist_ok=True)
    manifest = []
    for seed, shape in enumerate(SHAPES):
        shape.seed = seed
        if args.only and shape.name != args.only:
            continue
        entry, tensors = make(torch, transformers, shape, args.out)
        manifest.append(entry)
        if shape.name == TWIN[1]:
            path = os.path.join(args.out, TWIN[0] + ".gguf")
            write_gguf(shape, tensors, path, scaling_none=True)
            manifest.append({**entry, "name": TWIN[0], "gguf": TWIN[0] + ".gguf", "gguf_sha256": lib.sha256_of(path),
                             "purpose": entry["purpose"].split(",")[0] + ", rope.scaling.type = none; same goldens"})
    if args.only:
        return
    with open(os.path.join(args.out, "manifest.json"), "w") as f:
        json.dump(manifest, f, indent=1)
        f.write("\n")
    check_files(args.out, manifest)


if __name__ == "__main__":
    main()
