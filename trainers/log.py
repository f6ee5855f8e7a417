"""metrics.jsonl: one JSON object a line, in the order in which things happened."""

import json
import os
from pathlib import Path
from typing import Any

from trainers.distributed import World

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
