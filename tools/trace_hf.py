#!/usr/bin/env python3
"""Records a trace of Hugging Face transformers on the weights of a GGUF file, for `greta bisect --b trace=FILE`.

    python tools/trace_hf.py MODEL.gguf -o run.safetensors --token-ids 1,5,7 --max-tokens 5
    python tools/trace_hf.py MODEL.gguf -o run.safetensors --prompt "Hi" --greta build/release/greta

Every stage of the chosen layers at every position, elements in the row order of the file's tensors. float64 is true
float64 (tests/golden/README.md), with eager attention; float32 is transformers as it ships, its default attention.
The prompt is one call, each greedy token another, with a cache; the last greedy token is not fed.

Before anything is written all stages are compared with a plain numpy float64 pass over the file: they must agree
within 1e-12 of each row's largest value in float64. In float32 the limit is 1e-3, which sees a wrong layout and no
rounding: judging float32 is what the trace is for.

--prompt and --prompt-file are tokenised by `greta tokenize` (transformers' own reading of a GGUF's tokenizer is not to
be relied on), so they need the greta program; --token-ids needs none.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys

import golden_lib as lib

LIMITS = {"float64": 1e-12, "float32": 1e-3}
# What golden_lib heeds or may leave unread. Any other llama.* key could change the arithmetic.
KEYS = {
    "vocab_size", "context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count",
    "attention.head_count_kv", "attention.key_length", "attention.value_length", "attention.layer_norm_rms_epsilon",
    "rope.dimension_count", "rope.freq_base", "rope.scaling.type", "rope.scaling.factor", "rope.scaling.finetuned",
    "rope.scaling.original_context_length", "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow",
    "rope.scaling.attn_factor",
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
    parser.add_argument("--dtype", choices=LIMITS, default="float64")
    parser.add_argument("--greta", default="build/release/greta", metavar="PATH",
                        help="the program that tokenises --prompt and --prompt-file (default %(default)s)")
    return parser.parse_args()


def options_text(args):
    """The options that shaped the trace, without folders of this machine."""
    words = []
    for name in ("prompt", "prompt_file", "token_ids", "max_tokens", "layers", "dtype"):
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
    unknown = sorted(key for key in model.meta if key.startswith("llama.") and key[len("llama."):] not in KEYS)
    if unknown:
        raise ValueError(f"{args.model}: this script does not know what to do with {', '.join(unknown)}")
    vocab = len(model.tensors["token_embd.weight"])
    if not ids or max(ids) >= vocab:
        raise ValueError(f"token ids: expected at least one, each below {vocab}, got {ids}")
    if args.layers is not None and max(args.layers) >= model.layers:
        raise ValueError(f"--layers: expected numbers below {model.layers}, got {args.layers}")
    if args.max_tokens < 0:
        raise ValueError(f"--max-tokens: expected 0 or more, got {args.max_tokens}")


def rope_parameters(model):
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
    if model.rotary != model.head_dim:
        out["partial_rotary_factor"] = model.rotary / model.head_dim
    return out


def hf_model(torch, transformers, model, dtype):
    vocab, dim = model.tensors["token_embd.weight"].shape
    config = {
        "vocab_size": vocab, "hidden_size": dim, "intermediate_size": model.get("feed_forward_length"),
        "num_hidden_layers": model.layers, "num_attention_heads": model.heads, "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_dim, "max_position_embeddings": model.get("context_length"),
        "rms_norm_eps": float(model.eps), "rope_parameters": rope_parameters(model),
        "tie_word_embeddings": "output.weight" not in model.tensors}
    make = lib.hf_llama if model.rotary == model.head_dim else lib.hf_glm
    hf = make(torch, transformers, config, model.tensors, "eager" if dtype == "float64" else None)
    if "rope_freqs.weight" in model.tensors:
        hf.model.rotary_emb.inv_freq.div_(torch.tensor(model.tensors["rope_freqs.weight"]))
    lib.assert_dtype(hf, dtype)
    return hf


def record(args):
    model, ids = lib.GgufModel(args.model), prompt_ids(args)
    check_request(model, args, ids)
    torch, transformers = (lib.import_in_float64 if args.dtype == "float64" else lib.import_as_shipped)()
    hf = hf_model(torch, transformers, model, args.dtype)
    half_split = model.rotary == model.head_dim
    stages, fed, produced = lib.record_greedy(
        torch, transformers, hf, ids, args.max_tokens, model.heads, model.kv_heads, half_split, dtype=args.dtype)
    error, where = lib.cross_check(stages, lib.numpy_forward(model, fed), LIMITS[args.dtype])

    layers = range(model.layers) if args.layers is None else sorted(set(args.layers))
    kept = {name: stages[name] for name in lib.stage_order(layers)}
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
