"""Which examples go into which batch, on which rank.

Everything follows from (seed, epoch), so a run can resume. Batches hold examples of similar length, which
saves most padding, and come in random order.
"""

import numpy as np


def epoch_batches(lengths: np.ndarray, batch_size: int, *, seed: int, epoch: int, group: int = 50) -> list[np.ndarray]:
    """The global batches of one epoch: index arrays (batch_size,) int64, every index exactly once.

    Examples are shuffled, sorted by length inside windows of `group` batches, cut into batches, and the
    batches shuffled. `group=1` is plain shuffling. The last batch holds the remainder and may be short.
    Within a batch, examples are sorted by length, which lets `share` deal evenly.
    """
    _check_batch_size(batch_size)
    if group < 1:
        raise ValueError(f"group={group}: expected at least 1 batch (1 means plain shuffling).")
    lengths = np.asarray(lengths)
    generator = np.random.default_rng((seed, epoch))
    order = generator.permutation(len(lengths))
    full = len(order) // batch_size * batch_size
    window = group * batch_size
    batches = []
    for start in range(0, full, window):
        indices = _sorted_by_length(order[start : min(start + window, full)], lengths)
        batches.extend(np.split(indices, len(indices) // batch_size))
    batches = [batches[index] for index in generator.permutation(len(batches))]
    if full < len(order):
        batches.append(_sorted_by_length(order[full:], lengths))
    return batches


def share(batch: np.ndarray, rank: int, world: int, micro_batches: int) -> list[np.ndarray]:
    """This rank's micro-batches of one global batch: always `micro_batches` index arrays.

    Over all ranks every index comes exactly once. A batch in order of length is dealt like cards, so ranks
    get nearly equal lengths, and a rank's micro-batches are cut in that order, so each needs little padding.
    When the batch has fewer examples than there are places (world x micro_batches), some arrays are empty:
    the caller must still take part in the gradient exchange of that step.
    """
    _check_rank(rank, world)
    if micro_batches < 1:
        raise ValueError(f"micro_batches={micro_batches}: expected at least 1.")
    return np.array_split(np.asarray(batch)[rank::world], micro_batches)


def evaluation_batches(lengths: np.ndarray, batch_size: int, rank: int = 0, world: int = 1) -> list[np.ndarray]:
    """This rank's evaluation batches, longest first; over the ranks every index comes exactly once."""
    _check_batch_size(batch_size)
    _check_rank(rank, world)
    lengths = np.asarray(lengths)
    order = _sorted_by_length(np.arange(len(lengths)), lengths)[::-1]
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)][rank::world]


def _sorted_by_length(indices: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    return indices[np.argsort(lengths[indices], kind="stable")]


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: expected at least 1.")


def _check_rank(rank: int, world: int) -> None:
    if not 0 <= rank < world:
        raise ValueError(f"rank={rank} of world={world}: expected a rank from 0 to world - 1.")
