"""transformers models made from a GGUF's tensors, and every stage of their forward pass.

`Facts` says what a model is in words that both a table of shapes and a file's keys can fill; `build` makes the model of
it; `record` runs it and takes each stage where the model itself computes it. Only llama's q and k rows change places:
its GGUFs hold adjacent rotary pairs, transformers has the first half of each head against the second everywhere.
"""

import math
import sys
from dataclasses import dataclass, field

import numpy as np

# Where `record` takes each stage from; written into every golden's metadata.
STAGE_SOURCES = {
    "embed_out, residual_pre_attn": "transformers: output of the embedding (scaled), input of each decoder layer",
    "attn_norm, attn_post_norm, ffn_norm, mlp_post_norm, final_norm": "transformers: output of the norm module",
    "q_proj, k_proj, v, attn_proj, ffn_gate, ffn_up, mlp_out": "transformers: output of the projection or of the mlp",
    "q_pre_rope, k_pre_rope": "transformers: input of apply_rotary_pos_emb",
    "q_post_rope, k_post_rope": "transformers: output of apply_rotary_pos_emb",
    "attn_out": "transformers: input of o_proj",
    "residual_post_attn": "transformers: input of the norm or mlp that follows",
    "ffn_act": "transformers: input of down_proj",
    "router_logits, experts, expert_weights": "transformers: output of the router",
    "expert_gate, expert_up, expert_act, expert_out": "transformers: each expert's matrix products",
    "residual_post_mlp": "transformers: output of each decoder layer",
    "logits_pre_cap, logits": "transformers: output of lm_head, the model's logits",
}


@dataclass
class Facts:
    """A model as its converter found it; float values are the float32 ones of the file, widened."""

    arch: str
    vocab: int
    dim: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int  # of one expert where there are experts
    context: int
    eps: float
    tied: bool
    rope: dict = field(default_factory=dict)  # transformers' rope parameters, with GGUF's attn_factor
    rotary: int = 0  # dimensions of a head that turn; 0: all
    local_base: float = 0.0  # gemma3's windowed layers
    window: int = 0
    attn_cap: float | None = None
    final_cap: float | None = None
    experts: int = 0
    used: int = 0
    norm_experts: bool = True


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


# --- names ---

NORMS_AFTER = {"post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm"}
QK_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
NAMES = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
         "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
         "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
         "token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
