"""What the golden scripts share: true float64 under transformers, a plain numpy forward pass, file writing.

`numpy_forward` reads nothing but a GGUF file, so it checks the file as well as the other implementation; every sum is
in float64. `hf_llama` and `hf_glm` make the transformers model of such a file's tensors, `record` runs it and takes each
stage where the model itself computes it.

A note on names: a *stage* is what docs and traces call by `embed_out`, `layers.<n>.<stage>`, `final_norm`, `logits`;
one row per token, elements in the row order of the GGUF's tensors (adjacent rotary pairs).
"""

import hashlib
import json
import math
import sys

import numpy as np
import gguf

# Per layer, in the order of computation.
STAGES = (
    "residual_pre_attn", "attn_norm", "q_pre_rope", "k_pre_rope", "v", "q_post_rope", "k_post_rope", "attn_out",
    "attn_proj", "residual_post_attn", "ffn_norm", "ffn_gate", "ffn_up", "ffn_act", "mlp_out", "residual_post_mlp",
)

# Where `record` takes each stage from; written into every golden's metadata.
STAGE_SOURCES = {
    "embed_out, residual_pre_attn": "transformers: input of each decoder layer",
    "attn_norm, ffn_norm, final_norm": "transformers: output of the norm module",
    "q_pre_rope, k_pre_rope, v, attn_proj, ffn_gate, ffn_up, mlp_out": "transformers: output of the projection",
    "q_post_rope, k_post_rope": "transformers: output of apply_rotary_pos_emb",
    "attn_out": "transformers: input of o_proj",
    "residual_post_attn": "transformers: input of post_attention_layernorm",
    "ffn_act": "transformers: input of down_proj",
    "residual_post_mlp": "transformers: output of each decoder layer",
    "logits": "transformers: the model's logits",
}


def import_in_float64(threads=2):
    """Imports torch and transformers so that whatever transformers calls float32 is float64.

    A transformers model after `.double()` still takes norms, softmax and rotary angles through float32, because its
    code names torch.float32 outright. So the name is bent before its modules are read.
    """
    if "transformers" in sys.modules:
        raise RuntimeError("transformers was imported before its float32 could be replaced")
    import torch

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    torch.set_default_dtype(torch.float64)
    torch.float32 = torch.float64
    torch.float = torch.float64
    torch.Tensor.float = torch.Tensor.double
    import transformers

    transformers.logging.set_verbosity_error()
    return torch, transformers


def import_as_shipped(threads=2):
    """Imports torch and transformers as they are: a model made then is float32 throughout."""
    import torch

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    import transformers

    transformers.logging.set_verbosity_error()
    return torch, transformers


def assert_dtype(model, dtype):
    """Every parameter and every buffer of the model must be of `dtype`, such as "float64".

    (A string, because torch.float32 itself may have been renamed.)
    """
    names = 0
    for kind in (model.named_parameters, model.named_buffers):
        for name, tensor in kind():
            if str(tensor.dtype) != "torch." + dtype:
                raise AssertionError(f"{name}: expected {dtype}, got {tensor.dtype}")
            names += 1
    if names == 0:
        raise AssertionError("the model has no parameters")


def sha256_of(path):
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while chunk := f.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def versions(torch, transformers):
    return {
        "transformers": transformers.__version__,
        "torch": torch.__version__.split("+")[0],
        "numpy": np.__version__,
        "gguf": gguf_version(),
    }


def gguf_version():
    from importlib.metadata import version

    return version("gguf")


def write_safetensors(path, tensors, metadata):
    """The same arrays give the same bytes (the safetensors package orders its metadata at random)."""
    names = {"float64": "F64", "float32": "F32", "int32": "I32"}
    header, offset, parts = {"__metadata__": {k: metadata[k] for k in sorted(metadata)}}, 0, []
    for name, array in tensors.items():
        array = np.ascontiguousarray(array)
        if not np.isfinite(array).all():
            raise AssertionError(f"{name}: not finite")
        header[name] = {
            "dtype": names[array.dtype.name], "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
        parts.append(array.tobytes())
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text + b"".join(parts))


