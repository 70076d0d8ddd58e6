#!/usr/bin/env python3
"""Writes tests/golden/models: tiny random GGUFs and what transformers makes of them in true float64.

    python tools/golden_models.py [--out tests/golden/models] [--only NAME]

For each model of golden_shapes.py: NAME.gguf, NAME.safetensors (every stage but the logits at four positions),
NAME.logits.safetensors (the logits of a dozen). Each golden is the transformers model's own value; a plain numpy
float64 pass that reads the GGUF must agree within 1e-12 of every row's largest value at every position, and with one
mistake planted it must not agree within 1e-6 (a golden that no mistake moves would judge nothing).
"""

import argparse
import json
import os

import numpy as np

import golden_hf
import golden_lib as lib
from golden_numpy import GgufModel, numpy_forward
from golden_shapes import LLAMA, SHAPES, TWIN, random_weights, write_gguf

LOGITS_STD = 3.0
EXPERT_GAP = 5e-3  # between the router's last chosen logit and the next: no 16-bit rounding may choose another expert
LARGEST_NEW_GGUF, NEW_TOTAL, TOTAL = 80_000, 1_600_000, 3_600_000


def hf_model(torch, transformers, shape, tensors):
    """The transformers model with the arrays that went into the file."""
    model = golden_hf.build(torch, transformers, shape.facts(tensors), tensors)
    if "rope_freqs.weight" in tensors:
        use_stored_factors(torch, model.model.rotary_emb, shape, tensors["rope_freqs.weight"])
    lib.assert_dtype(model, "float64")
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
    """Each planted mistake must move the logits by far more than any comparison allows; the moves."""
    faults = ("rope_pairs", "eps", "causal", "gelu_silu", *shape.faults)
    if shape.kv_heads not in (1, shape.heads):
        faults += ("kv_head_order",)
    moves = {}
    for fault in dict.fromkeys(faults):
        moves[fault] = lib.row_error(numpy_forward(model, ids, fault)["logits"], want)
        if not moves[fault] >= 1e-6:
            raise AssertionError(f"{shape.name}: the mistake {fault} moves the logits by {moves[fault]:.3g} only")
    return moves


def least(moves, among=None):
    """The weakest mistake, in words."""
    fault = min((f for f in moves if among is None or f in among), key=moves.get, default=None)
    return "none" if fault is None else f"{moves[fault]:.2g} ({fault})"


def expert_gap(stages, used):
    """The least distance of a router's last chosen logit to the first one left out."""
    gaps = [np.inf]
    for name, rows in stages.items():
        if name.endswith(".router_logits"):
            order = -np.sort(-rows, axis=1)
            gaps.append((order[:, used - 1] - order[:, used]).min())
    return min(gaps)


def calibrate(shape, tensors, rng, path):
    """Draws the prompt and scales the last norm, so that the logits have their standard deviation; writes the file."""
    for _ in range(1000):
        ids = [1, *(int(i) for i in rng.integers(3, shape.vocab, shape.tokens - 1))]
        write_gguf(shape, tensors, path)
        stages = numpy_forward(GgufModel(path), ids)
        if expert_gap(stages, shape.used) >= EXPERT_GAP:
            break
    else:
        raise AssertionError(f"{shape.name}: no prompt keeps the router's choices apart")
    std = stages.get("logits_pre_cap", stages["logits"]).std()
    tensors["output_norm.weight"] = (tensors["output_norm.weight"] * (LOGITS_STD / std)).astype(np.float32)
    write_gguf(shape, tensors, path)
    return ids


def logits_positions(shape, tokens, chosen):
    """Those of the other golden, some spread over the prompt, and three around the end of the window."""
    spread = {round(n * (tokens - 1) / (shape.logits_rows - 1)) for n in range(shape.logits_rows)}
    around = {shape.window - 1, shape.window, shape.window + 1} if shape.window else set()
    return sorted(spread | around | set(chosen))


