"""The folder of a run: where each of its files is, and what they hold. It needs no torch.

config.json             the resolved settings
metrics.jsonl           one JSON object a line, in the order in which things happened, told apart by `event`:
                        `epoch`, and at the very end one `result`
checkpoints/            step-N to resume from, best-N with the weights to keep (training/checkpoints.py)
adapter/ or best/       what was trained: LoRA's adapter, or else the whole model
predictions/SPLIT.npz   predicted and true label ids of every example
tokenizer.json          the vocabulary of a model that starts from nothing
report.html, model.onnx, model.int8.onnx    what the other verbs write
"""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lora_core.files import disk_errors, read_json_object, replacing, write_json, write_text


@dataclass(frozen=True)
class RunFolder:
    """The places of a run's files."""

    path: Path

    @property
    def settings(self) -> Path:
        """config.json."""
        return self.path / "config.json"

    @property
    def metrics(self) -> Path:
        """metrics.jsonl."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def tokenizer(self) -> Path:
        """tokenizer.json of a model that starts from nothing."""
        return self.path / "tokenizer.json"

    @property
    def report(self) -> Path:
        """report.html."""
        return self.path / "report.html"

    @property
    def onnx(self) -> Path:
        """The exported model in fp32."""
        return self.path / "model.onnx"

    @property
    def int8_onnx(self) -> Path:
        """The exported model in int8."""
        return self.path / "model.int8.onnx"

    def weights(self, method: str) -> Path:
        """The folder with what a run of this method trained."""
        return self.path / ("adapter" if method == "lora" else "best")

    def predictions(self, split: str) -> Path:
        """The predictions for a split."""
        return self.path / "predictions" / f"{split}.npz"

    def is_run(self) -> bool:
        """Whether a run was begun here."""
        return self.settings.is_file() and self.metrics.is_file()

    def is_finished(self) -> bool:
        """Whether the run came to its end."""
        lines = self.metrics.read_text(encoding="utf-8").splitlines() if self.metrics.is_file() else []
        try:
            return bool(lines) and json.loads(lines[-1])["event"] == "result"
        except json.JSONDecodeError:  # the run was killed while it wrote its last line
            return False

    def check_writable(self) -> None:
        """Raise ValueError where the folder is not there and cannot be made, or cannot be written to."""
        nearest = next(path for path in (self.path, *self.path.absolute().parents) if path.exists())
        if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
            what = "cannot be written to" if nearest.is_dir() else "is a file"
            raise ValueError(f"--output-dir {self.path} cannot be used: {nearest} {what}. Choose another folder.")

    def remove(self) -> None:
        """Delete what a run wrote here and nothing else; but for tokenizer.json, which the next may have replaced."""
        for path in (self.settings, self.metrics, self.report, self.onnx, self.int8_onnx):
            path.unlink(missing_ok=True)
        for folder in (self.checkpoints, self.weights("lora"), self.weights("full"), self.path / "predictions"):
            if folder.is_dir():
                shutil.rmtree(folder)

    def write_settings(self, settings: dict[str, Any]) -> None:
        """Write config.json; the folder is made if need be."""
        write_json(self.settings, settings)

    def read_settings(self) -> dict[str, Any]:
        """The content of config.json. ValueError when it is damaged."""
        return read_json_object(self.settings, "It was written when the run began: restore it, or train again.")


@dataclass(frozen=True)
class Run:
    """A finished training run, as its files tell it."""

    folder: Path
    """Where it was read from."""
    name: str
    """The folder's own name."""
    config: dict[str, Any]
    """The settings of the run, as in `config.json`."""
    epochs: list[dict[str, Any]]
    """The `epoch` events, by epoch number: `train_loss`, `validation` (loss and scores), `seconds`, ..."""
    result: dict[str, Any]
    """The `result` event: `test` and `validation` scores, parameter counts, `seconds`, ..."""

    @property
    def files(self) -> RunFolder:
        """The places of its files."""
        return RunFolder(self.folder)


