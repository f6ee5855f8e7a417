"""A whole run: data, model, adapters, training, test scores, and the run folder."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainers.training.distributed import World

# DOC """Reading the folder that a training run leaves behind.
#
# `config.json` holds the resolved settings. `metrics.jsonl` holds one JSON object per line, in the order in
# which things happened, told apart by `event`: `epoch`, and at the very end one `result`.
# """

# DOC """metrics.jsonl: one JSON object a line, in the order in which things happened."""

CONFIG_FILE = "config.json"


@dataclass(frozen=True)
class Run:
    """A finished training run."""

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


def read_run(folder: str | Path) -> Run:
    """Read a finished run.

    After an interruption an epoch may have been logged twice: the later entry counts.

    Raises:
        ValueError: the folder is not that of a run, the run has not finished, or a file is damaged.
    """
    folder = Path(folder)
    for name in ("config.json", "metrics.jsonl"):
        if not (folder / name).is_file():
            raise ValueError(
                f"{folder} is not the folder of a run: it has no {name}. "
                "Pass the folder that training wrote, the one with config.json and metrics.jsonl in it."
            )
    config = _json_object((folder / "config.json").read_text(encoding="utf-8"), str(folder / "config.json"))
    events = _read_events(folder / "metrics.jsonl")
    epochs = {event["epoch"]: event for event in events if event["event"] == "epoch"}
    if not events or events[-1]["event"] != "result":
        reached = f"its last finished epoch is {max(epochs)}" if epochs else "it has finished no epoch"
        raise ValueError(
            f"The run in {folder} has not finished: {reached}, and {folder / 'metrics.jsonl'} does not end "
            "with a result. Wait for it, or resume it if it was interrupted."
        )
    epochs_in_order = [epochs[number] for number in sorted(epochs)]
    return Run(folder, folder.resolve().name, config, epochs_in_order, events[-1])


def save_predictions(folder: Path, split: str, predicted: list[np.ndarray], gold: list[np.ndarray]) -> Path:
    """Write the predicted and true label ids of each example to predictions/<split>.npz, one after another."""
    path = _predictions_file(folder, split)
    path.parent.mkdir(exist_ok=True)
    offsets = np.cumsum([0, *map(len, gold)])
    np.savez_compressed(path, predicted=np.concatenate(predicted), gold=np.concatenate(gold), offsets=offsets)
    return path


def has_predictions(run: Run, split: str) -> bool:
    """Whether the run saved its predictions of the split."""
    return _predictions_file(run.folder, split).is_file()


def read_predictions(folder: str | Path, split: str = "test") -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Predicted and true label ids of each sentence, text or image of a split.

    Raises:
        ValueError: the run has written none.
    """
    path = _predictions_file(folder, split)
    if not path.is_file():
        raise ValueError(f"{path} does not exist: repeat the run with this version to have its predictions.")
    with np.load(path, allow_pickle=False) as arrays:
        cuts = arrays["offsets"][1:-1]
        return np.split(arrays["predicted"], cuts), np.split(arrays["gold"], cuts)


def _predictions_file(folder: str | Path, split: str) -> Path:
    return Path(folder, "predictions", f"{split}.npz")


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


METRICS_FILE = "metrics.jsonl"


class MetricsLog:
    """Appends events to a run's metrics.jsonl, on the main process only.

    A run that resumes first drops what was logged after its checkpoint, so that nothing stands twice.
    """

    def __init__(self, folder: Path, world: World, resume_at: int = 0) -> None:
        self._path = folder / METRICS_FILE if world.is_main else None
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            lines = self._path.read_text(encoding="utf-8").splitlines() if self._path.is_file() else []
            kept = [line for line in lines if _step(line) <= resume_at] if resume_at else []
            temporary = self._path.with_suffix(".tmp")
            temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
            os.replace(temporary, self._path)

    def write(self, event: str, **values: Any) -> None:
        """Append one event and flush it to the file."""
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"event": event, **values}) + "\n")


def _step(line: str) -> float:
    """The step of a logged event; a torn last line counts as later than any."""
    try:
        return json.loads(line).get("step", float("inf"))
    except json.JSONDecodeError:
        return float("inf")
