"""The tiny random models of tests/golden/models: their shapes, their weights, their files.

Files are laid out as llama.cpp's converter lays out such models: tensor names, keys, shapes and element order. Matrices
are of the type that the shape names; norms, biases, routers and rope factors are F32 as everywhere.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import gguf

from golden_hf import Facts
from golden_numpy import GEMMA

F16, BF16, F32 = (gguf.GGMLQuantizationType.F16, gguf.GGMLQuantizationType.BF16, gguf.GGMLQuantizationType.F32)


@dataclass
class Shape:
    name: str
    purpose: str
    arch: str = "llama"
    dim: int = 32
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 0  # 0: dim / heads, and no key_length in the file
    ffn: int = 40  # of one expert where there are experts
    vocab: int = 260
    tied: bool = True
    bias: tuple = ()  # suffixes of the block tensors that have one
    eps: float = 1e-5
    base: float = 10000.0
    context: int = 256
    rotary: int = 0  # 0: head_dim
    scaling: dict = field(default_factory=dict)  # transformers' rope parameters beyond theta
    kind: gguf.GGMLQuantizationType = F32
    kinds: dict = field(default_factory=dict)  # of single tensors, by the part of their name
    tokens: int = 40  # the prompt, over which the logits are brought to their standard deviation
    logits_rows: int = 12  # positions in the golden of logits, beside those of the other golden
    faults: tuple = ()  # mistakes this model must notice, beyond those that every model must
    window: int = 0
    local_base: float = 0.0  # gemma3; 0: no key, 10000 is meant
    attn_cap: float = 0.0
    final_cap: float = 0.0
    experts: int = 0
    used: int = 0
    unnormed: bool = False  # expert weights are the softmax's own
    runs: tuple = ()  # goldens of one file: (name, tokens, context asked for); (): one, under the shape's name
    seed: int = 0

    @property
    def width(self):
        return self.head_dim or self.dim // self.heads

    def f32(self, value):
        """The float32 value that the file will hold, as a Python float."""
        return float(np.float32(value))

    def type_of(self, name, array):
        if array.ndim == 1 or "ffn_gate_inp" in name:
            return F32
        return self.kinds.get(name.split(".")[-2], self.kind)

    def facts(self, tensors):
        """What the converter was given."""
        rope = {"rope_theta": self.f32(self.base), "rope_type": "default",
                **{k: self.f32(v) if isinstance(v, float) else v for k, v in self.scaling.items()}}
        for kind in ("long", "short"):
            if (factors := tensors.get(f"rope_factors_{kind}.weight")) is not None:
                rope[kind + "_factor"] = [float(f) for f in factors]
        return Facts(
            arch=self.arch, vocab=self.vocab, dim=self.dim, layers=self.layers, heads=self.heads,
            kv_heads=self.kv_heads, head_dim=self.width, ffn=self.ffn, context=self.context, eps=self.f32(self.eps),
            tied=self.tied, rope=rope, rotary=self.rotary, local_base=self.f32(self.local_base or 10000.0),
            window=self.window, attn_cap=self.f32(self.attn_cap) if self.attn_cap else None,
            final_cap=self.f32(self.final_cap) if self.final_cap else None, experts=self.experts, used=self.used,
            norm_experts=not self.unnormed)


ATTENTION = ("attn_q", "attn_k", "attn_v", "attn_output")
MLP = ("ffn_gate", "ffn_up", "ffn_down")
QKV = ATTENTION[:3]
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}
LONGROPE = {"rope_type": "longrope", "original_max_position_embeddings": 32, "attn_factor": 1.19}

WINDOW = ("window_less", "window_more", "window_none")
LAYERS = ("window_layers",)
QK_NORM = ("qk_norm", "qk_norm_after_rope", "qk_norm_width")
NORM_AFTER = ("attn_post_norm", "mlp_post_norm")
GEMMA_FAULTS = (*WINDOW, *LAYERS, *NORM_AFTER, "embed_scale", "norm_plus_one", "gelu_erf")
EXPERTS = ("one_expert_more", "expert_weights_norm", "expert_weights_exchanged", "experts_exchanged")
FUSED = ("qkv_order", "gate_up_order")
BIAS_QKV = tuple("bias:" + b for b in QKV)

# Small, so that the repository stays so: the F16 rope models are as exact as F32 ones and half their size.
LLAMA = [
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


# With these the attention's matrices stay F32.
HALF = {part: F16 for part in ("token_embd", "output", "ffn_gate", "ffn_up", "ffn_down", "ffn_gate_exps", "ffn_up_exps",
                               "ffn_down_exps")}


def other(name, purpose, **how):
    """A shape beyond the first llama models: fewer rows of logits, half of the weights in F16."""
    return Shape(name, purpose, **{"logits_rows": 6, "kinds": HALF, **how})


OTHERS = [
    other("mixtral", "llama with 4 experts, 2 used, weights normalised; separate head", tied=False, dim=24,
          ffn=16, experts=4, used=2, base=1e6, kind=BF16, faults=(*EXPERTS, "tied_head")),
    other("mixtral_1kv", "llama with 8 experts of odd size 13, 3 used; one kv head, head_dim 10 where dim / heads is 5",
          dim=20, layers=1, kv_heads=1, head_dim=10, ffn=13, experts=8, used=3, faults=(*EXPERTS, "head_dim_scale")),
    other("qwen2", "qwen2: biases on q, k, v; rope base 1,000,000; BF16", arch="qwen2", dim=24, ffn=37, bias=QKV,
          eps=1e-6, base=1e6, kind=BF16, kinds={}, faults=(*BIAS_QKV, "rope_base")),
    other("qwen2_1kv", "qwen2: three heads of 10 over one kv head; F16", arch="qwen2", dim=30, layers=1, heads=3,
          kv_heads=1, ffn=37, bias=QKV, eps=1e-6, kind=F16, kinds={}, faults=BIAS_QKV),
    other("qwen3", "qwen3: a norm on each head of q and k; head_dim 12 where dim / heads is 6", arch="qwen3", dim=24,
          head_dim=12, ffn=37, eps=1e-6, base=1e6, kind=F16, faults=(*QK_NORM, "head_dim_scale", "rope_base")),
    other("qwen3_1kv", "qwen3: five heads over one kv head, head_dim 6 where dim / heads is 4; separate head",
          arch="qwen3", dim=20, layers=1, heads=5, kv_heads=1, head_dim=6, ffn=37, eps=1e-6, tied=False,
          kinds={**HALF, "output": BF16}, faults=(*QK_NORM, "tied_head", "head_dim_scale")),
    other("qwen3moe", "qwen3moe: 6 experts, 2 used, weights normalised (no key says so)", arch="qwen3moe",
          dim=24, head_dim=8, ffn=12, eps=1e-6, experts=6, used=2, base=1e6, kind=F16, faults=(*QK_NORM, *EXPERTS)),
    other("qwen3moe_1kv", "qwen3moe: 5 experts of odd size 11, 3 used, expert_weights_norm = false; one kv head",
          arch="qwen3moe", dim=20, layers=1, kv_heads=1, head_dim=6, ffn=11, eps=1e-6, tied=False, experts=5, used=3,
          unnormed=True, faults=(*QK_NORM, *EXPERTS, "tied_head")),
    other("gemma2", "gemma2: window 7 on the first layer, none on the second; both soft caps", arch="gemma2", dim=24,
          head_dim=8, ffn=37, eps=1e-6, window=7, kind=F16, attn_cap=5.0, final_cap=6.0,
          faults=(*GEMMA_FAULTS, "attn_cap", "final_cap", "head_dim_scale")),
    other("gemma2_1kv", "gemma2: window 5, one kv head, head_dim 10 where dim / heads is 5; BF16",
          arch="gemma2", dim=20, layers=2, kv_heads=1, head_dim=10, ffn=21, eps=1e-6, window=5, attn_cap=3.0,
          final_cap=4.5, kind=BF16, kinds={}, faults=(*GEMMA_FAULTS, "attn_cap", "final_cap", "head_dim_scale")),
    other("gemma3", "gemma3: seven layers, window 9; the sixth sees all, with linear factor 8; no local base key",
          arch="gemma3", dim=16, layers=7, heads=2, kv_heads=1, ffn=13, eps=1e-6, base=1e6, window=9, kind=F16,
          kinds={}, scaling={"rope_type": "linear", "factor": 8.0}, head_dim=6,
          faults=(*GEMMA_FAULTS, *QK_NORM, "rope_bases_exchanged", "rope_scaling", "scaling_everywhere")),
    other("gemma3_1kv", "gemma3: three layers, all of window 6, rope.freq_base_swa 5000; three heads over one kv head",
          arch="gemma3", dim=12, layers=3, heads=3, kv_heads=1, head_dim=6, ffn=15, eps=1e-6, base=1e6, window=6,
          local_base=5000.0,
          faults=(*(f for f in GEMMA_FAULTS if f not in LAYERS), *QK_NORM, "rope_bases_exchanged", "rope_base")),
    other("phi3", "phi3: fused q, k, v and gate, up; window 11 on every layer; separate head", arch="phi3", dim=24,
          ffn=28, tied=False, window=11, faults=(*WINDOW, *FUSED, "tied_head")),
    other("phi3_longrope", "phi3: longrope over 32 of 128, rope turns 6 of 8 dimensions, three heads over one kv head",
          arch="phi3", dim=24, heads=3, kv_heads=1, ffn=37, context=128, rotary=6, scaling=LONGROPE,
          runs=(("phi3_long", 40, 128), ("phi3_short", 30, 32)),
          faults=(*FUSED, "long_short", "attn_factor", "rope_factors")),
    other("olmo2", "olmo2: norms after attention and mlp alone; q and k norms over the whole width", arch="olmo2",
          dim=24, ffn=37, tied=False, eps=1e-6, base=500000.0, kind=F16, kinds={**HALF, "output": BF16},
          faults=(*QK_NORM, *NORM_AFTER, "rope_base", "tied_head")),
    other("olmo2_1kv", "olmo2: three heads over one kv head; F16", arch="olmo2", dim=24, layers=1, heads=3, kv_heads=1,
          ffn=37, eps=1e-6, tied=False, kind=F16, kinds={}, faults=(*QK_NORM, *NORM_AFTER, "tied_head")),
]
SHAPES = LLAMA + OTHERS
# The same model as rope_llama3 in a file that says rope.scaling.type = none beside its tensor: the same goldens.
TWIN = ("rope_llama3_none", "rope_llama3")


def rounded(array, kind):
    """The float32 values that a tensor of this type holds."""
    if kind == F32:
        return array.astype(np.float32)
    return gguf.quants.dequantize(gguf.quants.quantize(array.astype(np.float32), kind), kind).reshape(array.shape)


def random_weights(shape):
    """The file's tensors as float32 arrays [rows, columns], in GGUF's names and row order."""
    rng = np.random.default_rng([20250101, shape.seed])
    q, kv = shape.heads * shape.width, shape.kv_heads * shape.width
    tensors = {}

    def matrix(name, rows, columns, gain, *count):
        array = rng.standard_normal((*count, rows, columns)) * gain / math.sqrt(columns)
        tensors[name] = rounded(array, shape.type_of(name, array))

    def norm(name, width=shape.dim, mean=1.0):
        tensors[name] = np.clip(mean + 0.3 * rng.standard_normal(width), 0.2, mean + 1).astype(np.float32)

    matrix("token_embd.weight", shape.vocab, shape.dim, 3.0 / (math.sqrt(shape.dim) if shape.arch in GEMMA else 1.0))
    for n in range(shape.layers):
        blk = f"blk.{n}."
        if shape.arch != "olmo2":
            norm(blk + "attn_norm.weight")
        if shape.arch == "phi3":
            matrix(blk + "attn_qkv.weight", q + 2 * kv, shape.dim, 1.3)
        else:
            matrix(blk + "attn_q.weight", q, shape.dim, 1.5)
            matrix(blk + "attn_k.weight", kv, shape.dim, 1.5)
            matrix(blk + "attn_v.weight", kv, shape.dim, 1.0)
        if shape.arch in ("qwen3", "qwen3moe", "gemma3", "olmo2"):
            whole = shape.arch == "olmo2"
            norm(blk + "attn_q_norm.weight", q if whole else shape.width, 1.5)
            norm(blk + "attn_k_norm.weight", kv if whole else shape.width, 1.5)
        matrix(blk + "attn_output.weight", shape.dim, q, 1.0)
        if shape.arch in (*GEMMA, "olmo2"):
            norm(blk + "post_attention_norm.weight")
        if shape.arch != "olmo2":
            norm(blk + "ffn_norm.weight")
        if shape.experts:
            matrix(blk + "ffn_gate_inp.weight", shape.experts, shape.dim, 1.5)
            matrix(blk + "ffn_gate_exps.weight", shape.ffn, shape.dim, 1.5, shape.experts)
            matrix(blk + "ffn_up_exps.weight", shape.ffn, shape.dim, 1.0, shape.experts)
            matrix(blk + "ffn_down_exps.weight", shape.dim, shape.ffn, 1.0, shape.experts)
        elif shape.arch == "phi3":
            matrix(blk + "ffn_up.weight", 2 * shape.ffn, shape.dim, 1.2)
            matrix(blk + "ffn_down.weight", shape.dim, shape.ffn, 1.0)
        else:
            matrix(blk + "ffn_gate.weight", shape.ffn, shape.dim, 1.5)
            matrix(blk + "ffn_up.weight", shape.ffn, shape.dim, 1.0)
            matrix(blk + "ffn_down.weight", shape.dim, shape.ffn, 1.0)
        if shape.arch in (*GEMMA, "olmo2"):
            norm(blk + "post_ffw_norm.weight")
        for suffix in shape.bias:
            rows = len(tensors[f"{blk}{suffix}.weight"])
            tensors[f"{blk}{suffix}.bias"] = (0.3 * rng.standard_normal(rows)).astype(np.float32)
    norm("output_norm.weight")
    if not shape.tied:
        matrix("output.weight", shape.vocab, shape.dim, 3.0)
    if shape.scaling.get("rope_type") == "llama3":
        tensors["rope_freqs.weight"] = llama3_factors(shape)
    if shape.scaling.get("rope_type") == "longrope":
        for kind, ends in (("long", (1.5, 20.0)), ("short", (1.0, 2.0))):
            factors = np.geomspace(*ends, (shape.rotary or shape.width) // 2)
            tensors[f"rope_factors_{kind}.weight"] = factors.astype(np.float32)
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


def add_rope(writer, shape, scaling_none):
    """The keys about rotation, each where that architecture's converter writes it."""
    scaling, kind = shape.scaling, shape.scaling.get("rope_type")
    if shape.arch in ("llama", "phi3"):
        writer.add_rope_dimension_count(shape.rotary or shape.width)
    if shape.arch != "gemma2":
        writer.add_rope_freq_base(shape.base)
    if shape.local_base:
        writer.add_rope_freq_base_swa(shape.local_base)
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
        writer.add_rope_scaling_factor(scaling["factor"])
    if shape.arch == "phi3" or kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(scaling.get("original_max_position_embeddings", shape.context))
    if "beta_fast" in scaling:
        writer.add_rope_scaling_yarn_beta_fast(scaling["beta_fast"])
        writer.add_rope_scaling_yarn_beta_slow(scaling["beta_slow"])
    if "attn_factor" in scaling:
        writer.add_rope_scaling_attn_factors(scaling["attn_factor"])
    if scaling_none:
        writer.add_rope_scaling_type(gguf.RopeScalingType.NONE)