OWN_NAMES = {
    "llama": {"ffn_gate_inp": "mlp.gate"},
    "qwen2": {},
    "qwen3": QK_NORMS,
    "qwen3moe": {**QK_NORMS, "ffn_gate_inp": "mlp.gate"},
    "gemma2": {**NORMS_AFTER, "ffn_norm": "pre_feedforward_layernorm"},
    "gemma3": {**NORMS_AFTER, **QK_NORMS, "ffn_norm": "pre_feedforward_layernorm"},
    "phi3": {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"},
    "olmo2": {**NORMS_AFTER, **QK_NORMS},
}


def hf_name(name, arch="llama"):
    """blk.3.attn_q.weight -> model.layers.3.self_attn.q_proj.weight"""
    *block, part, suffix = name.split(".")
    known = {**NAMES, **OWN_NAMES[arch]}
    if part not in known:
        raise ValueError(f"tensor {name}: transformers' {arch} has no place for it")
    return (f"model.layers.{block[1]}." if block else "") + f"{known[part]}.{suffix}"


# --- the model ---


def rope_parameters(facts):
    """transformers' rope parameters."""
    rope = {"rope_type": "default", **facts.rope}
    if "attn_factor" in rope and rope["rope_type"] == "yarn":
        # the file's key multiplies YaRN's own factor, transformers' takes its place
        rope["attention_factor"] = rope.pop("attn_factor") * (0.1 * math.log(rope["factor"]) + 1.0)
    elif "attn_factor" in rope:
        rope["attention_factor"] = rope.pop("attn_factor")
    if facts.rotary not in (0, facts.head_dim):
        rope["partial_rotary_factor"] = facts.rotary / facts.head_dim
    if facts.arch == "gemma3":
        return {"full_attention": rope, "sliding_attention": {"rope_type": "default", "rope_theta": facts.local_base}}
    return rope


def config_of(facts, tensors):
    """(name of transformers' model class, what its configuration takes)."""
    partial = facts.rotary not in (0, facts.head_dim)
    config = {
        "vocab_size": facts.vocab, "hidden_size": facts.dim, "intermediate_size": facts.ffn,
        "num_hidden_layers": facts.layers, "num_attention_heads": facts.heads, "num_key_value_heads": facts.kv_heads,
        "head_dim": facts.head_dim, "max_position_embeddings": facts.context, "rms_norm_eps": facts.eps,
        "rope_parameters": rope_parameters(facts), "tie_word_embeddings": facts.tied, "pad_token_id": 0}

    def any_bias(*parts):
        return any(name.split(".")[-2:] == [part, "bias"] for name in tensors for part in parts)

    if partial and facts.arch not in ("llama", "phi3"):
        raise ValueError(f"partial rotary: transformers' {facts.arch} turns whole heads only")
    if facts.arch == "llama" and partial:
        # The same arithmetic as a llama with partial rotary, which transformers' own llama cannot do. Its pairs are
        # adjacent, as GGUF's are, so no row moves; gate and up are one matrix.
        scaled = facts.rope.get("rope_type", "default") != "default" or "rope_freqs.weight" in tensors
        if scaled or facts.experts or any(name.endswith(".bias") for name in tensors):
            raise ValueError("partial rotary: no biases, experts or rope scaling in this oracle")
        return "Glm", {**config, "attention_bias": False}
    if facts.arch == "llama" and facts.experts:
        return "Mixtral", {**config, "num_local_experts": facts.experts, "num_experts_per_tok": facts.used}
    if facts.arch == "llama":
        return "Llama", {**config, "attention_bias": any_bias("attn_q", "attn_k", "attn_v", "attn_output"),
                         "mlp_bias": any_bias("ffn_gate", "ffn_up", "ffn_down")}
    if facts.arch == "qwen3moe":
        return "Qwen3Moe", {**config, "num_local_experts": facts.experts, "num_experts_per_tok": facts.used,
                            "moe_intermediate_size": facts.ffn, "norm_topk_prob": facts.norm_experts,
                            "decoder_sparse_step": 1, "mlp_only_layers": []}
    if facts.arch in ("gemma2", "gemma3"):
        every = {"gemma2": 2, "gemma3": 6}[facts.arch]
        return facts.arch.capitalize(), {
            **config, "query_pre_attn_scalar": facts.head_dim, "sliding_window": facts.window,
            "attn_logit_softcapping": facts.attn_cap, "final_logit_softcapping": facts.final_cap,
            "layer_types": ["sliding_attention" if (n + 1) % every else "full_attention" for n in range(facts.layers)]}
    if facts.arch == "phi3":
        return "Phi3", {**config, "sliding_window": facts.window or None, "original_max_position_embeddings":
                        facts.rope.get("original_max_position_embeddings", facts.context)}
    return facts.arch.capitalize(), config


def build(torch, transformers, facts, tensors, attention="eager"):
    """The transformers model in torch's default type. tensors: float32 arrays in GGUF's names and row order; any
    rope_freqs.weight and rope_factors_*.weight are left to the caller."""
    kind, config = config_of(facts, tensors)
    model = getattr(transformers, kind + "ForCausalLM")(getattr(
        transformers, kind + ("TextConfig" if kind == "Gemma3" else "Config"))(
            **config, attn_implementation=attention, **({"experts_implementation": "eager"} if facts.experts else {})))
    model = model.eval()
    state = {name: torch.zeros_like(p) for name, p in model.named_parameters() if name.endswith(".bias")}
    for name, array in tensors.items():
        if name.startswith(("rope_freqs.", "rope_factors_")) or "_exps." in name:
            continue
        if kind in ("Llama", "Mixtral") and (".attn_q." in name or ".attn_k." in name):
            array = to_half_split(array, facts.heads if ".attn_q." in name else facts.kv_heads)
        if kind.startswith("Gemma") and name.endswith("norm.weight"):
            array = array.astype(np.float64) - 1.0  # the file has 1 + w; exact, as is 1 + w again in float64
        state[hf_name(name, facts.arch)] = torch.tensor(array).to(torch.get_default_dtype())
    for n in range(facts.layers):
        at, blk = f"model.layers.{n}.mlp.", f"blk.{n}.ffn_"
        if kind == "Glm":
            state[at + "gate_up_proj.weight"] = torch.cat(
                [state.pop(at + "gate_proj.weight"), state.pop(at + "up_proj.weight")])
        if facts.experts:
            gate, up, down = (torch.tensor(tensors[f"{blk}{part}_exps.weight"]) for part in ("gate", "up", "down"))
            state[at + "experts.gate_up_proj"] = torch.cat([gate, up], dim=1)
            state[at + "experts.down_proj"] = down
    if facts.tied:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state, strict=True)
    check_built(model, kind, facts)
    return model


