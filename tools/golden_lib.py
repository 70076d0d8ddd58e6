"""What the golden scripts share: true float64 under transformers, stage names, comparing, file writing.

golden_numpy.py is the plain pass that checks, golden_hf.py makes and records the transformers model.

A note on names: a *stage* is what docs and traces call by `embed_out`, `layers.<n>.<stage>`, `final_norm`, `logits`;
one row per token, elements in the row order of the GGUF's tensors (adjacent rotary pairs for llama, half-split ones for
the other architectures).
"""

import hashlib
import json
import sys

import numpy as np

# Per layer, in the order of computation. A model has those that its architecture computes: q_proj and k_proj where a
# norm stands between product and rotation, the norms that its file has, either ffn_* or router_logits to expert_out.
STAGES = (
    "residual_pre_attn", "attn_norm", "q_proj", "k_proj", "v", "q_pre_rope", "k_pre_rope", "q_post_rope", "k_post_rope",
    "attn_out", "attn_proj", "attn_post_norm", "residual_post_attn", "ffn_norm", "ffn_gate", "ffn_up", "ffn_act",
    "router_logits", "experts", "expert_weights", "expert_gate", "expert_up", "expert_act", "expert_out", "mlp_out",
    "mlp_post_norm", "residual_post_mlp",
)


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


def stage_order(layers, names):
    """The names of `names` that belong to the chosen layers or to none, in the order of the pass."""
    per_layer = [f"layers.{n}.{stage}" for n in layers for stage in STAGES]
    return [name for name in ("embed_out", *per_layer, "final_norm", "logits_pre_cap", "logits") if name in names]
