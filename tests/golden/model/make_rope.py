"""Writes rope.json: rotary frequencies and magnitudes as Hugging Face transformers computes them, in true float64.

    python tests/golden/model/make_rope.py

Versions that made the committed file: transformers 5.24.0, torch 2.15. The names of float32 in torch stand for float64
before transformers is imported, for its rotary functions ask for float32 by name.
"""
import json
import pathlib

import torch

torch.set_default_dtype(torch.float64)
torch.float32 = torch.float = torch.float64
torch.Tensor.float = torch.Tensor.double

from transformers import LlamaConfig  # noqa: E402
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding  # noqa: E402

FLOAT32 = __import__("numpy").float32


def table(head_dim, base, partial=1.0, context=2048, **scaling):
    config = LlamaConfig(
        hidden_size=4 * head_dim, num_attention_heads=4, head_dim=head_dim, max_position_embeddings=context,
        rope_parameters={"rope_type": "default", "rope_theta": base, "partial_rotary_factor": partial, **scaling})
    rotary = LlamaRotaryEmbedding(config)
    assert rotary.inv_freq.dtype == torch.float64
    assert len(rotary.inv_freq) == int(head_dim * partial) // 2
    return [float(f) for f in rotary.inv_freq], float(rotary.attention_scaling)


def case(name, head_dim, base, partial=1.0, context=2048, file_attn_factor=None, **scaling):
    inv_freq, magnitude = table(head_dim, base, partial, context, **scaling)
    out = {"name": name, "dims": int(head_dim * partial), "base": base, "scaling": scaling.get("rope_type", "none"),
           "factor": scaling.get("factor", 1.0), "inv_freq": inv_freq, "magnitude": magnitude}
    if out["scaling"] == "yarn":
        out["original_context"] = scaling["original_max_position_embeddings"]
        for key in ("beta_fast", "beta_slow"):
            if key in scaling:
                out[key] = scaling[key]
    if file_attn_factor is not None:  # GGUF's factor multiplies YaRN's own; transformers' replaces it
        out["attn_factor"] = file_attn_factor
        out["magnitude"] = magnitude * file_attn_factor
    return out


def llama3(name, head_dim, base, factor, low, high, original):
    """The file's form of this scaling is one float32 divisor a pair. What is exact is a division by those; transformers'
    own table differs from it by the divisors' rounding, which is asserted."""
    scaled, magnitude = table(head_dim, base, rope_type="llama3", factor=factor, low_freq_factor=low,
                              high_freq_factor=high, original_max_position_embeddings=original, context=131072)
    plain, _ = table(head_dim, base)
    factors = [float(FLOAT32(p / s)) for p, s in zip(plain, scaled)]
    inv_freq = [p / f for p, f in zip(plain, factors)]
    assert all(abs(a - b) <= 6e-8 * b for a, b in zip(inv_freq, scaled))
    assert len(set(factors)) > 3
    return {"name": name, "dims": head_dim, "base": base, "scaling": "none", "factor": 1.0, "factors": factors,
            "inv_freq": inv_freq, "magnitude": magnitude}


def yarn(factor, original, **more):
    return {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original,
            "context": int(factor * original), **more}


CASES = [
    case("llama", 128, 10000.0),
    case("smollm2", 64, 100000.0),
    case("base 1e6", 80, 1000000.0),
    case("six dimensions", 6, 10000.0),
    case("72 dimensions", 72, 500000.0),
    case("linear 4", 64, 10000.0, rope_type="linear", factor=4.0),
    case("linear 2.5", 100, 123456.75, rope_type="linear", factor=2.5),
    case("yarn 4 of 4096", 128, 10000.0, **yarn(4.0, 4096)),
    case("yarn 16 of 4096", 64, 10000.0, **yarn(16.0, 4096)),
    case("yarn 2.5 of 1024, betas", 96, 1000000.0, **yarn(2.5, 1024, beta_fast=16.0, beta_slow=2.0)),
    case("yarn, partial", 128, 150000.0, partial=0.5, **yarn(32.0, 8192)),
    case("yarn, attention factor", 64, 10000.0, file_attn_factor=0.75, **yarn(4.0, 2048)),
    case("yarn, short original context", 16, 10000.0, **yarn(4.0, 64)),
    llama3("llama 3.1", 128, 500000.0, 8.0, 1.0, 4.0, 8192),
    llama3("llama 3.2", 64, 500000.0, 32.0, 1.0, 4.0, 8192),
]

if __name__ == "__main__":
    path = pathlib.Path(__file__).with_name("rope.json")
    path.write_text(json.dumps(CASES, indent=1) + "\n")
