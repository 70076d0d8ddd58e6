#!/usr/bin/env python3
"""Writes tests/golden/smollm2: what transformers makes of SmolLM2-135M-Instruct's GGUF in true float64.

    python tools/golden_smollm2.py MODEL.gguf [--out tests/golden/smollm2]

The prose goldens are one forward pass over the first 768 tokens of prose.txt; a plain numpy float64 pass over the same
file must agree within 1e-12 of every row's largest value, logits of all positions included. The greedy texts are made
in one padded batch with a float64 cache, then each is run again alone, whole and without a cache: its every token must
be the largest logit there too, and the gaps are taken from that second run.
"""

import argparse
import json
import os
import time

import numpy as np

import golden_hf
import golden_lib as lib
from golden_numpy import GgufModel, numpy_forward

TOKENS = 768
TOP = 32
WHOLE_ROWS = (17, 767)
STAGE_ROWS = (17, 767)
STAGE_LAYERS = (0, 1, 15, 29)
NEW_TOKENS = 128

PROMPTS = [
    "The capital of France is",
    "The three primary colours are",
    "Water boils at 100 degrees Celsius because",
    "Once upon a time, in a village at the edge of a forest, there lived a clockmaker who",
    "def fibonacci(n):\n    \"\"\"Return the n-th Fibonacci number.\"\"\"\n",
    "#include <stdio.h>\n\nint main(void) {\n    for (int i = 0; i < 10; i++) {\n",
    "SELECT name, COUNT(*) FROM orders",
    "Shopping list:\n- bread\n- milk\n-",
    "1, 2, 4, 8, 16, 32,",
    "Q: Why is the sky blue?\nA:",
    "Anna: Did you find the key?\nBoris: No, I looked everywhere.\nAnna:",
    "Dear Dr. Osei,\n\nThank you for your letter of 14 March. I am writing to",
    "Recipe: Lentil soup\n\nIngredients:\n1.",
    "The main difference between a virus and a bacterium is that",
    "La ville de Lyon est connue pour",
    "In 1969, Neil Armstrong",
    "{\"name\": \"Ada\", \"age\": 36, \"languages\": [",
    "To prove that the square root of 2 is irrational, suppose that",
    "# Project notes\n\n## Goals\n\n* Make the build faster\n* ",
    "She opened the door and saw",
]


