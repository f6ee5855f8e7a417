"""The folder of a run: where each of its files is, and what they hold. It needs no torch.

config.json             the resolved settings
run.toml                the same, to train such a run again with --config
inputs.json             digests of what the run was made from (inputs.py)
metrics.jsonl           one JSON object a line, in the order in which things happened, told apart by `event`:
                        `epoch`, and at the very end one `result`
checkpoints/            step-N to resume from, best-N with the weights to keep (training/checkpoints.py)
tracking.json           the run's id for tools that track runs, and how far each has been told (monitor/tracking.py)
set-aside/              here and in checkpoints/: what stood in the way and was not to be deleted
adapter/ or best/       what was trained: LoRA's adapter, or else the whole model
predictions/SPLIT.npz   predicted and true label ids of every example
tokenizer.json          the vocabulary of a model that starts from nothing
report.html, report/, model.onnx, model.int8.onnx, backends.json    what the other verbs write
"""

import json
import logging
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lora_core.files import (
    discard,
    disk_errors,
    make_folder,
    read_json_object,
    remove_abandoned,
    replacing,
    sha256_of_file,
    write_json,
    write_text,
)
from trainers.show import score_text

logger = logging.getLogger("trainers")

SET_ASIDE = "set-aside"
"""The folder beside it that takes what stands in the way."""

MAIN_SCORES = {"f1": "F1", "precision": "precision", "recall": "recall"}
REGRESSION_SCORES = {"pearson": "Pearson correlation", "mse": "squared error", "r2": "R2"}
"""What is shown of a run's scores, and under which names."""


