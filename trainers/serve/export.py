"""`lora-core export`: a finished run to ONNX files that serve by themselves, and only if they give its results."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from torch import Tensor

from lora_core.export import (
    OnnxModel,
    export_onnx,
    fused_counts,
    parity_batches,
    quantize_onnx,
    read_metadata,
    update_metadata,
    verify_onnx,
    verify_score,
)
from lora_core.export.write import move, remove
from lora_core.files import sha256_of_file
from lora_core.models.task_model import TaskModel
from trainers.data.batches import Data
from trainers.data.images.processing import PREPROCESSOR_FILE
from trainers.data.texts.encode import TEXT_PROCESSING_FILE
from trainers.data.tokenizer import TOKENIZER_FILE
from trainers.finished import FinishedRun
from trainers.show import text_table
from trainers.tasks.decision import DECISION_FILE

PREPROCESSING = (TOKENIZER_FILE, PREPROCESSOR_FILE, DECISION_FILE)
"""Files beside a run's weights that inference needs; an ONNX file holds their text under their names."""

LOGITS_WITHIN = 1e-4
"""Largest difference of a logit between the run's model and the fp32 file."""
POINTS_LOST = 0.5
"""Most points (hundredths) of the metric that int8 may lose on validation data."""
PARITY_EXAMPLES = 64


@dataclass(frozen=True)
class ExportedFile:
    """One file that passed its gate."""

    path: Path
    size: int
    """Bytes, external weights included."""
    nodes: int
    """Nodes of its graph."""
    difference: float | None
    """Largest difference of a logit to the run's model (fp32)."""
    points_lost: float | None
    """Points of the metric lost on validation data; negative: gained (int8)."""
    metric: str
    """What `points_lost` counts, such as f1."""


def export_run(
    folder: str | Path, *, quantize: bool = True, examples: int = 2000, points_lost: float = POINTS_LOST
) -> list[ExportedFile]:
    """Write model.onnx and model.int8.onnx into a run's folder, each checked against the run's model.

    The fp32 file must give the model's logits on validation examples of many lengths, alone and together. The int8
    file must keep the metric on `examples` validation examples, but for `points_lost` (hundredths): with little
    validation data a single example is worth more than the default. A file that fails is deleted.

    Raises:
        ValueError: the run is not finished, its data is not there, or a check failed (the message says by how much).
    """
    folder = Path(folder)
    finished = FinishedRun.open(folder)
    data = finished.sample("validation", examples)
    for path in (finished.files.onnx, finished.files.int8_onnx):  # of an earlier export
        remove(path)
    with TemporaryDirectory(prefix=".export-", dir=folder) as scratch:  # a file has its own name once it is checked
        segments = getattr(data, "token_type_ids", None) is not None
        path = Path(scratch, finished.files.onnx.name)
        path = export_onnx(finished.model, path, metadata=_metadata(finished), segments=segments)
        batches = _parity_batches(finished.model, data)
        difference = verify_onnx(finished.model, path, batches, atol=LOGITS_WITHIN)
        parity = {"logits_within": difference, "allowed": LOGITS_WITHIN, "batches": len(batches)}
        update_metadata(path, {"parity": json.dumps(parity)})
        path = move(path, folder)
        files = [_exported(path, finished.guarded_metric, difference=difference)]
        if quantize:
            reference = finished.score(finished.model, data)
            quantised = quantize_onnx(path, Path(scratch, finished.files.int8_onnx.name))

            def score(model: OnnxModel) -> float:
                return finished.score(model, data)

            lost = verify_score(quantised, score, reference, limit_points=points_lost)
            parity = {"metric": finished.guarded_metric, "reference": reference, "points_lost": lost,
                      "allowed": points_lost, "examples": len(data.lengths)}  # fmt: skip
            update_metadata(quantised, {"parity": json.dumps(parity)})
            files.append(_exported(move(quantised, folder), finished.guarded_metric, points_lost=lost))
    return files


def is_exported(finished: FinishedRun) -> bool:
    """Whether both files are there, come from the run as it is now, and passed their checks.

    Raises:
        ValueError: a file is damaged.
    """
    paths = [finished.files.onnx, finished.files.int8_onnx]
    if not all(path.is_file() for path in paths):
        return False
    origin = _origin(finished)
    return all("parity" in facts and origin.items() <= facts.items() for facts in map(read_metadata, paths))


def export_table(files: list[ExportedFile]) -> str:
    """What was written and how it compares, for the terminal."""
    rows = [("file", "MB", "nodes", "compared with the run's model")]
    for file in files:
        if file.difference is not None:
            result = f"logits within {file.difference:.1e}"
        else:
            assert file.points_lost is not None
            result = f"{file.metric} {-file.points_lost:+.2f} points on validation data"
        rows.append((str(file.path), f"{file.size / 1e6:.1f}", str(file.nodes), result))
    return text_table(rows, left={0, 3})


def file_size(path: Path) -> int:
    """Bytes of an ONNX file and of the external weights beside it."""
    return sum(part.stat().st_size for part in (path, path.with_name(f"{path.name}.data")) if part.is_file())


def _exported(
    path: Path, metric: str, difference: float | None = None, points_lost: float | None = None
) -> ExportedFile:
    return ExportedFile(path, file_size(path), fused_counts(path)["nodes"], difference, points_lost, metric)


def _metadata(finished: FinishedRun) -> dict[str, str]:
    """What serving needs beside the graph, and where the file comes from."""
    files = [finished.weights_folder / name for name in PREPROCESSING]
    texts = {path.name: path.read_text(encoding="utf-8") for path in files if path.is_file()}
    if not texts:
        raise ValueError(f"{finished.weights_folder} holds neither {' nor '.join(PREPROCESSING)}: the run is damaged.")
    if TOKENIZER_FILE in texts:
        texts[TEXT_PROCESSING_FILE] = finished.text_processing.to_json()
    return {**texts, **_origin(finished), "run": finished.run.name, "base_model": Path(finished.config.model).name,
            "data": Path(finished.config.data).name}  # fmt: skip


def _origin(finished: FinishedRun) -> dict[str, str]:
    """What tells this run, trained as it is now, from any other."""
    (weights,) = finished.weights_folder.glob("*.safetensors")
    return {"run_config_sha256": sha256_of_file(finished.run.files.settings),
            "run_weights_sha256": sha256_of_file(weights)}  # fmt: skip


def _parity_batches(model: TaskModel, data: Data) -> list[Mapping[str, Tensor]]:
    """Inputs of real examples, from the shortest to the longest."""
    by_length = np.argsort(data.lengths, kind="stable")
    chosen = by_length[np.linspace(0, len(by_length) - 1, min(PARITY_EXAMPLES, len(by_length))).astype(int)]
    if model.base_model.reads == "images":
        return [data.collate(chosen[:1])[0], data.collate(chosen[:8])[0]]
    if getattr(data, "token_type_ids", None) is not None:
        return [data.collate(part)[0] for part in (chosen[:1], chosen[-1:], chosen[:8], chosen)]
    sequences = [data.collate(chosen[place : place + 1])[0]["input_ids"][0].tolist() for place in range(len(chosen))]
    return list(parity_batches(model, sequences))
