#!/usr/bin/env python3
"""Records a trace of Hugging Face transformers on the weights of a GGUF file, for `greta bisect --b trace=FILE`.

    python tools/trace_hf.py MODEL.gguf -o run.safetensors --token-ids 1,5,7 --max-tokens 5
    python tools/trace_hf.py MODEL.gguf -o run.safetensors --prompt "Hi" --greta build/release/greta

Every stage of the chosen layers at every position, elements in the row order of the file's tensors. float64 is true
float64 (tests/golden/README.md), with eager attention; float32 is transformers as it ships, its default attention.
The prompt is one call, each greedy token another, with a cache; the last greedy token is not fed.

Architectures: those of golden_numpy.py. phi3's longrope takes the long factors where --context (by default the
file's) is more than the file's original context, whatever the length of the text, as greta does (transformers by itself
goes by the text).

Before anything is written all stages are compared with a plain numpy float64 pass over the file: they must agree
within 1e-11 of each row's largest value in float64 (Gemma 3 270M on 620 random tokens: 1.4e-12; the small goldens stay
a hundredfold below). In float32 the limit is 1e-3, which sees a wrong layout and no rounding: judging float32 is what the
trace is for. Experts are computed one by one, in both.

--prompt and --prompt-file are tokenised by `greta tokenize` (transformers' own reading of a GGUF's tokenizer is not to
be relied on), so they need the greta program; --token-ids needs none.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys

import golden_hf
import golden_lib as lib
from golden_numpy import GEMMA3_LOCAL_BASE, GgufModel, numpy_forward

LIMITS = {"float64": 1e-11, "float32": 1e-3}
# What the two passes heed or may leave unread. Any other key of the architecture could change the arithmetic.
KEYS = {
    "vocab_size", "context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count",
    "attention.head_count_kv", "attention.key_length", "attention.value_length", "attention.layer_norm_rms_epsilon",
    "rope.dimension_count", "rope.freq_base", "rope.scaling.type", "rope.scaling.factor", "rope.scaling.finetuned",
    "rope.scaling.original_context_length", "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow",
    "rope.scaling.attn_factor",
}
WINDOWS = {"attention.sliding_window"}
EXPERTS = {"expert_count", "expert_used_count", "expert_weights_norm"}
OWN_KEYS = {
    "llama": EXPERTS, "qwen3moe": {*EXPERTS, "expert_feed_forward_length"}, "phi3": WINDOWS,
    "gemma2": {*WINDOWS, "attn_logit_softcapping", "final_logit_softcapping"},
    "gemma3": {*WINDOWS, "final_logit_softcapping", "rope.freq_base_swa"},
}


def numbers(text):
    """"1,5,7" as a list."""
    if not all(part.isascii() and part.isdigit() for part in text.split(",")):
        raise argparse.ArgumentTypeError(f"expected numbers with commas between them, got '{text}'")
    return [int(part) for part in text.split(",")]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL.gguf")
    parser.add_argument("-o", "--output", required=True, metavar="FILE")
    prompt = parser.add_mutually_exclusive_group(required=True)
    prompt.add_argument("--prompt", metavar="TEXT", help="tokenised by greta tokenize (see --greta)")
    prompt.add_argument("--prompt-file", metavar="FILE", help="the same; the bytes as they are")
    prompt.add_argument("--token-ids", type=numbers, metavar="1,5,7", help="fed as they are: nothing is added")
    parser.add_argument("--max-tokens", type=int, default=0, metavar="N", help="greedy tokens (default 0)")
    parser.add_argument("--layers", type=numbers, metavar="0,1,2", help="layers to record (default all)")
    parser.add_argument("--context", type=int, metavar="N",
                        help="the context that decides between long and short factors (default: the file's)")
    parser.add_argument("--dtype", choices=LIMITS, default="float64")
    parser.add_argument("--greta", default="build/release/greta", metavar="PATH",
                        help="the program that tokenises --prompt and --prompt-file (default %(default)s)")
    return parser.parse_args()


def options_text(args):
    """The options that shaped the trace, without folders of this machine."""
    words = []
    for name in ("prompt", "prompt_file", "token_ids", "max_tokens", "layers", "context", "dtype"):
        value = getattr(args, name)
        if value is not None:
            value = ",".join(map(str, value)) if isinstance(value, list) else str(value)
            words += ["--" + name.replace("_", "-"), os.path.basename(value) if name == "prompt_file" else value]
    return shlex.join(words)


def prompt_ids(args):
    if args.token_ids is not None:
        return args.token_ids
    if not os.path.isfile(args.greta):
        raise ValueError(f"--greta: there is no program {args.greta}; build it, name another, or give --token-ids")
    option = f"--prompt-file={args.prompt_file}" if args.prompt is None else f"--prompt={args.prompt}"
    result = subprocess.run([args.greta, "tokenize", args.model, "--json", option], capture_output=True, text=True)
    if result.returncode != 0:
        raise ValueError(f"{args.greta} tokenize failed: {result.stderr.strip()}")
    return json.loads(result.stdout)["ids"]


def check_request(model, args, ids):
    known = {f"{model.arch}.{key}" for key in KEYS | OWN_KEYS.get(model.arch, set())}
    unknown = sorted(key for key in model.meta if key.startswith(model.arch + ".") and key not in known)
    if unknown:
        raise ValueError(f"{args.model}: this script does not know what to do with {', '.join(unknown)}")
    vocab = len(model.tensors["token_embd.weight"])
    if not ids or max(ids) >= vocab:
        raise ValueError(f"token ids: expected at least one, each below {vocab}, got {ids}")
    if args.layers is not None and max(args.layers) >= model.layers:
        raise ValueError(f"--layers: expected numbers below {model.layers}, got {args.layers}")
    if model.arch in ("gemma2", "gemma3") and model.layers == {"gemma2": 46, "gemma3": 62}[model.arch]:
        raise ValueError(f"{args.model}: this script scales attention by head_dim; {model.arch} 27B does not")
    if args.context is not None and not args.context >= len(ids) + args.max_tokens:
        raise ValueError(f"--context: expected {len(ids) + args.max_tokens} or more, got {args.context}")
    if args.max_tokens < 0:
        raise ValueError(f"--max-tokens: expected 0 or more, got {args.max_tokens}")


def rope_parameters(model):
    """transformers' parameters from the file's keys (of gemma3's layers that see everything)."""
    out = {"rope_theta": float(model.base), "rope_type": model.get("rope.scaling.type", "none")}
    if out["rope_type"] not in ("none", "linear", "yarn"):
        raise ValueError(f"rope scaling: expected none, linear or yarn, got {out['rope_type']}")
    if out["rope_type"] == "none":
        out["rope_type"] = "default"
    else:
        out["factor"] = float(model.get("rope.scaling.factor"))
    if out["rope_type"] == "yarn":
        out["original_max_position_embeddings"] = model.get("rope.scaling.original_context_length")
        for key, name in (("yarn_beta_fast", "beta_fast"), ("yarn_beta_slow", "beta_slow"),
                          ("attn_factor", "attn_factor")):
            if (value := model.get("rope.scaling." + key, None)) is not None:
                out[name] = float(value)
    if "rope_factors_long.weight" in model.tensors:
        out.update(rope_type="longrope", original_max_position_embeddings=model.rope_original_context(),
                   attn_factor=float(model.get("rope.scaling.attn_factor", 1.0)),
                   **{kind + "_factor": [float(f) for f in model.tensors[f"rope_factors_{kind}.weight"]]
                      for kind in ("long", "short")})
    return out


def facts_of(model):
    """The model by the file's keys alone."""
    return golden_hf.Facts(
        arch=model.arch, vocab=model.vocab, dim=model.dim, layers=model.layers, heads=model.heads,
        kv_heads=model.kv_heads, head_dim=model.head_dim, ffn=model.get("expert_feed_forward_length", model.ffn),
        context=model.get("context_length"), eps=float(model.eps), tied=model.tied, rope=rope_parameters(model),
        rotary=model.rotary, local_base=float(model.get("rope.freq_base_swa", GEMMA3_LOCAL_BASE)), window=model.window,
        attn_cap=model.attn_cap, final_cap=model.final_cap, experts=model.experts, used=model.used,
        norm_experts=model.norm_experts)


def hf_model(torch, transformers, model, dtype):
    hf = golden_hf.build(torch, transformers, facts_of(model), model.tensors, "eager" if dtype == "float64" else None)
    rotary = hf.model.rotary_emb
    if "rope_freqs.weight" in model.tensors:
        rotary.inv_freq.div_(torch.tensor(model.tensors["rope_freqs.weight"]))
    if "rope_factors_long.weight" in model.tensors:  # one set for the whole run
        original = model.rope_original_context()
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        chosen, _ = ROPE_INIT_FUNCTIONS["longrope"](
            hf.config, None, seq_len=original + (1 if model.takes_long_factors() else 0))
        rotary.original_inv_freq.copy_(chosen)
        rotary.long_inv_freq = chosen
    lib.assert_dtype(hf, dtype)
    return hf


def record(args):
    model, ids = GgufModel(args.model), prompt_ids(args)
    check_request(model, args, ids)
    model.context = args.context or model.context
    torch, transformers = (lib.import_in_float64 if args.dtype == "float64" else lib.import_as_shipped)()
    hf = hf_model(torch, transformers, model, args.dtype)
    stages, fed, produced = golden_hf.record_greedy(
        torch, transformers, hf, model, ids, args.max_tokens, dtype=args.dtype)
    error, where = lib.cross_check(stages, numpy_forward(model, fed), LIMITS[args.dtype])

    layers = range(model.layers) if args.layers is None else sorted(set(args.layers))
    kept = {name: stages[name] for name in lib.stage_order(layers, stages)}
    metadata = {
        "schema": "greta-trace-1", "producer": "tools/trace_hf.py", "device": "transformers", "arithmetic": args.dtype,
        "model_file": os.path.basename(args.model), "model_sha256": lib.sha256_of(args.model),
        "oracle": type(hf).__name__, "attention": hf.config._attn_implementation, "prompt_tokens": str(len(ids)),
        "generated_ids": json.dumps(produced), "options": options_text(args),
        **{"version_" + name: text for name, text in lib.versions(torch, transformers).items()},
    }
    lib.write_safetensors(args.output, lib.trace_tensors(fed, range(len(fed)), kept, args.dtype), metadata)
    print(f"{args.output}: {len(fed)} positions, {len(layers)} layers, {len(kept)} stages, "
          f"{os.path.getsize(args.output)} bytes; greedy tokens {produced}")
    print(f"transformers ({args.dtype}) and numpy (float64): {len(stages)} stages compared, "
          f"{sum(rows.size for rows in stages.values())} values, worst row error {error:.3g} ({where})")


def main():
    args = arguments()
    try:
        record(args)
    except (ValueError, OSError) as error:
        sys.exit(f"trace_hf.py: {error}")
    except AssertionError as error:
        sys.exit(f"trace_hf.py: the self-check failed, nothing was written: {error}")


if __name__ == "__main__":
    main()