def trace_tensors(ids, positions, stages, dtype="float64"):
    """The layout of a trace of one sequence: stages maps a name to rows for exactly `positions`."""
    tensors = {
        "token_ids": np.array(ids, np.int32),
        "sequence_offsets": np.array([0, len(ids)], np.int32),
        "sequence": np.zeros(len(positions), np.int32),
        "positions": np.array(positions, np.int32),
    }
    for name, rows in stages.items():
        if rows.shape[0] != len(positions) or rows.dtype.name != dtype:
            raise AssertionError(f"{name}: expected {len(positions)} {dtype} rows, got {rows.shape} {rows.dtype}")
        tensors[name] = rows
    return tensors


def row_error(got, want):
    """The largest |got - want| of each row relative to the row's largest |want|; the worst row. NaN stays NaN."""
    scale = np.abs(want).max(axis=1, keepdims=True)
    return float((np.abs(got - want) / np.where(scale == 0, 1.0, scale)).max())


# --- GGUF's row order against transformers' ---


def to_half_split(array, heads):
    """Rows (first axis) of q or k from adjacent rotary pairs to first half and second half of each head."""
    width = array.shape[0] // heads
    split = array.reshape(heads, width // 2, 2, *array.shape[1:])
    return np.ascontiguousarray(split.swapaxes(1, 2).reshape(array.shape))


def to_adjacent(rows, heads):
    """[tokens, heads * width] from half-split order to adjacent pairs: the inverse, along the last axis."""
    tokens, total = rows.shape
    split = rows.reshape(tokens, heads, 2, total // heads // 2)
    return np.ascontiguousarray(split.swapaxes(2, 3).reshape(tokens, total))


# --- the plain forward pass ---


class GgufModel:
    """Metadata and dequantised tensors of a GGUF of architecture llama."""

    def __init__(self, path):
        reader = gguf.GGUFReader(path)
        self.meta = {name: field.contents() for name, field in reader.fields.items()}
        if self.meta["general.architecture"] != "llama":
            raise ValueError(f"{path}: expected architecture llama, got {self.meta['general.architecture']}")
        self.tensors = {}
        for tensor in reader.tensors:
            data = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            shape = tuple(int(n) for n in reversed(tensor.shape))
            self.tensors[tensor.name] = np.ascontiguousarray(data).reshape(shape)  # float32, [rows, columns]
        self.dim = self.get("embedding_length")
        self.layers = self.get("block_count")
        self.heads = self.get("attention.head_count")
        self.kv_heads = self.get("attention.head_count_kv", self.heads)
        self.head_dim = self.get("attention.key_length", self.dim // self.heads)
        self.rotary = self.get("rope.dimension_count", self.head_dim)
        self.base = self.get("rope.freq_base", 10000.0)
        self.eps = self.get("attention.layer_norm_rms_epsilon")
        if self.get("attention.value_length", self.head_dim) != self.head_dim:
            raise ValueError(f"{path}: this pass expects value_length equal to key_length")

    def get(self, key, *default):
        if not default and "llama." + key not in self.meta:
            raise ValueError(f"the file has no llama.{key}")
        return self.meta.get("llama." + key, *default)

    def wide(self, name):
        """A tensor in float64, or None where the file has none."""
        tensor = self.tensors.get(name)
        return None if tensor is None else tensor.astype(np.float64)


def rope_table(model, fault=""):
    """(radians per position [rotary / 2], factor on cos and sin), both float64."""
    half = model.rotary // 2
    if fault == "full_rotary":
        half = model.head_dim // 2
    base = 10000.0 if fault == "rope_base" else float(model.base)
    inv = np.array([math.pow(base, -i / half) for i in range(half)])
    freqs = model.wide("rope_freqs.weight")
    if freqs is not None and fault != "rope_freqs":
        inv = inv / freqs
    kind = model.get("rope.scaling.type", "none")
    factor = float(model.get("rope.scaling.factor", 1.0))
    if kind == "none" or fault == "rope_scaling":
        return inv, 1.0
    if kind == "linear":
        return inv / factor, 1.0
    if kind != "yarn":
        raise ValueError(f"rope scaling: expected none, linear or yarn, got {kind}")
    # A pair turns `context * inv / 2 pi` times over the original context: more than beta_fast turns, leave it alone;
    # fewer than beta_slow, stretch it; the ramp between is linear in the pair's number, its ends rounded outwards.
    context = model.get("rope.scaling.original_context_length")
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


def rotate(rows, heads, positions, table, half_split=False):
    """Adjacent pairs of the first dimensions of each head, turned by position * radians; the rest passes."""
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
    return rows / np.sqrt((rows * rows).mean(axis=1, keepdims=True) + eps) * weight


def attend(q, k, v, heads, kv_heads, scale, fault=""):
    """Causal softmax attention; head h reads key and value head h // (heads / kv_heads)."""
    tokens = len(q)
    q, k, v = (a.reshape(tokens, -1, a.shape[1] // n) for a, n in ((q, heads), (k, kv_heads), (v, kv_heads)))
    hidden = np.triu(np.ones((tokens, tokens), bool), 1)
    out = np.empty_like(q)
    for h in range(heads):
        kv = h % kv_heads if fault == "kv_head_order" else h // (heads // kv_heads)
        scores = q[:, h] @ k[:, kv].T * scale
        if fault != "causal":
            scores[hidden] = -np.inf
        p = np.exp(scores - scores.max(axis=1, keepdims=True))
        out[:, h] = p / p.sum(axis=1, keepdims=True) @ v[:, kv]
    return out.reshape(tokens, -1)


def numpy_forward(model, ids, fault="", rows=slice(None)):
    """Every stage, {name: [tokens, width]}: of the chosen rows; logits of every row.

    `fault` plants one mistake, to see that it is noticed.
    """
    eps = 1e-6 if fault == "eps" else float(model.eps)
    positions = np.arange(len(ids), dtype=np.float64)
    table = rope_table(model, fault)
    half_split = fault == "rope_pairs"
    head_dim = model.dim // model.heads if fault == "head_dim_scale" else model.head_dim
    out = {}

    def linear(x, name):
        weight, bias = model.wide(name + ".weight"), model.wide(name + ".bias")
        y = x @ weight.T
        return y if bias is None or fault == "bias:" + name.split(".")[-1] else y + bias

    x = model.wide("token_embd.weight")[np.array(ids)]
    out["embed_out"] = x[rows]
    for n in range(model.layers):
        blk = f"blk.{n}."
        s = {"residual_pre_attn": x}
        s["attn_norm"] = rms_norm(x, model.wide(blk + "attn_norm.weight"), eps)
        s["q_pre_rope"] = linear(s["attn_norm"], blk + "attn_q")
        s["k_pre_rope"] = linear(s["attn_norm"], blk + "attn_k")
        s["v"] = linear(s["attn_norm"], blk + "attn_v")
        s["q_post_rope"] = rotate(s["q_pre_rope"], model.heads, positions, table, half_split)
        s["k_post_rope"] = rotate(s["k_pre_rope"], model.kv_heads, positions, table, half_split)
        s["attn_out"] = attend(
            s["q_post_rope"], s["k_post_rope"], s["v"], model.heads, model.kv_heads, 1 / math.sqrt(head_dim), fault)
        s["attn_proj"] = linear(s["attn_out"], blk + "attn_output")
        x = s["residual_post_attn"] = x + s["attn_proj"]
        s["ffn_norm"] = rms_norm(x, model.wide(blk + "ffn_norm.weight"), eps)
        gate, up = linear(s["ffn_norm"], blk + "ffn_gate"), linear(s["ffn_norm"], blk + "ffn_up")
        s["ffn_gate"], s["ffn_up"], s["ffn_act"] = gate, up, gate / (1 + np.exp(-gate)) * up
        s["mlp_out"] = linear(s["ffn_act"], blk + "ffn_down")
        x = s["residual_post_mlp"] = x + s["mlp_out"]
        out.update({f"layers.{n}.{stage}": s[stage][rows] for stage in STAGES})
    x = rms_norm(x, model.wide("output_norm.weight"), eps)
    out["final_norm"] = x[rows]
    head = None if fault == "tied_head" else model.wide("output.weight")
    out["logits"] = x @ (model.wide("token_embd.weight") if head is None else head).T
    return out


# --- the transformers model ---


HF_NAMES = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
            "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
            "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
            "token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def hf_name(name):
    """blk.3.attn_q.weight -> model.layers.3.self_attn.q_proj.weight"""
    *block, part, suffix = name.split(".")
    if part not in HF_NAMES:
        raise ValueError(f"tensor {name}: transformers' llama has no place for it")
    return (f"model.layers.{block[1]}." if block else "") + f"{HF_NAMES[part]}.{suffix}"


def hf_llama(torch, transformers, config, tensors, attention="eager"):
    """LlamaForCausalLM in torch's default type. tensors: float32 arrays in GGUF's names and row order; any
    rope_freqs.weight is left to the caller. config: what LlamaConfig takes; rope_parameters with GGUF's attn_factor.
    """
    rope = dict(config["rope_parameters"])
    if "attn_factor" in rope:  # the file's key multiplies YaRN's own factor, transformers' takes its place
        rope["attention_factor"] = rope.pop("attn_factor") * (0.1 * math.log(rope["factor"]) + 1.0)

    def any_bias(*parts):
        return any(name.split(".")[-2:] == [part, "bias"] for name in tensors for part in parts)

    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{
        **config, "rope_parameters": rope, "attn_implementation": attention,
        "attention_bias": any_bias("attn_q", "attn_k", "attn_v", "attn_output"),
        "mlp_bias": any_bias("ffn_gate", "ffn_up", "ffn_down")})).eval()
    state = {name: torch.zeros_like(p) for name, p in model.named_parameters() if name.endswith(".bias")}
    for name, array in tensors.items():
        if name == "rope_freqs.weight":
            continue
        if ".attn_q." in name or ".attn_k." in name:
            heads = config["num_attention_heads" if ".attn_q." in name else "num_key_value_heads"]
            array = to_half_split(array, heads)
        state[hf_name(name)] = torch.tensor(array)
    if config["tie_word_embeddings"]:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state, strict=True)
    return model


def hf_glm(torch, transformers, config, tensors, attention="eager"):
    """GlmForCausalLM: the same arithmetic as a llama with partial rotary, which transformers' own llama cannot do.

    Its rotary pairs are adjacent, as GGUF's are, so no row moves; gate and up are one matrix.
    """
    if "rope_freqs.weight" in tensors or config["rope_parameters"]["rope_type"] != "default" or any(
            name.endswith(".bias") for name in tensors):
        raise ValueError("partial rotary: no biases and no rope scaling in this oracle")
    model = transformers.GlmForCausalLM(transformers.GlmConfig(**{
        **config, "attention_bias": False, "pad_token_id": 0, "attn_implementation": attention})).eval()
    state = {hf_name(name): torch.tensor(array) for name, array in tensors.items()}
    for n in range(config["num_hidden_layers"]):
        at = f"model.layers.{n}.mlp."
        state[at + "gate_up_proj.weight"] = torch.cat(
            [state.pop(at + "gate_proj.weight"), state.pop(at + "up_proj.weight")])
    if config["tie_word_embeddings"]:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state, strict=True)
    rotary = config["head_dim"] * config["rope_parameters"]["partial_rotary_factor"]
    if model.model.rotary_emb.inv_freq.shape[0] != rotary // 2:
        raise AssertionError("glm took another number of rotary dimensions")
    return model


def record(torch, model, ids, heads, kv_heads, half_split, chosen=slice(None), dtype="float64", cache=None):
    """Every stage from one forward pass of a transformers model (LlamaForCausalLM, GlmForCausalLM).

    Of the chosen rows; logits of every row. With a cache, ids follow the tokens that are in it.
    """
    out, handles, rotated = {}, [], []

    def keep(name, tensor, permuted_heads=0):
        if str(tensor.dtype) != "torch." + dtype or tensor.shape[0] != 1:
            raise AssertionError(f"{name}: expected one {dtype} sequence, got {tuple(tensor.shape)} {tensor.dtype}")
        rows = tensor[0].numpy()
        rows = rows if name == "logits" else rows[chosen].copy()
        out[name] = to_adjacent(rows, permuted_heads) if permuted_heads and half_split else rows

    def on_output(module, name, permuted_heads=0):
        handles.append(module.register_forward_hook(
            lambda _, args, result: keep(name, result if torch.is_tensor(result) else result[0], permuted_heads)))

    def on_input(module, name):
        handles.append(module.register_forward_pre_hook(lambda _, args: keep(name, args[0])))

    on_output(model.model.embed_tokens, "embed_out")
    on_output(model.model.norm, "final_norm")
    for n, layer in enumerate(model.model.layers):
        at, attn, mlp = f"layers.{n}.", layer.self_attn, layer.mlp
        on_input(layer, at + "residual_pre_attn")
        on_output(layer.input_layernorm, at + "attn_norm")
        on_output(attn.q_proj, at + "q_pre_rope", heads)
        on_output(attn.k_proj, at + "k_pre_rope", kv_heads)
        on_output(attn.v_proj, at + "v")
        on_input(attn.o_proj, at + "attn_out")
        on_output(attn.o_proj, at + "attn_proj")
        on_input(layer.post_attention_layernorm, at + "residual_post_attn")
        on_output(layer.post_attention_layernorm, at + "ffn_norm")
        if hasattr(mlp, "gate_up_proj"):
            on_output(mlp.gate_up_proj, at + "ffn_gate_up")
        else:
            on_output(mlp.gate_proj, at + "ffn_gate")
            on_output(mlp.up_proj, at + "ffn_up")
        on_input(mlp.down_proj, at + "ffn_act")
        on_output(mlp.down_proj, at + "mlp_out")
        on_output(layer, at + "residual_post_mlp")

    module = sys.modules[type(model).__module__]
    original = module.apply_rotary_pos_emb

    def recording(*args, **kwargs):
        result = original(*args, **kwargs)
        rotated.append([t.transpose(1, 2).flatten(2) for t in result[:2]])
        return result

    module.apply_rotary_pos_emb = recording
    try:
        logits = model(input_ids=torch.tensor([list(ids)]), cache=cache, use_cache=cache is not None).logits
    finally:
        module.apply_rotary_pos_emb = original
        for handle in handles:
            handle.remove()
    keep("logits", logits)
    if len(rotated) != len(model.model.layers):
        raise AssertionError(f"expected {len(model.model.layers)} rotations, saw {len(rotated)}")
    for n, (q, k) in enumerate(rotated):
        keep(f"layers.{n}.q_post_rope", q, heads)
        keep(f"layers.{n}.k_post_rope", k, kv_heads)
        both = out.pop(f"layers.{n}.ffn_gate_up", None)
        if both is not None:
            out[f"layers.{n}.ffn_gate"], out[f"layers.{n}.ffn_up"] = np.split(both, 2, axis=1)
    return out


def record_greedy(torch, transformers, model, ids, steps, *how, dtype):
    """As record, over a prompt in one call and then over greedy tokens, one a call, with a cache; ties to the lower id.

    Returns (stages of all tokens fed, the tokens fed, the `steps` greedy tokens); the last of these is not fed.
    """
    cache = transformers.DynamicCache(config=model.config)
    calls, produced = [record(torch, model, ids, *how, dtype=dtype, cache=cache)], []
    while len(produced) < steps:
        if produced:
            calls.append(record(torch, model, produced[-1:], *how, dtype=dtype, cache=cache))
        produced.append(int(calls[-1]["logits"][-1].argmax()))  # numpy's argmax: the first of equals
    fed = [*ids, *produced[:-1]]
    if cache.get_seq_length() != len(fed):
        raise AssertionError(f"the cache holds {cache.get_seq_length()} tokens, {len(fed)} were fed")
    return {name: np.concatenate([call[name] for call in calls]) for name in calls[0]}, fed, produced


def cross_check(hf, plain, limit=1e-12):
    """The worst relative row error over all stages, which must be the same set on both sides."""
    if set(hf) != set(plain):
        raise AssertionError(f"stages differ: {sorted(set(hf) ^ set(plain))}")
    worst, where = 0.0, ""
    for name, want in plain.items():
        if hf[name].shape != want.shape:
            raise AssertionError(f"{name}: {hf[name].shape} against {want.shape}")
        error = row_error(hf[name], want)
        if not error <= limit:
            raise AssertionError(f"{name}: transformers and numpy differ by {error:.3g} of the row's largest value")
        if error >= worst:
            worst, where = error, name
    return worst, where


def stage_order(layers):
    return ["embed_out", *(f"layers.{n}.{s}" for n in layers for s in STAGES), "final_norm", "logits"]
