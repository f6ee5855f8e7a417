"""The gates: an exported file gives the model's results, or it is deleted.

Shapes: B texts or images, T tokens (padded), L labels.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lora_core.adapters import set_adapter, state_of
from lora_core.export.export import check_model
from lora_core.export.parameters import merged_parameters
from lora_core.export.runtime import OnnxModel
from lora_core.export.write import remove
from lora_core.models.decoding import real_logits
from lora_core.models.encoders.build import assemble
from lora_core.models.task_model import TaskModel

LONGEST = 1024
"""Most tokens of a text that `parity_batches` makes. In a model with room for more, longer texts go through the same
operations, while their check would take memory that grows with the square of the length."""


class PointsLost(ValueError):
    """A file loses more points of a metric than is allowed: ``points``."""

    def __init__(self, message: str, points: float) -> None:
        super().__init__(message)
        self.points = points


def parity_batches(model: TaskModel, sequences: Sequence[Sequence[int]]) -> list[dict[str, Tensor]]:
    """Batches of real texts for `verify_onnx`, at all the lengths that a server meets.

    The batches: the shortest and the longest alone; one of max_tokens, made from all texts on end; all lengths padded
    together; and those with a row of nothing but padding between them. Sequences beyond max_tokens or `LONGEST` are
    cut.

    Args:
        sequences: token ids of whole texts, special tokens included, the more different lengths the better.

    Raises:
        ValueError: there is no text, or an empty one.
    """
    limit, padding = min(model.config.max_tokens, LONGEST), model.config.pad_token_id
    if not sequences or not all(len(ids) for ids in sequences):
        raise ValueError("sequences must hold at least one text, and none that is empty")
    ordered = sorted((list(ids)[:limit] for ids in sequences), key=len)
    step = max(1, len(ordered) // 16)
    varied = list({len(ids): ids for ids in ordered[::step]}.values())
    text = [token for ids in ordered for token in ids]
    longest = (text * (limit // len(text) + 1))[:limit]
    rows = [[ordered[0][:3]], [ordered[0]], [ordered[-1]], [longest], varied, [[], *varied, []], [longest, ordered[0]]]
    return [_padded(batch, padding) for batch in rows]


def verify_onnx(
    model: TaskModel, path: str | Path, batches: Iterable[Mapping[str, Tensor]], *, atol: float = 1e-4
) -> float:
    """Return the largest difference between the logits of ``model`` and those of the fp32 file, over all batches.

    Of padding it is only asked that its logits are finite. A model in half precision is compared as it is in fp32.

    Args:
        batches: the model's inputs: `parity_batches` for text, {"pixel_values": (B, C, height, width)} for images.
        atol: the difference that is allowed.

    Raises:
        ValueError: the difference is above ``atol``, a logit is not finite, or the file cannot be run. The file is
            deleted then.
    """
    check_model(model)
    path = Path(path)
    with _deleted_on_failure(path):
        return _largest_difference(model, OnnxModel(path), batches, atol)


def verify_onnx_adapter(
    model: TaskModel,
    adapter_name: str,
    base: OnnxModel,
    path: str | Path,
    batches: Iterable[Mapping[str, Tensor]],
    *,
    atol: float = 1e-4,
) -> float:
    """Compare one adapter of ``model`` with its file ``path`` on ``base``, as `verify_onnx` does.

    Raises:
        ValueError: as `verify_onnx`. Only the adapter's file is deleted.
    """
    path = Path(path)
    acting = state_of(model).active
    with _deleted_on_failure(path):
        onnx_model = base.load_adapter(path, adapter_name)
        set_adapter(model, adapter_name)
        try:
            return _largest_difference(model, onnx_model, batches, atol)
        finally:
            set_adapter(model, acting)


def verify_score(
    path: str | Path, score: Callable[[OnnxModel], float], reference: float, *, limit_points: float = 0.5
) -> float:
    """Return how many points of a metric the file loses against ``reference`` (negative: it gains).

    Args:
        score: runs a model over validation data and returns the metric, between 0 and 1.
        reference: the metric of the original; a point is 0.01.
        limit_points: the loss that is allowed.

    Raises:
        PointsLost: (a ValueError) the loss is above ``limit_points``, or the score is no number. The file is deleted
            then.
    """
    path = Path(path)
    with _deleted_on_failure(path):
        found = score(OnnxModel(path))
        lost = (reference - found) * 100
        if not lost <= limit_points:
            raise PointsLost(
                f"{path} scores {found:.4f}, the model {reference:.4f}: a loss of {lost:.2f} points, at most "
                f"{limit_points} allowed. The file was deleted; serve the fp32 file",
                lost,
            )
        return lost


def _largest_difference(
    model: TaskModel, onnx_model: OnnxModel, batches: Iterable[Mapping[str, Tensor]], atol: float
) -> float:
    largest, compared = 0.0, 0
    with _evaluating(model) as reference:
        device = next(reference.parameters()).device
        for number, batch in enumerate(batches):
            expected = reference(**{name: tensor.to(device) for name, tensor in batch.items()}).float().cpu()
            found = onnx_model(**batch).cpu()
            shapes = {name: tuple(tensor.shape) for name, tensor in batch.items()}
            if found.shape != expected.shape or not torch.isfinite(found).all():
                raise ValueError(
                    f"{onnx_model.path}: logits {tuple(found.shape)} of batch {number} {shapes} are not those of the "
                    f"model {tuple(expected.shape)}, or hold NaN or infinity. The file was deleted"
                )
            given = batch.get("attention_mask")
            mask = None if given is None else given.cpu().numpy()
            ours, theirs = (real_logits(logits.numpy(), mask) for logits in (found, expected))
            difference = float(np.abs(ours - theirs).max()) if ours.size else 0.0
            if not difference <= atol:
                raise ValueError(
                    f"{onnx_model.path}: logits of batch {number} {shapes} differ from the model's by "
                    f"{difference:.2g}, more than {atol:g}. The file was deleted"
                )
            largest, compared = max(largest, difference), compared + ours.size
    if not compared:
        raise ValueError("no logits to compare: batches are empty. The file was deleted")
    return largest


@contextlib.contextmanager
def _evaluating(model: TaskModel) -> Iterator[TaskModel]:
    """The model in eval mode without gradients; a plain fp32 copy, adapters merged, of one in half precision."""
    training = model.training
    try:
        with torch.inference_mode():
            model.eval()
            if all(parameter.dtype == torch.float32 for parameter in model.parameters()):
                yield model
            else:
                yield _wide_copy(model)
    finally:
        model.train(training)


def _wide_copy(model: TaskModel) -> TaskModel:
    copied = assemble(model.config, model.task, model.labels, head=model.head_kind)
    tensors = merged_parameters(model).tensors
    copied.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in tensors.items()}, assign=True)
    return copied


@contextlib.contextmanager
def _deleted_on_failure(path: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        remove(path)
        raise


def _padded(rows: Sequence[Sequence[int]], padding: int) -> dict[str, Tensor]:
    """ids and mask (B, T) of rows of token ids."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[*row, *[padding] * (width - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}
