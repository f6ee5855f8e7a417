"""The task of a run, by the name that its settings give."""

from trainers.tasks import image, text, token
from trainers.tasks.task import Kind

KINDS: dict[str, Kind] = {"token-classification": token, "text-classification": text, "image-classification": image}


def kind_of(task: str) -> Kind:
    """Raises ValueError for a task that has no kind."""
    if task not in KINDS:
        raise ValueError(f"task {task!r} cannot be trained; there are {', '.join(KINDS)}.")
    return KINDS[task]
