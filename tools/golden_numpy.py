"""A plain numpy forward pass in float64 over a GGUF file, for every architecture that the goldens cover.

`numpy_forward` reads nothing but the file (its keys and its tensors, dequantised by the gguf package), so it checks the
file as well as the implementation that it is compared with. Nothing is shared with transformers' code. Its `fault`
argument plants one mistake: a golden that does not notice it would judge nothing.
"""

import math

import numpy as np
import gguf

ARCHITECTURES = ("llama", "qwen2", "qwen3", "qwen3moe", "gemma2", "gemma3", "phi3", "olmo2")
GEMMA = ("gemma2", "gemma3")
# Layers that see the whole context: every second one of gemma2, every sixth of gemma3. The others see a window.
GLOBAL_EVERY = {"gemma2": 2, "gemma3": 6}
GEMMA3_LOCAL_BASE = 10000.0  # where a file has no rope.freq_base_swa


class GgufModel:
    """Metadata and dequantised tensors of a GGUF file.

    context: the number of positions that a run asks for (the file's own by default); it decides between phi3's long
    and short rope factors.
    """

    def __init__(self, path):
        reader = gguf.GGUFReader(path)
        self.meta = {name: field.contents() for name, field in reader.fields.items()}
        self.arch = self.meta["general.architecture"]
        if self.arch not in ARCHITECTURES:
            raise ValueError(f"{path}: expected one of {', '.join(ARCHITECTURES)}, got architecture {self.arch}")
        self.tensors = {}
        for tensor in reader.tensors:
            data = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            shape = tuple(int(n) for n in reversed(tensor.shape))
            self.tensors[tensor.name] = np.ascontiguousarray(data).reshape(shape)  # float32, [rows, columns]
        self.vocab = len(self.tensors["token_embd.weight"])
        self.dim = self.get("embedding_length")
        self.layers = self.get("block_count")
        self.ffn = self.get("feed_forward_length")
        self.heads = self.get("attention.head_count")
        self.kv_heads = self.get("attention.head_count_kv", self.heads)
        self.head_dim = self.get("attention.key_length", self.dim // self.heads)
        self.rotary = self.get("rope.dimension_count", self.head_dim)
        self.base = self.get("rope.freq_base", 10000.0)
        self.local_base = self.get("rope.freq_base_swa", GEMMA3_LOCAL_BASE)
        self.eps = self.get("attention.layer_norm_rms_epsilon")
        self.context = self.get("context_length")
        self.window = self.get("attention.sliding_window", 0)
        self.attn_cap = self.get("attn_logit_softcapping", None) or None
        self.final_cap = self.get("final_logit_softcapping", None) or None
        self.experts = self.get("expert_count", 0)
        self.used = self.get("expert_used_count", 0)
        self.norm_experts = self.get("expert_weights_norm", True)
        self.tied = "output.weight" not in self.tensors
        if self.get("attention.value_length", self.head_dim) != self.head_dim:
            raise ValueError(f"{path}: this pass expects value_length equal to key_length")
        if self.window and self.arch not in (*GLOBAL_EVERY, "phi3"):
            raise ValueError(f"{path}: this pass knows no attention window for {self.arch}")

    def get(self, key, *default):
        name = f"{self.arch}.{key}"
        if not default and name not in self.meta:
            raise ValueError(f"the file has no {name}")
        return self.meta.get(name, *default)

    def wide(self, name):
        """A tensor in float64, or None where the file has none."""
        tensor = self.tensors.get(name)
        return None if tensor is None else tensor.astype(np.float64)

    def is_local(self, layer):
        """Whether the layer sees a window only (of a model whose layers differ)."""
        return self.arch in GLOBAL_EVERY and (layer + 1) % GLOBAL_EVERY[self.arch] != 0

    def window_of(self, layer):
        """How many positions the layer sees, the current one among them; 0: all."""
        return self.window if self.arch == "phi3" or self.is_local(layer) else 0

    def rope_original_context(self):
        return self.get("rope.scaling.original_context_length")

    def takes_long_factors(self):
        """phi3's longrope, decided once a run by the context it asks for."""
        return self.context > self.rope_original_context()


def rope_table(model, local=False, fault=""):
    """(radians per position [rotary / 2], factor on cos and sin), both float64; local: of gemma3's windowed layers."""
    half = model.rotary // 2
    if fault == "full_rotary":
        half = model.head_dim // 2
    base = float(model.local_base if local and model.arch == "gemma3" else model.base)
    if fault == "rope_base":
        base = 10000.0
    inv = np.array([math.pow(base, -i / half) for i in range(half)])
    freqs = model.wide("rope_freqs.weight")
    if freqs is not None and fault != "rope_freqs":
        inv = inv / freqs
    if model.arch == "phi3":
        return phi3_factors(model, inv, fault)
    kind = model.get("rope.scaling.type", "none")
    factor = float(model.get("rope.scaling.factor", 1.0))
    if local and model.arch == "gemma3" and fault != "scaling_everywhere":
        return inv, 1.0
    if kind == "none" or fault == "rope_scaling":
        return inv, 1.0
    if kind == "linear":
        return inv / factor, 1.0
    if kind != "yarn":
        raise ValueError(f"rope scaling: expected none, linear or yarn, got {kind}")
    # A pair turns `context * inv / 2 pi` times over the original context: more than beta_fast turns, leave it alone;
    # fewer than beta_slow, stretch it; the ramp between is linear in the pair's number, its ends rounded outwards.
    context = model.rope_original_context()
    fast, slow = model.get("rope.scaling.yarn_beta_fast", 32.0), model.get("rope.scaling.yarn_beta_slow", 1.0)
    if fault == "yarn_betas":
        fast, slow = 32.0, 1.0

    def pair_with(turns):
        return half * math.log(context / (2 * math.pi * turns)) / math.log(base)

    low, high = max(math.floor(pair_with(fast)), 0), min(math.ceil(pair_with(slow)), 2 * half - 1)
    width = high - low if high > low else 0.001
    stretched = np.clip((np.arange(half) - low) / width, 0.0, 1.0)
    if fault == "yarn_ramp":
        stretched = np.ones(half)
    inv = inv / factor * stretched + inv * (1.0 - stretched)
    mscale = 1.0 if fault == "yarn_mscale" else 0.1 * math.log(factor) + 1.0
    if fault != "yarn_attn_factor":
        mscale *= model.get("rope.scaling.attn_factor", 1.0)
    return inv, mscale


def phi3_factors(model, inv, fault):
    """longrope: each frequency divided by its long or short factor, cos and sin times attn_factor for both."""
    kind = "long" if model.tensors.get("rope_factors_long.weight") is not None and (
        model.takes_long_factors() != (fault == "long_short")) else "short"
    factors = model.wide(f"rope_factors_{kind}.weight")
    if factors is not None and fault != "rope_factors":
        inv = inv / factors
    return inv, 1.0 if fault == "attn_factor" else float(model.get("rope.scaling.attn_factor", 1.0))


def rotate(rows, heads, positions, table, half_split):
    """The first dimensions of each head, turned by position * radians; the rest passes.

    Pairs are adjacent elements, or (half_split) the first half of what turns against the second.
    """
    inv, mscale = table
    out = rows.reshape(len(rows), heads, -1).copy()
    angle = positions[:, None, None] * inv
    cos, sin = np.cos(angle) * mscale, np.sin(angle) * mscale
    pairs = len(inv)
    first, second = (slice(0, pairs), slice(pairs, 2 * pairs)) if half_split else (
        slice(0, 2 * pairs, 2), slice(1, 2 * pairs, 2))
    a, b = out[..., first].copy(), out[..., second].copy()
    out[..., first], out[..., second] = a * cos - b * sin, a * sin + b * cos
    return out.reshape(rows.shape)


def rms_norm(rows, weight, eps):
    return rows / np.sqrt((rows * rows).mean(axis=-1, keepdims=True) + eps) * weight


def qk_norm(rows, weight, heads, eps, fault):
    """The norm of q or k: over each head where the weight is one head wide, else over the whole row."""
    split = rows.reshape(len(rows), heads, -1)
    if weight is None or fault == "qk_norm":
        return rows
    whole = len(weight) == rows.shape[1] and heads > 1
    if whole != (fault == "qk_norm_width"):
        return rms_norm(rows, weight if whole else np.tile(weight, heads), eps)
    return rms_norm(split, weight.reshape(heads, -1) if whole else weight, eps).reshape(rows.shape)


def attend(q, k, v, heads, kv_heads, scale, window=0, cap=None, fault=""):
    """Causal softmax attention; head h reads key and value head h // (heads / kv_heads).

    window: the number of keys that a query sees, its own among them (0: all before it).
    """
    tokens = len(q)
    q, k, v = (a.reshape(tokens, -1, a.shape[1] // n) for a, n in ((q, heads), (k, kv_heads), (v, kv_heads)))
    back = np.arange(tokens)[:, None] - np.arange(tokens)[None, :]
    hidden = np.zeros((tokens, tokens), bool) if fault == "causal" else back < 0
    if window and fault != "window_none":
        hidden |= back >= window + {"window_less": -1, "window_more": 1}.get(fault, 0)
    out = np.empty_like(q)
    for h in range(heads):
        kv = h % kv_heads if fault == "kv_head_order" else h // (heads // kv_heads)
        scores = q[:, h] @ k[:, kv].T * scale
        if cap is not None and fault != "attn_cap":
            scores = cap * np.tanh(scores / cap)
        scores[hidden] = -np.inf
        p = np.exp(scores - scores.max(axis=1, keepdims=True))
        out[:, h] = p / p.sum(axis=1, keepdims=True) @ v[:, kv]
    return out.reshape(tokens, -1)


def silu(x):
    return x / (1 + np.exp(-x))


def gelu(x, fault=""):
    """The tanh form, as Gemma has it."""
    if fault == "gelu_erf":
        return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def expert_ffn(model, x, blk, activate, fault):
    """The stages of a layer with experts; a slot's place is its expert's rank by number among the chosen."""
    logits = x @ model.wide(blk + "ffn_gate_inp.weight").T
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    used = model.used + (fault == "one_expert_more")
    chosen = np.sort(np.argsort(-logits, axis=1, kind="stable")[:, :used], axis=1)  # ties: the lower number
    weights = np.take_along_axis(p, chosen, axis=1)
    if model.norm_experts != (fault == "expert_weights_norm"):
        weights = weights / weights.sum(axis=1, keepdims=True)
    if fault == "expert_weights_exchanged":
        weights = weights[:, ::-1]
    gate, up, down = (model.tensors[f"{blk}ffn_{part}_exps.weight"] for part in ("gate", "up", "down"))
    if fault == "experts_exchanged":  # the file's first two
        order = np.array([1, 0, *range(2, model.experts)])
        gate, up, down = gate[order], up[order], down[order]
    slots = {name: np.zeros((len(x), used, width)) for name, width in (
        ("expert_gate", gate.shape[1]), ("expert_up", gate.shape[1]), ("expert_act", gate.shape[1]),
        ("expert_out", model.dim))}
    for expert in range(model.experts):
        rows, slot = np.nonzero(chosen == expert)
        if not len(rows):
            continue
        g, u = x[rows] @ gate[expert].astype(np.float64).T, x[rows] @ up[expert].astype(np.float64).T
        act = activate(g) * u
        for name, value in (("expert_gate", g), ("expert_up", u), ("expert_act", act),
                            ("expert_out", act @ down[expert].astype(np.float64).T)):
            slots[name][rows, slot] = value
    return {
        "router_logits": logits, "experts": chosen.astype(np.float64), "expert_weights": weights,
        **{name: value.reshape(len(x), -1) for name, value in slots.items()},
        "mlp_out": (slots["expert_out"] * weights[:, :, None]).sum(axis=1),
    }


def numpy_forward(model, ids, fault="", rows=slice(None)):
    """Every stage, {name: [tokens, width]}: of the chosen rows; logits of every row.

    `fault` plants one mistake, to see that it is noticed.
    """
    eps = float(model.eps)
    if fault == "eps":
        eps = 1e-6 if eps > 2e-6 else 1e-5
    positions = np.arange(len(ids), dtype=np.float64)
    half_split = (model.arch != "llama") != (fault == "rope_pairs")
    head_dim = model.dim // model.heads if fault == "head_dim_scale" else model.head_dim
    tables = {local: rope_table(model, local, fault) for local in (False, True)}
    sizes = (model.heads * model.head_dim, model.kv_heads * model.head_dim, model.kv_heads * model.head_dim)
    gated = silu if (model.arch in GEMMA) == (fault == "gelu_silu") else lambda x: gelu(x, fault)
    out = {}

    def linear(x, name, part=None):
        """The product with a tensor of the file (or with some of its rows), bias added where there is one."""
        weight, bias = model.wide(name + ".weight"), model.wide(name + ".bias")
        y = x @ (weight if part is None else weight[part]).T
        return y if bias is None or fault == "bias:" + name.split(".")[-1] else y + bias

    def norm(x, name, skipped=False):
        """One that a fault skips leaves its input as it is."""
        weight = model.wide(name + ".weight")
        if fault == "norm_plus_one":
            weight = weight + 1
        return x if skipped else rms_norm(x, weight, eps)

    def parts(x, name, sizes, order):
        """A fused matrix: its rows by part."""
        ends = np.cumsum((0, *sizes))
        return [linear(x, name, slice(ends[n], ends[n + 1])) for n in order]

    x = model.tensors["token_embd.weight"][np.array(ids)].astype(np.float64)
    if model.arch in GEMMA and fault != "embed_scale":
        x = x * math.sqrt(model.dim)
    out["embed_out"] = x[rows]
    for n in range(model.layers):
        blk = f"blk.{n}."
        s = {"residual_pre_attn": x}
        h = x
        if blk + "attn_norm.weight" in model.tensors:
            h = s["attn_norm"] = norm(x, blk + "attn_norm")
        if blk + "attn_qkv.weight" in model.tensors:
            q, k, s["v"] = parts(h, blk + "attn_qkv", sizes, (0, 2, 1) if fault == "qkv_order" else (0, 1, 2))
        else:
            q, k, s["v"] = (linear(h, blk + name) for name in ("attn_q", "attn_k", "attn_v"))
        q_weight, k_weight = model.wide(blk + "attn_q_norm.weight"), model.wide(blk + "attn_k_norm.weight")
        if q_weight is not None:
            s["q_proj"], s["k_proj"] = q, k
            if fault != "qk_norm_after_rope":
                q = qk_norm(q, q_weight, model.heads, eps, fault)
                k = qk_norm(k, k_weight, model.kv_heads, eps, fault)
        s["q_pre_rope"], s["k_pre_rope"] = q, k
        local = model.is_local(n) != (fault == "rope_bases_exchanged")
        q, k = (rotate(a, heads, positions, tables[local], half_split)
                for a, heads in ((q, model.heads), (k, model.kv_heads)))
        if q_weight is not None and fault == "qk_norm_after_rope":
            q = qk_norm(q, q_weight, model.heads, eps, fault)
            k = qk_norm(k, k_weight, model.kv_heads, eps, fault)
        s["q_post_rope"], s["k_post_rope"] = q, k
        window = model.window_of(n + 1 if fault == "window_layers" else n)
        s["attn_out"] = attend(q, k, s["v"], model.heads, model.kv_heads, 1 / math.sqrt(head_dim), window,
                               model.attn_cap, fault)
        h = s["attn_proj"] = linear(s["attn_out"], blk + "attn_output")
        if blk + "post_attention_norm.weight" in model.tensors:
            h = s["attn_post_norm"] = norm(h, blk + "post_attention_norm", fault == "attn_post_norm")
        x = s["residual_post_attn"] = x + h
        h = x
        if blk + "ffn_norm.weight" in model.tensors:
            h = s["ffn_norm"] = norm(x, blk + "ffn_norm")
        if blk + "ffn_gate_inp.weight" in model.tensors:
            s.update(expert_ffn(model, h, blk, gated, fault))
        else:
            if blk + "ffn_gate.weight" in model.tensors:
                gate, up = linear(h, blk + "ffn_gate"), linear(h, blk + "ffn_up")
            else:
                gate, up = parts(h, blk + "ffn_up", (model.ffn, model.ffn),
                                 (1, 0) if fault == "gate_up_order" else (0, 1))
            s["ffn_gate"], s["ffn_up"], s["ffn_act"] = gate, up, gated(gate) * up
            s["mlp_out"] = linear(s["ffn_act"], blk + "ffn_down")
        h = s["mlp_out"]
        if blk + "post_ffw_norm.weight" in model.tensors:
            h = s["mlp_post_norm"] = norm(h, blk + "post_ffw_norm", fault == "mlp_post_norm")
        x = s["residual_post_mlp"] = x + h
        out.update({f"layers.{n}.{stage}": value[rows] for stage, value in s.items()})
    x = norm(x, "output_norm")
    out["final_norm"] = x[rows]
    head = None if fault == "tied_head" else model.wide("output.weight")
    logits = x @ (model.wide("token_embd.weight") if head is None else head).T
    if model.final_cap is not None:
        out["logits_pre_cap"] = logits[rows]
        if fault != "final_cap":
            logits = model.final_cap * np.tanh(logits / model.final_cap)
    out["logits"] = logits
    return out
