#!/usr/bin/env python3
"""Writes the sample summaries beside it (docs/summary.md): made up, the same bytes each time.

    python3 tests/bisect/summaries/make.py
"""

import json
import pathlib
import random

STAGES = ["residual_pre_attn", "attn_norm", "q_pre_rope", "k_pre_rope", "v", "q_post_rope", "k_post_rope", "attn_out",
          "attn_proj", "residual_post_attn", "ffn_norm", "ffn_gate", "ffn_up", "ffn_act", "mlp_out",
          "residual_post_mlp"]
OPERATORS = {"embed_out": "embed", "residual_pre_attn": "wire", "attn_norm": "rmsnorm", "q_pre_rope": "matmul attn_q",
             "k_pre_rope": "matmul attn_k", "v": "matmul attn_v", "q_post_rope": "rope", "k_post_rope": "rope",
             "attn_out": "attention", "attn_proj": "matmul attn_output", "residual_post_attn": "add",
             "ffn_norm": "rmsnorm", "ffn_gate": "matmul ffn_gate", "ffn_up": "matmul ffn_up", "ffn_act": "glu",
             "mlp_out": "matmul ffn_down", "residual_post_mlp": "add", "final_norm": "rmsnorm",
             "logits": "matmul output"}
CLASSES = {"attn_out": "ATTENTION_MECHANISM", "ffn_act": "MLP_OUTPUT", "v": "ATTN_KERNEL_INPUTS",
           "residual_post_mlp": "RESIDUAL_ADD"}
PIECES = [" Paris", " the", " a", " located", ",", " one", " known", "\n", " not", " in", " an", " called"]