def golden_of_run(torch, transformers, hf, shape, path, out, name, ids, context):
    """One pass, checked and written; its entry in the manifest."""
    stages = golden_hf.record(torch, hf, shape, ids)
    model = GgufModel(path)
    model.context = context or model.context
    error, where = lib.cross_check(stages, numpy_forward(model, ids))
    moves = notice_faults(shape, model, ids, stages["logits"])

    n = len(ids)
    chosen = [0, 1, n // 2, n - 1]
    rows = logits_positions(shape, n, chosen)
    metadata = {
        "schema_version": "1", "model": os.path.basename(path), "model_sha256": lib.sha256_of(path),
        "device": "transformers, true float64", "oracle": type(hf).__name__, "script": "tools/golden_models.py",
        "stage_sources": json.dumps(golden_hf.STAGE_SOURCES), "cross_check": "plain numpy float64 pass over the GGUF",
        "cross_check_worst_row_error": f"{error:.3g}",
        **{"version_" + k: v for k, v in lib.versions(torch, transformers).items()},
    }
    if shape.scaling.get("rope_type") == "llama3":
        metadata["rope_frequencies"] = "the file's float32 factors in place of transformers' float64 ones"
    golden, logits = name + ".safetensors", name + ".logits.safetensors"
    order = lib.stage_order(range(shape.layers), stages)
    if len(order) != len(stages):
        raise AssertionError(f"{name}: stages without a place: {sorted(set(stages) - set(order))}")
    order.remove("logits")  # the other golden has those rows
    lib.write_safetensors(os.path.join(out, golden),
                          lib.trace_tensors(ids, chosen, {stage: stages[stage][chosen] for stage in order}), metadata)
    del metadata["stage_sources"]
    lib.write_safetensors(os.path.join(out, logits),
                          lib.trace_tensors(ids, rows, {"logits": stages["logits"][rows]}), metadata)
    print(f"{name:16s} {os.path.getsize(path):7d} bytes, logits std {stages['logits'].std():.2f}, "
          f"cross-check {error:.2g} ({where}), least fault {least(moves)}, "
          f"least of its own {least(moves, shape.faults)}", flush=True)
    entry = {"name": name, "purpose": shape.purpose, "gguf": os.path.basename(path), "golden": golden,
             "golden_logits": logits, "gguf_sha256": metadata["model_sha256"], "oracle": metadata["oracle"],
             "tokens": n, "positions": chosen, "layers": shape.layers, "architecture": shape.arch,
             "logits_positions": rows}
    if context:
        entry["context"] = context
    return entry


def make(torch, transformers, shape, out):
    path = os.path.join(out, shape.name + ".gguf")
    tensors, rng = random_weights(shape)
    ids = calibrate(shape, tensors, rng, path)
    hf = hf_model(torch, transformers, shape, tensors)
    runs = shape.runs or ((shape.name, shape.tokens, None),)
    return [golden_of_run(torch, transformers, hf, shape, path, out, name, ids[:tokens], context)
            for name, tokens, context in runs], tensors


def check_files(out, manifest):
    """What was written reads back with the safetensors package, nothing is left over, nothing is too big to be kept."""
    from safetensors.numpy import load_file

    named = {"manifest.json", *(entry[key] for entry in manifest for key in ("gguf", "golden", "golden_logits"))}
    if named != set(os.listdir(out)):
        raise AssertionError(f"{out}: in the manifest or the folder alone: {sorted(named ^ set(os.listdir(out)))}")
    old = {entry[key] for entry in manifest for key in ("gguf", "golden", "golden_logits")
           if entry["name"] in (TWIN[0], *(shape.name for shape in LLAMA))}
    sizes = {file: os.path.getsize(os.path.join(out, file)) for file in named}
    new = sum(size for file, size in sizes.items() if file not in old)
    for file, size in sizes.items():
        if not size <= (LARGEST_NEW_GGUF if file.endswith(".gguf") and file not in old else 300_000):
            raise AssertionError(f"{file}: {size} bytes")
    if not (new <= NEW_TOTAL and sum(sizes.values()) <= TOTAL):
        raise AssertionError(f"{out}: {sum(sizes.values())} bytes, {new} of them beyond the first llama models")
    for entry in manifest:
        stages = load_file(os.path.join(out, entry["golden"]))
        logits = load_file(os.path.join(out, entry["golden_logits"]))
        at = np.searchsorted(logits["positions"], stages["positions"])
        same = np.array_equal(logits["positions"][at], stages["positions"])
        if not same or not np.array_equal(logits["token_ids"], stages["token_ids"]):
            raise AssertionError(f"{entry['name']}: the two goldens differ")
    print(f"{len(manifest)} models, {sum(sizes.values())} bytes, {new} beyond the first llama models")


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
        entries, tensors = make(torch, transformers, shape, args.out)
        manifest += entries
        if shape.name == TWIN[1]:
            path = os.path.join(args.out, TWIN[0] + ".gguf")
            write_gguf(shape, tensors, path, scaling_none=True)
            manifest.append({
                **entries[0], "name": TWIN[0], "gguf": TWIN[0] + ".gguf", "gguf_sha256": lib.sha256_of(path),
                "purpose": shape.purpose.split(",")[0] + ", rope.scaling.type = none; same goldens"})
    if args.only:
        return
    with open(os.path.join(args.out, "manifest.json"), "w") as f:
        json.dump(manifest, f, indent=1)
        f.write("\n")
    check_files(args.out, manifest)


if __name__ == "__main__":
    main()
