#!/usr/bin/env python3
"""How far other engines are from the file's own answer: KL against float64 on the first 768 tokens of prose.txt.

    python tools/measure_peers_kl.py MODEL.gguf PEER

PEER is llama.cpp (needs llama-cpp-python), transformers-float32 or transformers-bfloat16. One line of a table on
stdout. The reference is the numpy pass that the goldens are checked with.
"""

import argparse
import os

import numpy as np

from golden_numpy import GgufModel, numpy_forward
from golden_smollm2 import TOKENS, tokenizer_of


def llama_cpp_logits(path, ids):
    import llama_cpp

    model = llama_cpp.Llama(path, n_ctx=1024, n_batch=512, logits_all=True, verbose=False, n_threads=2)
    model.eval(ids)
    return np.array(model.scores[:len(ids)], np.float64), f"llama.cpp (llama-cpp-python {llama_cpp.__version__})"


def transformers_logits(path, ids, dtype):
    import torch
    import transformers

    torch.set_num_threads(2)
    torch.set_grad_enabled(False)
    model = transformers.LlamaForCausalLM.from_pretrained(
        os.path.dirname(os.path.abspath(path)), gguf_file=os.path.basename(path), dtype=getattr(torch, dtype)).eval()
    logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].double().numpy()
    return logits, f"transformers {transformers.__version__}, torch {torch.__version__.split('+')[0]}, {dtype}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("peer", choices=["llama.cpp", "transformers-float32", "transformers-bfloat16"])
    args = parser.parse_args()
    ours = GgufModel(args.model)
    prose = os.path.join(os.path.dirname(__file__), "..", "tests", "golden", "smollm2", "prose.txt")
    with open(prose, encoding="utf-8", newline="") as f:
        ids = tokenizer_of(ours.meta).encode(f.read(), add_special_tokens=False).ids[:TOKENS]
    want = numpy_forward(ours, ids, rows=[0])["logits"]
    if args.peer == "llama.cpp":
        got, name = llama_cpp_logits(args.model, ids)
    else:
        got, name = transformers_logits(args.model, ids, args.peer.split("-")[1])

    def log_softmax(x):
        x = x - x.max(axis=1, keepdims=True)
        return x - np.log(np.exp(x).sum(axis=1, keepdims=True))

    p, q = log_softmax(want), log_softmax(got)
    kl = (np.exp(p) * (p - q)).sum(axis=1)
    rows, best, chosen = np.arange(len(ids)), want.argmax(axis=1), got.argmax(axis=1)
    gaps = want[rows, best] - want[rows, chosen]
    differ = int((best != chosen).sum())
    print(f"| {name} | {kl.mean():.2g} | {kl.max():.2g} | {differ} of {len(ids)} | {gaps.max():.2g} |")


if __name__ == "__main__":
    main()