class Maker:

    def __init__(self, seed):
        self.random = random.Random(seed)

    def digits(self, x, n=3):
        return float(f"{x:.{n}g}")

    def quiet(self):
        """Error over bound of a sound operator."""
        return self.digits(10**self.random.uniform(-2.6, -0.25))

    def hash(self):
        return f"{self.random.getrandbits(64):016x}"

    def heat(self, tokens, layers, width=256, judged=1.0):
        bin = -(-tokens // width)
        first = list(range(0, tokens, bin))
        rows = ["embed_out"] + [f"layer {i}" for i in range(layers)] + ["head"]
        heat = {"side": "b", "bin": bin, "tokens": first, "rows": rows, "ratio": [], "stage": [], "token": []}
        for row in rows:
            cells = [self.cell(row, t, min(bin, tokens - t), judged) for t in first]
            for key, values in zip(("ratio", "stage", "token"), zip(*cells)):
                heat[key].append(list(values))
        return heat

    def cell(self, row, token, bin, judged):
        if self.random.random() >= judged:
            return None, None, None
        stage = {"embed_out": ["embed_out"], "head": ["final_norm", "logits"]}.get(row, STAGES[1:])
        return self.quiet(), self.random.choice(stage), token + self.random.randrange(bin)

    def drift(self, heat, layers):
        relative = []
        for layer in range(layers):
            grown = 1e-7 * 1.25**layer
            relative.append([self.digits(grown * 10**self.random.uniform(-0.3, 0.3)) for _ in heat["tokens"]])
        return {"layers": list(range(layers)), "tokens": heat["tokens"], "bin": heat["bin"], "relative": relative}

    def stages(self, token, layer, failing=None, ratio=None, same_bits=True):
        rows = []
        for stage in STAGES:
            bound = self.digits(10**self.random.uniform(-7, -5))
            this = ratio if stage == failing else self.quiet()
            likely = self.digits(bound * self.random.uniform(0.1, 0.6))
            error = this if isinstance(this, str) else self.digits(bound * this)
            hash_a = self.hash()
            same = None if stage == "residual_pre_attn" else (same_bits or stage != failing)
            rows.append({"stage": stage, "operator": OPERATORS[stage], "error": error, "bound": bound, "likely": likely,
                         "ratio": this, "suspect": not isinstance(this, str) and likely < error <= bound,
                         "hash_a": hash_a, "hash_b": hash_a if same else self.hash(), "same_bits": same})
        return {"token": token, "layer": layer, "side": "b", "rows": rows}

    def top(self, pieces):
        logit = 18.0
        rows = []
        for id, piece in enumerate(pieces[:10]):
            rows.append({"id": 260 + 17 * id, "piece": piece, "logit": round(logit, 6)})
            logit -= self.random.uniform(0.05, 1.1)
        return rows

    def logits(self, tokens, steps, parts_at=None):
        rows = []
        for step in range(steps):
            pieces = PIECES[:]
            self.random.shuffle(pieces)
            a = self.top(pieces)
            b = [{**entry, "logit": round(entry["logit"] + self.random.uniform(-1e-5, 1e-5), 6)} for entry in a]
            if step == parts_at:
                b[0], b[1] = {**b[1], "logit": b[0]["logit"]}, {**b[0], "logit": b[1]["logit"]}
            rows.append({"token": tokens - 1 + step, "step": step, "a": a, "b": b,
                         "relative": self.digits(10**self.random.uniform(-7, -6)),
                         "kl": self.digits(10**self.random.uniform(-10, -8))})
        return rows

    def prompt(self, name, text, tokens, layers, steps=3, kind="NONE", at=None, width=256, judged=1.0):
        """at: (token, layer, stage, ratio) of the first wrong value."""
        prompt = {"name": name, "tokens": tokens, "prompt_text": text,
                  "ids": [self.random.randrange(49152) for _ in range(tokens)]}
        ids = [260 + 17 * i for i in range(steps)]
        prompt["generated"] = {"a": ids, "b": ids, "a_text": " the capital of", "b_text": " the capital of"}
        heat = self.heat(tokens, layers, width, judged)
        first, fails = None, []
        if at is not None:
            token, layer, stage, ratio = at
            column, row = token // heat["bin"], layer + 1
            heat["ratio"][row][column], heat["stage"][row][column], heat["token"][row][column] = ratio, stage, token
            bound = 3.1e-7
            first = {"sequence": 0, "token": token, "layer": layer, "stage": stage, "side": "b",
                     "operator": OPERATORS[stage], "index": 17, "got": 0.1048, "expected": 0.0731,
                     "error": self.digits(bound * ratio) if not isinstance(ratio, str) else ratio, "bound": bound,
                     "ratio": ratio}
            fails = [first] + [{**first, "index": 17 + i, "ratio": self.digits(max(1.01, ratio / (1 + i)))}
                               for i in range(1, 8) if not isinstance(ratio, str)]
        prompt["kind"], prompt["class"] = kind, CLASSES.get(at[2], "UNKNOWN") if at else "UNKNOWN"
        prompt["status"], prompt["error"], prompt["first"] = int(kind != "NONE"), None, first
        prompt["first_fail"] = prompt["cause"] = None
        if at is not None:
            place = f"token {at[0]}, layers.{at[1]}.{at[2]}"
            prompt["first_fail"] = (f"FIRST_FAIL prompt={name} {place} [17]: got 0.1048, expected 0.0731, "
                                    f"{at[3]} times the bound")
            prompt["cause"] = f"CAUSE {kind}: {OPERATORS[at[2]]} ({at[2]}) of side b"
        calls = tokens * (layers * 15 + 3)
        prompt["counts"] = {"tokens": tokens, "layers": layers, "stages": layers * 16 + 3, "values": calls * 576,
                            "calls_replayed": calls, "rows_replayed": calls, "rows_judged": calls,
                            "rows_compared": calls, "suspect": 3, "failed": len(fails)}
        hash = self.hash()
        prompt["nonfinite"] = None
        prompt["hashes"] = {"a": {"traced": hash, "untraced": hash}, "b": {"traced": self.hash(), "untraced": None}}
        prompt["heat"] = heat
        prompt["drift"] = self.drift(heat, layers)
        prompt["stages"] = (self.stages(at[0], at[1], at[2], at[3], kind == "OPERATOR") if at else self.stages(0, 1))
        prompt["logits"] = self.logits(tokens, steps)
        prompt["rounding"] = None
        prompt["failures"], prompt["failures_total"] = fails, len(fails)
        return prompt

    def summary(self, kind, prompts, layers=6, **replace):
        model = {"name": "SmolLM2 135M Instruct", "architecture": "llama", "layers": layers, "dim": 576, "heads": 9,
                 "kv_heads": 3, "head_dim": 64, "ffn_dim": 1536, "vocab": 49152}

        def subject(text, description, route):
            return {"text": text, "description": description, "file": "SmolLM2-135M-Instruct.Q4_1.gguf",
                    "sha256": "%064x" % self.random.getrandbits(256), "model": model, "route": route, "seconds": 1.25}

        result = {
            "schema": "greta-bisect-1",
            "build": {"version": "0.1.0", "commit": "64536d5c0ffee", "dirty": True, "compiler": "GCC 12.2.0"},
            "machine": {"cpu": "Sample CPU @ 2.0 GHz", "threads": 2},
            "options": {"a": "reference", "b": "cpu", "max-tokens": 3},
            "started": "2026-11-25T18:00:00Z", "seconds": 12.3, "status": max([int(kind != "NONE")] + [p["status"] for p in prompts]),
            "kind": kind,
            "subjects": {
                "a": subject("reference", "reference (FP64, plain loops)", {"reference.matmul": 420, "reference.attention": 60}),
                "b": subject("cpu", "cpu (avx2, 2 threads, 16-bit activations)",
                             {"cpu.avx2.q4_1.matmul.m1": 240, "cpu.avx2.q4_1.matmul.m16": 180, "cpu.avx2.attention": 60})},
            "input": {"tensors": 272, "values": 134515008, "rows_read_back": 150000, "differences": []},
            "prompts": prompts}
        result.update(replace)
        return result


def rounding(maker):
    prompt = maker.prompt("p2_capital", "The capital of France is", 5, 6, steps=10, kind="ROUNDING")
    prompt["logits"] = maker.logits(5, 10, parts_at=9)
    last = prompt["logits"][9]
    prompt["rounding"] = {"step": 9, "token": 14, "a": last["a"][0], "b": last["b"][0], "true_gap": 0.22,
                          "difference": 0.25,
                          "contributors": [{"what": "ffn_gate", "share": 0.4, "shift": 0.1},
                                           {"what": "mlp_out", "share": 0.31, "shift": 0.0775},
                                           {"what": "attn_proj", "share": 0.17, "shift": -0.0425},
                                           {"what": "q_pre_rope", "share": 0.06, "shift": 0.015}]}
    prompt["first_fail"] = "FIRST_FAIL prompt=p2_capital step 9: tokens part, every operator inside its bound"
    prompt["cause"] = "CAUSE ROUNDING: true gap 0.22, accumulated difference 0.25"
    return maker.summary("ROUNDING", [prompt])


def inputs(maker):
    prompt = maker.prompt("p0_short", "Hi", 1, 6, kind="INPUT")
    prompt.update({"heat": None, "drift": None, "stages": None, "logits": [],
                   "first_fail": "FIRST_FAIL prompt=p0_short input: blk.3.ffn_up.weight row 17",
                   "cause": "CAUSE INPUT: a resident tensor is not the file's"})
    summary = maker.summary("INPUT", [prompt])
    summary["input"]["differences"] = [
        {"side": "b", "what": "tensor", "name": "blk.3.ffn_up.weight", "row": 17, "detail": "read back 0x3c01, the file has 0x3c00"},
        {"side": "a", "what": "hyperparameter", "name": "rope.freq_base", "row": None, "detail": "10000, side b has 100000"}]
    return summary


def error(maker):
    """A prompt that could not be run, and a sound one."""
    bad = {"name": "p9_long", "tokens": 9000, "prompt_text": "x", "ids": [], "kind": None, "class": None, "status": 2,
           "error": "the prompt has 9000 tokens, the context holds 8192: shorten it or give --context", "first": None,
           "first_fail": None, "cause": None}
    return maker.summary(None, [bad, maker.prompt("p0_short", "Hi", 1, 6)])


def nonfinite(maker):
    """Numbers that are not finite, and text that tries to leave its place."""
    hostile = "</script><script>document.title='broken out'</script><!-- <img src=x onerror=\"document.title='broken out'\"> | `*_\\ \u2028"
    prompt = maker.prompt("p\"1'<b>", hostile + "\nsecond line\x1b[31m", 12, 6, kind="OPERATOR", at=(5, 2, "ffn_act", "inf"), judged=0.8)
    prompt["nonfinite"] = {"sequence": 0, "token": 5, "layer": 2, "stage": "ffn_act", "side": "b", "index": 3, "value": "nan"}
    prompt["heat"]["ratio"][4][6], prompt["heat"]["stage"][4][6], prompt["heat"]["token"][4][6] = "nan", "ffn_act", 6
    prompt["first"].update({"got": "nan", "error": "nan", "ratio": "inf"})
    prompt["logits"][0]["b"][0].update({"piece": hostile, "logit": "-inf"})
    prompt["logits"][0].update({"kl": "nan", "relative": "inf"})
    prompt["drift"]["relative"][3][6] = "inf"
    prompt["drift"]["relative"][3][7] = None
    return maker.summary("OPERATOR", [prompt])


def main():
    folder = pathlib.Path(__file__).parent
    samples = {
        "operator": lambda m: m.summary("OPERATOR", [
            m.prompt("p0_short", "Hi", 1, 6),
            m.prompt("p6_len_16", "The committee met on a Tuesday. " * 9, 64, 6, kind="OPERATOR", at=(5, 3, "attn_out", 812000.0))]),
        "wire": lambda m: m.summary("WIRE", [m.prompt("p4_batch", "Once", 70, 6, kind="WIRE", at=(64, 0, "attn_out", 93.5))]),
        "race": lambda m: m.summary("RACE", [m.prompt("p1_story", "Once upon a time", 6, 6, kind="RACE", at=(2, 4, "v", 1.07))]),
        "prefill": lambda m: m.summary("OPERATOR", [
            m.prompt("p6_len_32", "The committee met on a Tuesday.", 1653, 60, kind="OPERATOR",
                     at=(1041, 31, "residual_post_mlp", 4.25), width=128, judged=0.97)], layers=60),
        "none": lambda m: m.summary("NONE", [m.prompt("p0_short", "Hi", 1, 6), m.prompt("p1_story", "Once upon a time", 6, 6)]),
        "rounding": rounding, "input": inputs, "error": error, "nonfinite": nonfinite,
    }
    for seed, (name, make) in enumerate(samples.items()):
        text = json.dumps(make(Maker(seed)), ensure_ascii=False, separators=(",", ":"))
        (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
