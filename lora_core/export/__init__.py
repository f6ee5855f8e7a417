"""From a task model of this library to ONNX files that serve on a CPU: export, quantise, verify, run.

    export_onnx(model, "model.onnx", metadata={"tokenizer.json": text})      # fp32, adapters merged, fused
    verify_onnx(model, "model.onnx", batches)                                # logits as torch's, or the file goes
    quantize_onnx("model.onnx", "model.int8.onnx", batches)                  # int8, static; without batches dynamic
    verify_score("model.int8.onnx", score, reference)                        # metric as before, or the file goes
    logits = OnnxModel("model.int8.onnx")(input_ids, attention_mask)
    logits = OnnxSession("model.int8.onnx").run(input_ids=array)             # the same on arrays, without torch
    logits = OnnxSession("model.int8.onnx", backend="openvino").run(input_ids=array)    # the extra openvino

Many adapters on one base, one session for all of them:

    export_onnx_base(model, "base.onnx")                                     # quantize_onnx works on it too
    save_onnx_adapter(model, "genes", "genes.onnx_adapter")                  # for each adapter of the model
    base = OnnxModel("base.onnx")
    genes = base.load_adapter("genes.onnx_adapter", "genes")                 # a model of its own on base's session
    logits = genes(input_ids, attention_mask)

This package imports onnx and onnxruntime, and openvino where that is asked for; nothing else in lora_core does.
Encoders and heads write what is their own (methods `onnx`) on a Graph that they are given; here is what all share.

Names are imported when they are first used, so that serving (session.py) needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lora_core.export.export import export_onnx
    from lora_core.export.onnx_adapter import export_onnx_base, save_onnx_adapter
    from lora_core.export.onnx_file import fused_counts, read_metadata
    from lora_core.export.quantize import quantize_onnx
    from lora_core.export.runtime import OnnxModel
    from lora_core.export.session import OnnxSession
    from lora_core.export.verify import PointsLost, parity_batches, verify_onnx, verify_onnx_adapter, verify_score
    from lora_core.export.write import update_metadata

__all__ = [
    "OnnxModel",
    "OnnxSession",
    "PointsLost",
    "export_onnx",
    "export_onnx_base",
    "fused_counts",
    "parity_batches",
    "quantize_onnx",
    "read_metadata",
    "save_onnx_adapter",
    "update_metadata",
    "verify_onnx",
    "verify_onnx_adapter",
    "verify_score",
]

_HOMES = {
    "OnnxModel": "runtime",
    "OnnxSession": "session",
    "PointsLost": "verify",
    "export_onnx": "export",
    "export_onnx_base": "onnx_adapter",
    "fused_counts": "onnx_file",
    "parity_batches": "verify",
    "quantize_onnx": "quantize",
    "read_metadata": "onnx_file",
    "save_onnx_adapter": "onnx_adapter",
    "update_metadata": "write",
    "verify_onnx": "verify",
    "verify_onnx_adapter": "verify",
    "verify_score": "verify",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