def check_built(model, kind, facts):
    """What transformers took from the configuration is what was meant."""
    if facts.tied and model.lm_head.weight.data_ptr() != model.model.embed_tokens.weight.data_ptr():
        raise AssertionError("the head is not tied to the embedding")
    scale = getattr(model.model.embed_tokens, "embed_scale", None)
    if kind.startswith("Gemma") and "64" in str(scale.dtype) and float(scale) != math.sqrt(facts.dim):
        raise AssertionError(f"embedding scale {float(scale)!r}, expected {math.sqrt(facts.dim)!r}")
    if kind in ("Glm", "Phi3") and model.model.rotary_emb.inv_freq.shape[0] != (facts.rotary or facts.head_dim) // 2:
        raise AssertionError("transformers took another number of rotary dimensions")
    if facts.experts and model.config._experts_implementation != "eager":
        raise AssertionError("the experts are not computed one by one")


# --- recording ---


class ExpertRecorder:
    """Takes the products of each expert from transformers' own loop over experts, by way of nn.functional.linear."""

    def __init__(self, torch, module, at, used, keep):
        self.torch, self.module, self.at, self.used, self.keep = torch, module, at, used, keep
        self.original, self.calls = None, []

    def router(self, _, args, result):
        """logits, weights and indices of the chosen; here in ascending order of the expert's number."""
        logits, weights, chosen = result
        self.chosen, order = chosen.sort(dim=-1)
        self.keep(self.at + "router_logits", logits[None])
        self.keep(self.at + "experts", self.chosen[None].to(logits.dtype))
        self.keep(self.at + "expert_weights", weights.gather(-1, order)[None])
        self.unsorted = chosen

    def start(self, *_):
        self.original, self.calls = self.torch.nn.functional.linear, []

        def linear(x, weight, bias=None):
            result = self.original(x, weight, bias)
            self.calls.append((x, result))
            return result

        self.torch.nn.functional.linear = linear

    def stop(self, *_):
        self.torch.nn.functional.linear = self.original
        hit = sorted(set(self.chosen.flatten().tolist()))
        if len(self.calls) != 2 * len(hit):
            raise AssertionError(f"expected two products for each of {len(hit)} experts, saw {len(self.calls)}")
        tokens, slots = len(self.chosen), {}
        for n, expert in enumerate(hit):
            _, token = self.torch.where((self.unsorted == expert).T)  # transformers' order of an expert's tokens
            slot = (self.chosen[token] == expert).int().argmax(dim=-1)
            (_, both), (act, down) = self.calls[2 * n:2 * n + 2]
            gate, up = both.chunk(2, dim=-1)
            for name, rows in (("gate", gate), ("up", up), ("act", act), ("out", down)):
                if name not in slots:
                    slots[name] = self.torch.full((tokens, self.used, rows.shape[1]), math.nan, dtype=rows.dtype)
                slots[name][token, slot] = rows
        for name, rows in slots.items():
            self.keep(f"{self.at}expert_{name}", rows.flatten(1)[None])