def read_run(folder: str | Path) -> Run:
    """Read a finished run.

    After an interruption an epoch may have been logged twice: the later entry counts.

    Raises:
        ValueError: the folder is not that of a run, the run has not finished, or a file is damaged.
    """
    folder = Path(folder)
    files = RunFolder(folder)
    for path in (files.settings, files.metrics):
        if not path.is_file():
            raise ValueError(
                f"{folder} is not the folder of a run: it has no {path.name}. "
                "Pass the folder that training wrote, the one with config.json and metrics.jsonl in it."
            )
    config = files.read_settings()
    events = _read_events(files.metrics)
    epochs = {event["epoch"]: event for event in events if event["event"] == "epoch"}
    if not events or events[-1]["event"] != "result":
        reached = f"its last finished epoch is {max(epochs)}" if epochs else "it has finished no epoch"
        raise ValueError(
            f"The run in {folder} has not finished: {reached}, and {files.metrics} does not end "
            "with a result. Wait for it, or resume it if it was interrupted."
        )
    return Run(folder, folder.resolve().name, config, [epochs[number] for number in sorted(epochs)], events[-1])


def save_predictions(folder: str | Path, split: str, predicted: list[np.ndarray], gold: list[np.ndarray]) -> Path:
    """Write the predicted and true label ids of each example to predictions/<split>.npz, one after another."""
    path = RunFolder(Path(folder)).predictions(split)
    path.parent.mkdir(exist_ok=True)
    offsets = np.cumsum([0, *map(len, gold)])
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, predicted=np.concatenate(predicted), gold=np.concatenate(gold), offsets=offsets)
    return path


def has_predictions(run: Run, split: str) -> bool:
    """Whether the run saved its predictions of the split."""
    return run.files.predictions(split).is_file()


def read_predictions(folder: str | Path, split: str = "test") -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Predicted and true label ids of each sentence, text or image of a split.

    Raises:
        ValueError: the run has written none.
    """
    path = RunFolder(Path(folder)).predictions(split)
    if not path.is_file():
        raise ValueError(f"{path} does not exist: repeat the run with this version to have its predictions.")
    with np.load(path, allow_pickle=False) as arrays:
        cuts = arrays["offsets"][1:-1]
        return np.split(arrays["predicted"], cuts), np.split(arrays["gold"], cuts)


class MetricsLog:
    """Appends events to a run's metrics.jsonl.

    A run that resumes first drops what was logged after its checkpoint, so that nothing stands twice.
    """

    def __init__(self, folder: Path, *, resume_at: int = 0, writes: bool = True) -> None:
        """
        Args:
            folder: the run folder, which is made if need be.
            resume_at: the checkpoint's step; 0 begins a new log.
            writes: whether this process is the one that writes; the others do nothing.
        """
        self._path = RunFolder(folder).metrics if writes else None
        if self._path is not None:
            lines = self._path.read_text(encoding="utf-8").splitlines() if self._path.is_file() else []
            kept = [line for line in lines if _step(line) <= resume_at] if resume_at else []
            write_text(self._path, "".join(f"{line}\n" for line in kept))

    def write(self, event: str, **values: Any) -> None:
        """Append one event and flush it to the file."""
        if self._path is not None:
            with disk_errors(self._path), self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"event": event, **values}) + "\n")


def _step(line: str) -> float:
    """The step of a logged event; a torn last line counts as later than any."""
    try:
        return json.loads(line).get("step", float("inf"))
    except json.JSONDecodeError:
        return float("inf")


def _read_events(path: Path) -> list[dict[str, Any]]:
    events = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            event = _json_object(line, f"{path}:{number}")
            if "event" not in event or (event["event"] == "epoch" and "epoch" not in event):
                raise ValueError(
                    f"{path}:{number} has the keys {sorted(event)}; expected 'event', and in an epoch event "
                    "also 'epoch'. The file was not written by training, or was edited."
                )
            events.append(event)
    return events


def _json_object(text: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{where} is not valid JSON ({error}): {text[:80]!r}. "
            "A run that was stopped while writing leaves such a line: resume or repeat the run."
        ) from error
    if not isinstance(value, dict):
        raise ValueError(f"{where} holds {type(value).__name__} instead of a JSON object: {text[:80]!r}.")
    return value
