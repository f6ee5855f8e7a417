"""`lora-core export`: a finished run to ONNX files that serve by themselves, and only if they give its results."""

import json
import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, get_args

import numpy as np
from torch import Tensor

from lora_core.export import (
    PointsLost,
    export_onnx,
    fused_counts,
    parity_batches,
    quantize_onnx,
    read_metadata,
    update_metadata,
    verify_onnx,
    verify_score,
)
from lora_core.export.session import activations_of
from lora_core.export.write import move, remove
from lora_core.models.task_model import TaskModel
from trainers.data.batches import Data, evaluation_batches
from trainers.data.images.processing import PREPROCESSOR_FILE
from trainers.data.labels import DECISION_FILE
from trainers.data.texts.encode import TEXT_PROCESSING_FILE
from trainers.data.tokenizer import TOKENIZER_FILE
from trainers.finished import FinishedRun
from trainers.serve.backends import origin_of
from trainers.show import fitted_table

logger = logging.getLogger("trainers")

PREPROCESSING = (TOKENIZER_FILE, PREPROCESSOR_FILE, DECISION_FILE)
"""Files beside a run's weights that inference needs; an ONNX file holds their text under their names."""

LOGITS_WITHIN = 1e-4
"""Largest difference of a logit between the run's model and the fp32 file."""
POINTS_LOST = 0.5
"""Most points (hundredths) of the metric that int8 may lose on validation data."""
PARITY_EXAMPLES = 64
CALIBRATION_INPUTS = 300
"""Most inputs that the ranges of static int8 are measured on."""

Activations = Literal["auto", "static", "dynamic"]
"""How int8 scales activations; auto: static, unless only dynamic scales keep the metric."""


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
    activations: str = ""
    """How int8 scales them: static or dynamic."""


def export_run(
    folder: str | Path,
    *,
    quantize: bool = True,
    examples: int = 2000,
    points_lost: float = POINTS_LOST,
    activations: Activations = "auto",
) -> list[ExportedFile]:
    """Write model.onnx and model.int8.onnx into a run's folder, each checked against the run's model.

    The fp32 file must give the model's logits on validation examples of many lengths, alone and together. The int8
    file must keep the metric on `examples` validation examples, but for `points_lost` (hundredths): with little
    validation data a single example is worth more than the default. A file that fails is deleted. Those of
    an earlier export stay until the fp32 file is checked.

    Args:
        activations: static sets their scales by `CALIBRATION_INPUTS` training inputs, drawn with the run's seed, so
            that no input's result depends on its batch; dynamic finds them on the way. auto takes static, and dynamic
            where static scales lose too many points and dynamic ones do not, which is said.

    Raises:
        ValueError: the run is not finished, its data is not there, or a check failed (the message says by how much).
    """
    if activations not in get_args(Activations):
        raise ValueError(f"activations is {activations!r}; expected one of {', '.join(get_args(Activations))}.")
    folder = Path(folder)
    finished = FinishedRun.open(folder)
    data = finished.sample("validation", examples)
    with TemporaryDirectory(prefix=".export-", dir=folder) as scratch:  # a file has its own name once it is checked
        segments = getattr(data, "token_type_ids", None) is not None
        path = Path(scratch, finished.files.onnx.name)
        path = export_onnx(finished.model, path, metadata=_metadata(finished), segments=segments)
        batches = _parity_batches(finished.model, data)
        difference = verify_onnx(finished.model, path, batches, atol=LOGITS_WITHIN)
        parity = {"logits_within": difference, "allowed": LOGITS_WITHIN, "batches": len(batches)}
        update_metadata(path, {"parity": json.dumps(parity)})
        for earlier in (finished.files.onnx, finished.files.int8_onnx):
            remove(earlier)
        path = move(path, folder)
        files = [_exported(path, finished.guarded_metric, difference=difference)]
        if quantize:
            try:
                files.append(_export_int8(finished, data, Path(scratch), points_lost, activations))
            except PointsLost as error:
                raise PointsLost(
                    f"{finished.files.int8_onnx} is not written: int8 loses {error.points:.2f} points of "
                    f"{finished.guarded_metric} on {len(data.lengths):,} validation examples, at most {points_lost:g} "
                    f"may be lost. {path}, in fp32, is there and checked. --points-lost allows more: of few examples "
                    "one alone is worth more than that.",
                    error.points,
                ) from error
    return files