def record(torch, model, shape, ids, chosen=slice(None), dtype="float64", cache=None):
    """Every stage from one forward pass of a transformers model made by `build`.

    shape: Facts, or anything with its heads, kv_heads and used. Of the chosen rows; logits of every row. With a cache,
    ids follow the tokens that are in it.
    """
    out, handles, rotated = {}, [], []
    half_split = type(model).__name__ in ("LlamaForCausalLM", "MixtralForCausalLM")

    def keep(name, tensor, permuted_heads=0):
        if str(tensor.dtype) != "torch." + dtype or tensor.shape[0] != 1 or tensor.shape[1] != len(ids):
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
    if getattr(model.config, "final_logit_softcapping", None) is not None:
        on_output(model.lm_head, "logits_pre_cap")
    for n, layer in enumerate(model.model.layers):
        at, attn, mlp = f"layers.{n}.", layer.self_attn, layer.mlp
        on_input(layer, at + "residual_pre_attn")
        if hasattr(layer, "input_layernorm"):
            on_output(layer.input_layernorm, at + "attn_norm")
        if hasattr(attn, "q_norm"):
            on_output(attn.q_proj, at + "q_proj")
            on_output(attn.k_proj, at + "k_proj")
        if hasattr(attn, "qkv_proj"):
            on_output(attn.qkv_proj, at + "qkv")
        else:
            on_output(attn.v_proj, at + "v")
        on_input(attn.o_proj, at + "attn_out")
        on_output(attn.o_proj, at + "attn_proj")
        before_mlp = layer.post_attention_layernorm
        if hasattr(layer, "post_feedforward_layernorm"):
            on_output(layer.post_attention_layernorm, at + "attn_post_norm")
            on_output(layer.post_feedforward_layernorm, at + "mlp_post_norm")
            before_mlp = getattr(layer, "pre_feedforward_layernorm", None)
        on_input(before_mlp or mlp, at + "residual_post_attn")
        if before_mlp:
            on_output(before_mlp, at + "ffn_norm")
        on_output(mlp, at + "mlp_out")
        if hasattr(mlp, "experts"):
            experts = ExpertRecorder(torch, mlp.experts, at, shape.used, keep)
            handles.append(mlp.gate.register_forward_hook(experts.router))
            handles.append(mlp.experts.register_forward_pre_hook(experts.start))
            handles.append(mlp.experts.register_forward_hook(experts.stop))
        else:
            if hasattr(mlp, "gate_up_proj"):
                on_output(mlp.gate_up_proj, at + "ffn_gate_up")
            else:
                on_output(mlp.gate_proj, at + "ffn_gate")
                on_output(mlp.up_proj, at + "ffn_up")
            on_input(mlp.down_proj, at + "ffn_act")
        on_output(layer, at + "residual_post_mlp")

    module = sys.modules[type(model).__module__]
    original, linear = module.apply_rotary_pos_emb, torch.nn.functional.linear

    def recording(q, k, *args, **kwargs):
        result = original(q, k, *args, **kwargs)
        rotated.append([t.transpose(1, 2).flatten(2) for t in (q, k, *result[:2])])
        return result

    module.apply_rotary_pos_emb = recording
    try:
        logits = model(input_ids=torch.tensor([list(ids)]), cache=cache, use_cache=cache is not None).logits
    finally:
        module.apply_rotary_pos_emb, torch.nn.functional.linear = original, linear
        for handle in handles:
            handle.remove()
    keep("logits", logits)
    if len(rotated) != len(model.model.layers):
        raise AssertionError(f"expected {len(model.model.layers)} rotations, saw {len(rotated)}")
    for n, around_rope in enumerate(rotated):
        at = f"layers.{n}."
        for name, rows in zip(("q_pre_rope", "k_pre_rope", "q_post_rope", "k_post_rope"), around_rope):
            keep(at + name, rows, shape.heads if name[0] == "q" else shape.kv_heads)
        if (both := out.pop(at + "ffn_gate_up", None)) is not None:
            out[at + "ffn_gate"], out[at + "ffn_up"] = np.split(both, 2, axis=1)
        if (fused := out.pop(at + "qkv", None)) is not None:
            out[at + "v"] = fused[:, -out[at + "k_pre_rope"].shape[1]:]
    return out


def record_greedy(torch, transformers, model, shape, ids, steps, dtype):
    """As record, over a prompt in one call and then over greedy tokens, one a call, with a cache; ties to the lower id.

    Returns (stages of all tokens fed, the tokens fed, the `steps` greedy tokens); the last of these is not fed.
    """
    cache = transformers.DynamicCache(config=model.config)
    calls, produced = [record(torch, model, shape, ids, dtype=dtype, cache=cache)], []
    while len(produced) < steps:
        if produced:
            calls.append(record(torch, model, shape, produced[-1:], dtype=dtype, cache=cache))
        produced.append(int(calls[-1]["logits"][-1].argmax()))  # numpy's argmax: the first of equals
    fed = [*ids, *produced[:-1]]
    if cache.get_seq_length() != len(fed):
        raise AssertionError(f"the cache holds {cache.get_seq_length()} tokens, {len(fed)} were fed")
    return {name: np.concatenate([call[name] for call in calls]) for name in calls[0]}, fed, produced