def tokenizer_of(meta):
    """The file's own byte-level BPE, with the pre-tokenizer `smollm` as its makers published it."""
    from tokenizers import Tokenizer, models, pre_tokenizers, decoders

    if (meta["tokenizer.ggml.model"], meta["tokenizer.ggml.pre"]) != ("gpt2", "smollm"):
        raise ValueError("expected a tokenizer gpt2 / smollm in the file")
    if meta.get("tokenizer.ggml.add_bos_token") is not False:
        raise ValueError("expected add_bos_token to be false")
    tokens = meta["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in meta["tokenizer.ggml.merges"]]
    out = Tokenizer(models.BPE(vocab={token: n for n, token in enumerate(tokens)}, merges=merges))
    out.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    out.decoder = decoders.ByteLevel()
    return out


def load(torch, transformers, path, ours):
    """transformers' own reading of the GGUF; every weight must be the gguf package's, to the bit."""
    model = transformers.LlamaForCausalLM.from_pretrained(
        os.path.dirname(os.path.abspath(path)), gguf_file=os.path.basename(path), dtype=torch.float64,
        attn_implementation="eager").eval()
    lib.assert_dtype(model, "float64")
    config = model.config
    for what, got, want in (
            ("eps", config.rms_norm_eps, float(ours.eps)), ("layers", config.num_hidden_layers, ours.layers),
            ("rope base", config.rope_parameters["rope_theta"], ours.base),
            ("rope type", config.rope_parameters["rope_type"], "default"),
            ("norm eps", {m.variance_epsilon for m in model.modules() if hasattr(m, "variance_epsilon")}, {ours.eps})):
        if got != want:
            raise AssertionError(f"{what}: the file says {want}, transformers took {got}")
    state, seen = model.state_dict(), set()
    for name, array in ours.tensors.items():
        if ".attn_q." in name or ".attn_k." in name:
            array = golden_hf.to_half_split(array, ours.heads if ".attn_q." in name else ours.kv_heads)
        theirs = golden_hf.hf_name(name)
        if not np.array_equal(state[theirs].numpy(), array.astype(np.float64)):
            raise AssertionError(f"{name}: transformers' weights are not the file's")
        seen.add(theirs)
    if model.lm_head.weight.data_ptr() != model.model.embed_tokens.weight.data_ptr():
        raise AssertionError("the head is not tied to the embedding")
    if set(state) - seen - {"lm_head.weight"}:
        raise AssertionError(f"weights that are not in the file: {sorted(set(state) - seen)}")
    hf_head_dim, hf_heads = config.head_dim, (config.num_attention_heads, config.num_key_value_heads)
    if hf_head_dim != ours.head_dim or hf_heads != (ours.heads, ours.kv_heads) or ours.rotary != ours.head_dim:
        raise AssertionError("transformers took another shape of attention")
    return model


def metadata_for(torch, transformers, path, what):
    return {
        "schema_version": "1", "model": os.path.basename(path), "model_sha256": lib.sha256_of(path),
        "device": "transformers, true float64", "oracle": "LlamaForCausalLM", "script": "tools/golden_smollm2.py",
        "content": what, "text": "prose.txt", "stage_sources": json.dumps(golden_hf.STAGE_SOURCES),
        **{"version_" + k: v for k, v in lib.versions(torch, transformers).items()},
    }


def top_logits(logits):
    """The TOP largest of each row, largest first, equal ones by id."""
    ids = np.argsort(-logits, axis=1, kind="stable")[:, :TOP]
    return ids.astype(np.int32), np.take_along_axis(logits, ids, axis=1)


def log_sum_exp(logits):
    largest = logits.max(axis=1)
    return largest + np.log(np.exp(logits - largest[:, None]).sum(axis=1))


def prose(torch, model, ours, tokenizer, out, metadata):
    with open(os.path.join(out, "prose.txt"), encoding="utf-8", newline="") as f:
        ids = tokenizer.encode(f.read(), add_special_tokens=False).ids
    if len(ids) < TOKENS:
        raise AssertionError(f"prose.txt: expected {TOKENS} tokens at least, got {len(ids)}")
    ids = ids[:TOKENS]
    rows = list(STAGE_ROWS)
    stages = golden_hf.record(torch, model, ours, ids, chosen=rows)
    error, where = lib.cross_check(stages, numpy_forward(ours, ids, rows=rows))
    print(f"prose: transformers and numpy differ by {error:.3g} at most ({where})")
    metadata["cross_check_worst_row_error"] = f"{error:.3g}"
    logits = stages["logits"]

    def write(name, positions, tensors, content):
        path = os.path.join(out, name + ".safetensors")
        lib.write_safetensors(path, lib.trace_tensors(ids, positions, tensors), {**metadata, "content": content})

    top_ids, top = top_logits(logits)
    path = os.path.join(out, f"prose_top{TOP}.safetensors")
    lib.write_safetensors(path, {
        **lib.trace_tensors(ids, range(TOKENS), {}), "top_ids": top_ids, "top_logits": top,
        "logsumexp": log_sum_exp(logits), "logits_sum": logits.sum(axis=1), "logits_absmax": np.abs(logits).max(axis=1),
    }, {**metadata, "content": f"the {TOP} largest logits of every position, and figures of the whole row"})
    for row in WHOLE_ROWS:
        write(f"prose_logits_{row:03d}", [row], {"logits": logits[[row]]}, f"all logits of position {row}")
    names = ["embed_out", *(f"layers.{n}.residual_post_mlp" for n in range(ours.layers)), "final_norm"]
    write("prose_residuals", rows, {name: stages[name] for name in names}, "the residual stream after every layer")
    for n in STAGE_LAYERS:
        names = [name for name in lib.stage_order([n], stages) if name.startswith("layers.")]
        write(f"prose_layer_{n:02d}", rows, {name: stages[name] for name in names}, f"every stage of layer {n}")


def generate(torch, transformers, model, prompts, pad):
    """Greedy tokens for all prompts in one batch, padded on the left; ties to the lower id; no end token stops it."""
    longest = max(len(p) for p in prompts)
    ids = torch.tensor([[pad] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache = transformers.DynamicCache(config=model.config)
    new = []
    for _ in range(NEW_TOKENS):
        logits = model(input_ids=ids, attention_mask=mask, position_ids=positions, cache=cache, use_cache=True,
                       logits_to_keep=1).logits[:, -1].numpy()
        ids = torch.from_numpy(logits.argmax(axis=1))[:, None]  # numpy's argmax: the first of equals
        new.append(ids[:, 0].tolist())
        mask = torch.cat([mask, torch.ones(len(prompts), 1, dtype=mask.dtype)], dim=1)
        positions = positions[:, -1:] + 1
    for layer in cache.layers:
        if {str(layer.keys.dtype), str(layer.values.dtype)} != {"torch.float64"}:
            raise AssertionError("the cache is not float64")
        if layer.keys.shape[2] != longest + NEW_TOKENS - 1:
            raise AssertionError(f"the cache holds {layer.keys.shape[2]} tokens")
    return [[step[n] for step in new] for n in range(len(prompts))]


def greedy(torch, transformers, model, tokenizer, out, metadata, meta):
    ends = {meta["tokenizer.ggml.eos_token_id"]}
    prompts = [tokenizer.encode(text, add_special_tokens=False).ids for text in PROMPTS]
    entries = []
    for text, prompt, ids in zip(PROMPTS, prompts, generate(torch, transformers, model, prompts, min(ends))):
        logits = model(input_ids=torch.tensor([prompt + ids[:-1]]), use_cache=False).logits[0].numpy()
        logits = logits[len(prompt) - 1:]
        order = np.argsort(-logits, axis=1, kind="stable")[:, :2]
        if order[:, 0].tolist() != ids:
            raise AssertionError(f"{text!r}: the batch and the lone run part")
        best, second = (np.take_along_axis(logits, order[:, [k]], axis=1)[:, 0] for k in (0, 1))
        stop = next((n for n, token in enumerate(ids) if token in ends), None)
        entries.append({
            "prompt": text, "prompt_ids": prompt, "ids": ids, "second_ids": order[:, 1].tolist(),
            "gaps": (best - second).tolist(), "end_at": stop,
            "text": tokenizer.decode(ids[:stop], skip_special_tokens=False),
        })
    least = min(min(e["gaps"]) for e in entries)
    print(f"prompts: {len(entries)}, least gap {least:.3g}, "
          f"{sum(g < 0.005 for e in entries for g in e['gaps'])} gaps below 0.005, "
          f"{sum(e['end_at'] is not None for e in entries)} texts reach an end token")
    with open(os.path.join(out, "prompts.json"), "w", encoding="utf-8") as f:
        lines = ",\n".join(json.dumps(e, ensure_ascii=False) for e in entries)
        f.write('{"metadata": ' + json.dumps(metadata) + ',\n"prompts": [\n' + lines + "\n]}\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--out", default=os.path.join(os.path.dirname(__file__), "..", "tests", "golden", "smollm2"))
    args = parser.parse_args()
    started = time.monotonic()
    torch, transformers = lib.import_in_float64()
    ours = GgufModel(args.model)
    model = load(torch, transformers, args.model, ours)
    tokenizer = tokenizer_of(ours.meta)
    metadata = metadata_for(torch, transformers, args.model, "")
    prose(torch, model, ours, tokenizer, args.out, dict(metadata))
    metadata["content"] = f"{NEW_TOKENS} greedy tokens for each prompt, end tokens not heeded"
    for key in ("text", "stage_sources"):
        metadata.pop(key)
    greedy(torch, transformers, model, tokenizer, args.out, metadata, ours.meta)
    sizes = {name: os.path.getsize(os.path.join(args.out, name)) for name in os.listdir(args.out)}
    print(f"{sum(sizes.values())} bytes, largest file {max(sizes.values())}, {time.monotonic() - started:.0f} s")
    if not (max(sizes.values()) <= 1_000_000 and sum(sizes.values()) <= 2_500_000):
        raise AssertionError("the goldens are too big to be kept")


if __name__ == "__main__":
    main()