def write_gguf(shape, tensors, path, scaling_none=False):
    writer = gguf.GGUFWriter(path, shape.arch)
    file_types = {"F32": gguf.LlamaFileType.ALL_F32, "F16": gguf.LlamaFileType.MOSTLY_F16,
                  "BF16": gguf.LlamaFileType.MOSTLY_BF16}
    writer.add_type("model")
    writer.add_name("golden " + shape.name)
    writer.add_file_type(file_types[shape.kind.name])
    if shape.arch == "llama":
        writer.add_vocab_size(shape.vocab)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.dim)
    writer.add_block_count(shape.layers)
    if shape.arch == "qwen3moe":  # its converter writes the size of a dense layer too, of which there is none
        writer.add_feed_forward_length(3 * shape.ffn)
        writer.add_expert_feed_forward_length(shape.ffn)
    else:
        writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    if shape.head_dim or shape.arch in GEMMA:
        writer.add_key_length(shape.width)
        writer.add_value_length(shape.width)
    writer.add_layer_norm_rms_eps(shape.eps)
    add_rope(writer, shape, scaling_none)
    if shape.experts:
        writer.add_expert_count(shape.experts)
        writer.add_expert_used_count(shape.used)
        if shape.unnormed:
            writer.add_expert_weights_norm(False)
    if shape.window or shape.arch == "phi3":  # phi3: 0 says that there is none
        writer.add_sliding_window(shape.window)
    if shape.attn_cap:
        writer.add_attn_logit_softcapping(shape.attn_cap)
    if shape.final_cap:
        writer.add_final_logit_softcapping(shape.final_cap)
    add_tokenizer(writer, shape.vocab)
    for name, array in tensors.items():
        kind = shape.type_of(name, array)
        if kind == F16:
            writer.add_tensor(name, array.astype(np.float16))
        elif kind != F32:
            writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
