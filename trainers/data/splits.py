"""Some examples of a data set, whatever its task."""

import dataclasses
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike

# DOC """Splits in which every entity type has its share, although a sentence may hold several types.
#
# Iterative stratification: Sechidis, Tsoumakas, Vlahavas, "On the stratification of multi-label data" (2011). Here
# the examples are groups of equal sentences, which stay together, and the shares are shares of entities.
# """

AnyDataset = TypeVar("AnyDataset")


def take(dataset: AnyDataset, indices: np.ndarray) -> AnyDataset:
    """The examples at these indices, as a data set of the same kind.

    A data set is a dataclass whose lists and arrays have an entry for each example; its labels are a tuple.
    """
    assert dataclasses.is_dataclass(dataset)
    assert not isinstance(dataset, type)
    chosen = {}
    for field in dataclasses.fields(dataset):
        values = getattr(dataset, field.name)
        if isinstance(values, np.ndarray):
            chosen[field.name] = values[indices]
        elif isinstance(values, list):
            chosen[field.name] = [values[index] for index in indices]
    assert chosen, f"{type(dataset).__name__} has no lists or arrays of examples"
    return dataclasses.replace(dataset, **chosen)


def stratified(dataset: AnyDataset, targets: np.ndarray, limit: int, seed: int = 0) -> AnyDataset:
    """At most `limit` examples, drawn at random and left in order, in which each label has its share to one example.

    `targets` (N,): the examples' label ids.
    """
    if len(targets) <= limit:
        return dataset
    generator = np.random.default_rng(seed)
    labels, counts = np.unique(targets, return_counts=True)
    exact = counts * limit / len(targets)
    sizes = np.floor(exact).astype(np.int64)
    sizes[np.argsort(sizes - exact, kind="stable")[: limit - sizes.sum()]] += 1  # the largest remainders
    chosen = [generator.choice(np.flatnonzero(targets == label), size, replace=False)
              for label, size in zip(labels, sizes, strict=True)]  # fmt: skip
    return take(dataset, np.sort(np.concatenate(chosen)))


def sample(dataset: AnyDataset, size: int, limit: int, seed: int) -> AnyDataset:
    """At most `limit` of the data set's `size` examples, drawn at random and left in order."""
    if limit < 1:
        raise ValueError(f"limit={limit}: expected at least 1 example.")
    if size <= limit:
        return dataset
    return take(dataset, np.sort(np.random.default_rng(seed).choice(size, limit, replace=False)))


def stratified_split(
    group_of_row: np.ndarray, type_counts: tuple[np.ndarray, np.ndarray], shares: ArrayLike, seed: int
) -> np.ndarray:
    """The split of every row, (N,) uint8.

    `group_of_row` (N,): rows of one group go into one split. `type_counts`: the entities as two arrays (E,), the row
    and the type of each. `shares` (S,): of each type's entities and of all rows, summing to 1.

    From the rarest type on, each group with that type goes to the split that lacks most of it; then the groups
    without entities fill up what the splits lack in rows.
    """
    shares = np.asarray(shares, dtype=np.float64)
    if shares.min() <= 0 or abs(shares.sum() - 1) > 1e-6:
        raise ValueError(f"the shares of the splits are {shares.tolist()}: expected positive numbers that sum to 1.")
    generator = np.random.default_rng(seed)
    groups, group_of_row = np.unique(group_of_row, return_inverse=True)
    sizes = np.bincount(group_of_row, minlength=len(groups))
    rows, types = type_counts
    group_types, counts = np.unique(np.stack([group_of_row[rows], types], axis=1), axis=0, return_counts=True)
    split_of_group = np.full(len(groups), -1, dtype=np.int64)
    lacking_rows = sizes.sum() * shares
    if len(counts):
        _deal_typed_groups(group_types, counts, sizes, shares, generator, split_of_group, lacking_rows)
    free = generator.permutation(np.flatnonzero(split_of_group < 0))
    if free.size:
        wanted = np.maximum(lacking_rows, 0)
        borders = np.cumsum(wanted)[:-1] / max(wanted.sum(), 1e-9) * sizes[free].sum()
        middle = np.cumsum(sizes[free]) - sizes[free] / 2
        split_of_group[free] = np.searchsorted(borders, middle)
    return split_of_group[group_of_row].astype(np.uint8)


def _deal_typed_groups(
    group_types: np.ndarray, counts: np.ndarray, sizes: np.ndarray, shares: np.ndarray,
    generator: np.random.Generator, split_of_group: np.ndarray, lacking_rows: np.ndarray,
) -> None:  # fmt: skip
    """Fill `split_of_group` for groups with entities, and take their rows off `lacking_rows`."""
    kinds = int(group_types[:, 1].max()) + 1
    lacking = np.bincount(group_types[:, 1], weights=counts, minlength=kinds)[:, None] * shares  # (types, S)
    by_group = np.searchsorted(group_types[:, 0], np.arange(len(sizes) + 1)).tolist()
    in_type = [generator.permutation(group_types[group_types[:, 1] == kind, 0]).tolist() for kind in range(kinds)]
    left = np.bincount(group_types[:, 1], minlength=kinds)
    done = left == 0
    while not done.all():
        kind = int(np.where(done, left.max() + 1, left).argmin())
        for group in in_type[kind]:
            if split_of_group[group] >= 0:
                continue
            tied = lacking[kind]
            best = np.flatnonzero(tied == tied.max())
            split = int(best[lacking_rows[best].argmax()])
            own = slice(by_group[group], by_group[group + 1])
            lacking[group_types[own, 1], split] -= counts[own]
            left[group_types[own, 1]] -= 1
            lacking_rows[split] -= sizes[group]
            split_of_group[group] = split
        done[kind] = True


MOST_REPEATS = 10
"""A sentence is never written more often than this, however rare its types."""


def repeat_rare_types(rows: np.ndarray, types: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """How often to write training sentences so that no type has less than `share` of the most frequent one's entities.

    `rows`, `types`: (E,) row and type of each entity. From the rarest type on, its sentences are repeated in turn, in
    random order, until it has enough or each is there MOST_REPEATS times. Returns the rows, and the times of each.
    """
    generator = np.random.default_rng((seed, 2))
    distinct, row_of = np.unique(rows, return_inverse=True)
    counts = np.bincount(types).astype(np.int64)
    target = share * counts.max(initial=0)
    repeats = np.ones(len(distinct), dtype=np.int64)
    order = np.argsort(row_of, kind="stable")
    types_by_row = np.split(types[order], np.cumsum(np.bincount(row_of))[:-1])
    for kind in np.argsort(counts, kind="stable"):
        candidates = generator.permutation(np.unique(row_of[types == kind])).tolist()
        while counts[kind] < target and candidates:
            candidates = [row for row in candidates if repeats[row] < MOST_REPEATS]
            for row in candidates:
                if counts[kind] >= target:
                    break
                repeats[row] += 1
                np.add.at(counts, types_by_row[row], 1)
    return distinct, repeats