def _export_int8(
    finished: FinishedRun, data: Data, scratch: Path, points_lost: float, activations: Activations
) -> ExportedFile:
    """Write the int8 file, with the first way to scale activations that keeps the metric.

    Args:
        data: what the metric is computed on.
        scratch: where a file lies until it is checked.

    Raises:
        PointsLost: no way that `activations` allows keeps the metric.
    """
    metric, reference = finished.guarded_metric, finished.score(finished.model, data)

    def checked(scales: str) -> ExportedFile:
        split = _calibration_split(finished) if scales == "static" else ""
        path = scratch / finished.files.int8_onnx.name
        quantize_onnx(finished.files.onnx, path, _calibration(finished, split) if split else None)
        lost = verify_score(path, lambda model: finished.score(model, data), reference, limit_points=points_lost)
        parity = {"metric": metric, "reference": reference, "points_lost": lost, "allowed": points_lost,
                  "examples": len(data.lengths)}  # fmt: skip
        update_metadata(path, {"parity": json.dumps(parity), **({"calibration_split": split} if split else {})})
        return _exported(move(path, finished.files.path), metric, points_lost=lost)

    if activations != "auto":
        return checked(activations)
    try:
        return checked("static")
    except PointsLost as static:
        try:
            file = checked("dynamic")
        except PointsLost as dynamic:
            raise min(static, dynamic, key=lambda lost: (math.isnan(lost.points), lost.points)) from None
        logger.warning(
            "int8 has dynamic scales, which lose %.2f points of %s; static ones lose %.2f, at most %g are allowed. "
            "Scores depend a little on the batch then (predict: --max-tokens 1)",
            file.points_lost,
            metric,
            static.points,
            points_lost,
        )
        return file


def _calibration_split(finished: FinishedRun) -> str:
    """The split whose inputs set static scales: the training data, where it is there."""
    return "train" if "train" in finished.datasets else "validation"


def _calibration(finished: FinishedRun, split: str) -> Iterator[dict[str, Tensor]]:
    """Batches of `CALIBRATION_INPUTS` inputs of a split: of long texts that are cut into windows, some windows."""
    data = finished.sample(split, CALIBRATION_INPUTS)
    chosen = np.linspace(0, len(data.lengths) - 1, min(CALIBRATION_INPUTS, len(data.lengths))).astype(int)
    lengths = data.lengths[chosen]
    for places in evaluation_batches(lengths, finished.config.evaluation_tokens(lengths)):
        yield data.collate(chosen[places])[0]


def is_exported(finished: FinishedRun) -> bool:
    """Whether both files are there, come from the run as it is now, and passed their checks.

    Raises:
        ValueError: a file is damaged.
    """
    paths = [finished.files.onnx, finished.files.int8_onnx]
    if not all(path.is_file() for path in paths):
        return False
    origin = origin_of(finished.files)
    return all("parity" in facts and origin.items() <= facts.items() for facts in map(read_metadata, paths))


def export_table(files: list[ExportedFile]) -> str:
    """What was written and how it compares, for the terminal."""
    rows = [("file", "MB", "nodes", "compared with the run's model")]
    for file in files:
        if file.difference is not None:
            result = f"logits within {file.difference:.1e}"
        else:
            assert file.points_lost is not None
            lost = f"loses {file.points_lost:.2f}" if file.points_lost > 0 else f"gains {-file.points_lost:.2f}"
            result = f"{lost} points of {file.metric} on validation data, {file.activations} scales"
        rows.append((str(file.path), f"{file.size / 1e6:.1f}", str(file.nodes), result))
    return fitted_table(rows, left={0, 3})


def file_size(path: Path) -> int:
    """Bytes of an ONNX file and of the external weights beside it."""
    return sum(part.stat().st_size for part in (path, path.with_name(f"{path.name}.data")) if part.is_file())


def _exported(
    path: Path, metric: str, difference: float | None = None, points_lost: float | None = None
) -> ExportedFile:
    nodes, activations = fused_counts(path)["nodes"], activations_of(read_metadata(path))
    return ExportedFile(path, file_size(path), nodes, difference, points_lost, metric, activations)


def _metadata(finished: FinishedRun) -> dict[str, str]:
    """What serving needs beside the graph, and where the file comes from."""
    files = [finished.weights_folder / name for name in PREPROCESSING]
    texts = {path.name: path.read_text(encoding="utf-8") for path in files if path.is_file()}
    if not texts:
        raise ValueError(f"{finished.weights_folder} holds neither {' nor '.join(PREPROCESSING)}: the run is damaged.")
    if TOKENIZER_FILE in texts:
        texts[TEXT_PROCESSING_FILE] = finished.text_processing.to_json()
    return {**texts, **origin_of(finished.files), "run": finished.run.name,
            "base_model": Path(finished.config.model).name, "data": Path(finished.config.data).name}  # fmt: skip


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