@dataclass(frozen=True)
class RunFolder:
    """The places of a run's files."""

    path: Path

    @property
    def settings(self) -> Path:
        """config.json."""
        return self.path / "config.json"

    @property
    def recipe(self) -> Path:
        """run.toml."""
        return self.path / "run.toml"

    @property
    def inputs(self) -> Path:
        """inputs.json."""
        return self.path / "inputs.json"

    @property
    def metrics(self) -> Path:
        """metrics.jsonl."""
        return self.path / "metrics.jsonl"

    @property
    def tracking(self) -> Path:
        """tracking.json."""
        return self.path / "tracking.json"

    @property
    def tensorboard(self) -> Path:
        """The folder of TensorBoard's curves."""
        return self.path / "tensorboard"

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
    def report_files(self) -> Path:
        """report/, the pictures and numbers of report.html."""
        return self.path / "report"

    @property
    def onnx(self) -> Path:
        """The exported model in fp32."""
        return self.path / "model.onnx"

    @property
    def int8_onnx(self) -> Path:
        """The exported model in int8."""
        return self.path / "model.int8.onnx"

    @property
    def backends(self) -> Path:
        """backends.json: which ways to serve it were measured where (serve/backends.py)."""
        return self.path / "backends.json"

    def weights(self, method: str) -> Path:
        """The folder with what a run of this method trained."""
        return self.path / ("adapter" if method == "lora" else "best")

    def predictions(self, split: str) -> Path:
        """The predictions for a split."""
        return self.path / "predictions" / f"{split}.npz"

    def saved(self, kind: str) -> list[tuple[int, Path]]:
        """(N, folder) of the folders checkpoints/KIND-N, largest N first.

        What only looks like one (step-007, step-abc, a file, a link) is none of ours and is passed over.
        """
        try:
            with os.scandir(self.checkpoints) as entries:
                found = [
                    (int(match[1]), Path(entry.path))
                    for entry in entries
                    if (match := re.fullmatch(rf"{kind}-(0|[1-9][0-9]*)", entry.name))
                    and entry.is_dir(follow_symlinks=False)
                ]
        except FileNotFoundError:
            return []
        return sorted(found, reverse=True)

    def is_run(self) -> bool:
        """Whether a run was begun here."""
        return self.settings.is_file() and self.metrics.is_file()

    def result(self) -> dict[str, Any] | None:
        """The result with which a finished run's metrics.jsonl ends; None: the run has not come to its end."""
        if not self.metrics.is_file():
            return None
        last = self.metrics.read_text(encoding="utf-8", errors="replace").splitlines()[-1:]
        event = _event(last[0]) if last else {}  # a run that is killed while it writes leaves half a line
        return event if event.get("event") == "result" else None

    def epochs(self) -> list[dict[str, Any]]:
        """The `epoch` events of metrics.jsonl so far, of a run that may still write; torn lines are left out."""
        if not self.metrics.is_file():
            return []
        lines = self.metrics.read_text(encoding="utf-8", errors="replace").splitlines()
        return [event for line in lines if (event := _event(line)).get("event") == "epoch"]

    def is_finished(self, score_test: bool = False) -> bool:
        """Whether the run came to its end.

        Args:
            score_test: whether that includes the scores of its test split, where it has one.
        """
        result = self.result()
        return result is not None and (not score_test or result.get("score_test", True))

    def written(self, method: str, splits: Iterable[str]) -> dict[str, str]:
        """sha256 of each file that a run leaves behind: what it trained with what inference needs, and predictions.

        The card is for its users to change.
        """
        beside = self.weights(method).rglob("*")
        paths = [path for path in beside if path.is_file() and not path.name.startswith(".") and path.suffix != ".md"]
        paths += [self.predictions(split) for split in splits]
        return {path.relative_to(self.path).as_posix(): sha256_of_file(path) for path in sorted(paths)}

    def lost(self, method: str) -> dict[str, str]:
        """What a finished run wrote and is no more as it was: for each file "gone", "empty" or "changed"."""
        result = self.result() or {}
        if "files" not in result:  # the run is older than the digests
            found = [path for path in self.weights(method).glob("*.safetensors") if path.stat().st_size]
            return {} if found else {f"{self.weights(method).name}/": "gone"}
        lost = {}
        for name, digest in result["files"].items():
            path = self.path / name
            if not path.is_file():
                lost[name] = "gone"
            elif not path.stat().st_size:
                lost[name] = "empty"
            elif sha256_of_file(path) != digest:
                lost[name] = "changed"
        return lost

    def remove_abandoned(self) -> None:
        """Remove the unfinished files of processes of this machine that were killed."""
        places = (self.path, self.checkpoints, self.weights("lora"), self.weights("full"), self.path / "predictions")
        removed = [path for place in places for path in remove_abandoned(place)]
        if removed:
            listed = ", ".join(str(path.relative_to(self.path)) for path in removed)
            logger.info("%s: removed what a killed process had not finished: %s", self.path, listed)

    def check_writable(self) -> None:
        """Raise ValueError where the folder is not there and cannot be made, or cannot be written to."""
        nearest = next(path for path in (self.path, *self.path.absolute().parents) if path.exists())
        if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
            what = "cannot be written to" if nearest.is_dir() else "is a file"
            raise ValueError(f"--output-dir {self.path} cannot be used: {nearest} {what}. Choose another folder.")

    def remove(self) -> None:
        """Delete what a run wrote here and nothing else; but for tokenizer.json, which the next may have replaced."""
        for _, path in (*self.saved("step"), *self.saved("best")):
            discard(path)
        if self.checkpoints.is_dir() and not any(self.checkpoints.iterdir()):
            self.checkpoints.rmdir()
        for folder in (
            self.weights("lora"),
            self.weights("full"),
            self.path / "predictions",
            self.tensorboard,
            self.report_files,
        ):
            if folder.is_dir():
                discard(folder)
        # Last what makes it a run: killed on the way, it can still be overwritten.
        for path in (
            *(self.report, self.onnx, self.int8_onnx, self.backends, self.tracking),
            *(self.inputs, self.recipe, self.settings, self.metrics),
        ):
            path.unlink(missing_ok=True)

    def write_settings(self, settings: dict[str, Any]) -> None:
        """Write config.json; the folder is made if need be."""
        write_json(self.settings, settings)

    def read_settings(self) -> dict[str, Any]:
        """The content of config.json. ValueError when it is damaged."""
        return read_json_object(self.settings, "It was written when the run began: restore it, or train again.")

    def write_inputs(self, inputs: dict[str, Any]) -> None:
        """Write inputs.json; the folder is made if need be."""
        write_json(self.inputs, inputs)

    def read_inputs(self) -> dict[str, Any]:
        """The content of inputs.json; nothing where an older version began the run. ValueError when it is damaged."""
        if not self.inputs.exists():
            return {}
        remedy = "It was written when the run began: restore it, or delete it to go on without its comparison."
        inputs = read_json_object(self.inputs, remedy)
        if not isinstance(inputs.get("data"), dict) or "run" not in inputs:
            raise ValueError(f"{self.inputs} has the entries {sorted(inputs)}, expected data, run and others. {remedy}")
        return inputs

    def read_tracking(self) -> dict[str, Any]:
        """The content of tracking.json; nothing where nothing has been tracked. ValueError when it is damaged."""
        if not self.tracking.exists():
            return {}
        return read_json_object(self.tracking, "Restore it, or delete it to track the run under a new id.")

    def run_id(self) -> str:
        """What tells this run's checkpoints from those of runs with other settings or inputs; empty: nothing does."""
        return str(self.read_inputs().get("run", ""))


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

    @property
    def summary(self) -> str:
        """Its scores in one line."""
        split = "test" if "test" in self.result else "validation"
        scores = self.result[split]
        names = MAIN_SCORES if "f1" in scores else REGRESSION_SCORES
        shown = ", ".join(f"{name} {score_text(key, scores[key])}" for key, name in names.items())
        return f"{split}: {shown} (in percent); all figures in {self.files.metrics}"


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
            f"The run in {folder} has not finished: {reached}, and {files.metrics} does not end with a result. Wait "
            "for it; or if it was interrupted, repeat its command with --resume auto, which does what is left, or end "
            f"it where it is: lora-core finish {folder}."
        )
    return Run(folder, folder.resolve().name, config, [epochs[number] for number in sorted(epochs)], events[-1])


