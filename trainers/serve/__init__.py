"""Text in, predictions out, in three lines, with torch and ONNX alike:

from trainers import pipeline
ner = pipeline("ner", model="runs/ner")         # or a model folder, a hub id, runs/ner/model.int8.onnx
ner("IL-2 gene expression requires NF-kappa B.")
"""

from pathlib import Path
from typing import Any

from trainers.serve.backends import Chosen
from trainers.serve.entities import TokenPipeline
from trainers.serve.pipeline import ImagePipeline, Pipeline, TextPipeline
from trainers.serve.served import load_served
from trainers.serve.served_model import Served

ALIASES = {"ner": "token-classification", "sentiment-analysis": "text-classification"}
"""Other names of tasks, as transformers has them."""

PIPELINES: dict[str, type[Pipeline]] = {
    "token-classification": TokenPipeline,
    "text-classification": TextPipeline,
    "image-classification": ImagePipeline,
}


def pipeline(
    task: str | None = None,
    model: str | Path = "",
    *,
    device: str | None = None,
    max_tokens: int | None = None,
    backend: Chosen | None = None,
    **options: Any,
) -> Pipeline:
    """A function from inputs to predictions.

    Args:
        task: "ner" (which is "token-classification"), "text-classification" or "image-classification"; None takes
            what the model was trained for.
        model: the folder of a finished run; a model folder in transformers' layout; a hub id; or an ONNX file that
            `lora-core export` wrote.
        device: such as "cpu" or "cuda"; None: CUDA where there is a device. An ONNX file chooses for itself.
        max_tokens: most positions of a batch, padding included; None: what suits the device.
        backend: what computes: "torch", "torch-bf16", "onnx", "openvino", "openvino-bf16", or "auto", what `lora-core
            bench` found to be the fastest; of a run ONNX needs what `lora-core export` wrote. None: ONNX Runtime for an
            ONNX file, torch for all else.
        options: for "ner", ``aggregation_strategy`` and ``strict``, see `TokenPipeline.choose`; for the others,
            ``top_k`` and ``threshold``, see `ClassificationPipeline.choose`. A call takes them too, for itself.

    Returns:
        A callable. One input gives its result, a list of inputs a list of results in the same order, any other
        iterable an iterator over results, which reads ahead by a bounded number of inputs.

    Raises:
        ValueError, OSError: there is no such model, it is damaged or does another task, or an option is unknown.
    """
    name = ALIASES.get(task, task) if task is not None else None
    if name is not None and name not in PIPELINES:
        place = f" Is it the model? Then pipeline(model={task!r})." if not model and Path(task or "").exists() else ""
        raise ValueError(f"no pipeline for {task!r}; there are {', '.join([*ALIASES, *PIPELINES])}.{place}")
    if not model:
        raise ValueError("model is missing: a run folder, a model folder, a hub id, or an ONNX file.")
    return pipeline_for(load_served(model, name, device, backend=backend), max_tokens=max_tokens, **options)


def pipeline_for(served: Served, *, max_tokens: int | None = None, **options: Any) -> Pipeline:
    """The same for a model that is loaded already."""
    return PIPELINES[served.task](served, max_tokens=max_tokens, **options)