def set_aside(path: Path) -> Path:
    """Move a file or a folder into set-aside/ beside it, under a name that is free there, and return that."""
    folder = make_folder(path.parent / SET_ASIDE)
    names = (path.name, *(f"{path.name}.{number}" for number in range(1, len(os.listdir(folder)) + 2)))
    free = next(folder / name for name in names if not os.path.lexists(folder / name))
    os.rename(path, free)
    return free


def save_predictions(folder: str | Path, split: str, predicted: list[np.ndarray], gold: list[np.ndarray]) -> Path:
    """Write the predicted and true label ids of each example to predictions/<split>.npz, one after another."""
    path = RunFolder(Path(folder)).predictions(split)
    make_folder(path.parent)
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

    A run that resumes first drops what was logged after its checkpoint, so that nothing stands twice, and the result:
    it is finished no more.
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
            text = self._path.read_text(encoding="utf-8", errors="replace") if self._path.is_file() else ""
            kept = [line for line in text.splitlines() if _is_before(line, resume_at)] if resume_at else []
            write_text(self._path, "".join(f"{line}\n" for line in kept))

    def write(self, event: str, **values: Any) -> None:
        """Append one event, and wait until the disk has it."""
        if self._path is not None:
            with disk_errors(self._path), self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"event": event, **values}) + "\n")
                file.flush()
                os.fsync(file.fileno())

    def epochs(self) -> list[dict[str, Any]]:
        """The epochs written so far; nothing on a process that does not write."""
        return [] if self._path is None else RunFolder(self._path.parent).epochs()


def _is_before(line: str, step: int) -> bool:
    """Whether a line of the log is an event up to this step of a run that is not finished."""
    event = _event(line)
    at = event.get("step")
    return isinstance(at, int) and at <= step and event.get("event") != "result"


def _event(line: str) -> dict[str, Any]:
    """A line of the log; nothing where it is torn."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return event if isinstance(event, dict) else {}


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
