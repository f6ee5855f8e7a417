"""Some examples of a data set, whatever its task: a choice, a sample, and splits for scoring.

Iterative stratification, in which every label has its share although an example may bear several: Sechidis,
Tsoumakas, Vlahavas, "On the stratification of multi-label data" (2011). Here groups of equal examples stay together,
and the shares are shares of labels. N examples, S splits, E entities or other labels of all examples.
"""

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sized
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from trainers.data.labels import problem_type_of
from trainers.data.sources import SPLIT_NAMES

logger = logging.getLogger(__name__)

HELD_OUT = 0.1
"""Share of the training examples that becomes the validation split, where the data has none."""
SPLIT_SEED = 0
"""Seed of that choice. It is not the run's, so that runs with other seeds are scored on the same examples."""
DRAWN_SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}
"""Shares of the splits of a data set that has none."""


class LabelledDataset(Protocol):
    """One split whose examples have a label, several, or a number."""

    @property
    def targets(self) -> np.ndarray:
        """(N,) label ids; (N, L) float32 of 0 and 1; or (N,) float32 numbers."""
        ...

    @property
    def labels(self) -> tuple[str, ...]:
        """Label names; the index is the id."""
        ...

    @property
    def source(self) -> str:
        """Where the split was read from."""
        ...

    @property
    def noun(self) -> str:
        """What messages call the examples, in the plural."""
        ...

    @property
    def groups(self) -> np.ndarray | None:
        """(N,) a number for each example, the same for equal ones. None: the examples are not compared."""
        ...

    def __len__(self) -> int: ...


AnyDataset = TypeVar("AnyDataset")
AnySized = TypeVar("AnySized", bound=Sized)
AnyLabelled = TypeVar("AnyLabelled", bound=LabelledDataset)


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


def sample(dataset: AnySized, limit: int, seed: int) -> AnySized:
    """At most ``limit`` of the data set's examples, drawn at random and left in order."""
    if limit < 1:
        raise ValueError(f"limit={limit}: expected at least 1 example.")
    if len(dataset) <= limit:
        return dataset
    return take(dataset, np.sort(np.random.default_rng(seed).choice(len(dataset), limit, replace=False)))


def stratified(dataset: AnyLabelled, limit: int, seed: int = 0) -> AnyLabelled:
    """At most ``limit`` examples, drawn at random and left in order, in which each label has its share to one example.

    Examples with several labels, or a number, are drawn without regard to these.
    """
    targets = dataset.targets
    if len(targets) <= limit:
        return dataset
    if problem_type_of(targets) != "single_label_classification":
        chosen = np.random.default_rng(seed).choice(len(targets), limit, replace=False)
        return take(dataset, np.sort(chosen))
    generator = np.random.default_rng(seed)
    labels, counts = np.unique(targets, return_counts=True)
    exact = counts * limit / len(targets)
    sizes = np.floor(exact).astype(np.int64)
    sizes[np.argsort(sizes - exact, kind="stable")[: limit - sizes.sum()]] += 1  # the largest remainders
    chosen = []
    for label, size in zip(labels, sizes, strict=True):
        chosen.append(generator.choice(np.flatnonzero(targets == label), size, replace=False))
    return take(dataset, np.sort(np.concatenate(chosen)))


def limited(
    datasets: Mapping[str, AnySized],
    train: int | None,
    test: int | None,
    draw: Callable[[AnySized, int], AnyDataset],
) -> dict[str, AnySized | AnyDataset]:
    """The splits with at most so many examples for training and for testing; None: all.

    The validation split becomes smaller in proportion to the training split.

    Args:
        draw: at most so many examples of a data set, the same ones every time.
    """
    limits = {"train": train, "test": test}
    if train is not None and {"train", "validation"} <= datasets.keys():
        share = train / len(datasets["train"])
        limits["validation"] = max(1, round(share * len(datasets["validation"])))
    limit_of = {split: limit for split, limit in limits.items() if limit is not None}
    return {split: draw(data, limit_of[split]) if split in limit_of else data for split, data in datasets.items()}


def hold_out(
    dataset: AnyLabelled,
    share: float = HELD_OUT,
    *,
    groups: np.ndarray | None = None,
    of: int | None = None,
    seed: int = SPLIT_SEED,
) -> tuple[AnyLabelled, AnyLabelled]:
    """The rest, and about ``share`` of the examples of each label, held out for scoring; both in the old order.

    There are two strategies. Without groups a random choice of each label's examples is held out, its number rounded.
    With groups `stratified_split` deals whole groups. Neither can stand in for the other: they choose different
    examples, and the scores of runs are comparable only as long as their data is split in the same way.

    Args:
        dataset: a `TextDataset`, an `ImageDataset`, or another that is a `LabelledDataset` which `take` takes.
        share: of the examples, between 0 and 1.
        groups: (N,) a number for each example; those of one number stay on one side, such as pictures of one patient.
            None: the data set's own, so that equal texts stay together.
        of: the share is one of so many examples, of which this data set is what is left. None: of its own.
        seed: decides the choice.

    Raises:
        ValueError: ``share`` is no share, the groups are not one for each example, or there are too few examples.
    """
    if not 0 < share < 1:
        raise ValueError(f"share={share}: expected a part of the examples, between 0 and 1.")
    groups = dataset.groups if groups is None else np.asarray(groups)
    if groups is None and problem_type_of(dataset.targets) == "single_label_classification":
        held_out = _part_of_each_label(dataset.targets, share * (len(dataset) if of is None else of), seed)
    elif groups is not None and groups.shape != (len(dataset),):
        raise ValueError(
            f"got groups of shape {groups.shape} for {len(dataset)} {dataset.noun}: expected one for each."
        )
    else:
        part = share if of is None else share * of / len(dataset)
        groups = np.arange(len(dataset)) if groups is None else groups
        held_out = stratified_split(groups, label_pairs(dataset.targets), [1 - part, part], seed) == 1
    if not held_out.any() or held_out.all():
        raise ValueError(
            f"{dataset.source} holds {len(dataset)} {dataset.noun}, too few to set some aside for scoring"
            f"{_why_too_few(dataset, groups)}. Add some, or a split for it."
        )
    return take(dataset, np.flatnonzero(~held_out)), take(dataset, np.flatnonzero(held_out))


def _why_too_few(dataset: LabelledDataset, groups: np.ndarray | None) -> str:
    """What keeps examples from being set aside, where it is not their number alone."""
    different = len(dataset) if groups is None else len(np.unique(groups))
    if different < len(dataset) / 2:
        return f": only {different} of them are different, and equal ones stay together"
    labels = len(np.unique(label_pairs(dataset.targets)[1]))
    if labels > 1 and len(dataset) >= 2 * labels:
        return f": of each of the {labels} labels there are only about {len(dataset) // labels}"
    return f": most of the {labels} labels stand there once" if labels > len(dataset) / 2 > 2 else ""


def completed(datasets: Mapping[str, AnyLabelled]) -> dict[str, AnyLabelled]:
    """The splits in the order of SPLIT_NAMES, with a validation split wherever there is one to train on.

    One that is missing is held out of the training split, which is logged. So are labels that training never sees.
    """
    found = dict(datasets)
    if "train" in found and "validation" not in found:
        train = found["train"]
        found["train"], found["validation"] = hold_out(train)
        sizes = len(found["validation"]), len(train)
        logger.warning("%s: no validation split; %d of %d training %s became one", train.source, *sizes, train.noun)
    if "train" in found:
        known = set(label_pairs(found["train"].targets)[1].tolist())
        for split, dataset in found.items():
            unknown = [dataset.labels[label] for label in sorted(set(label_pairs(dataset.targets)[1].tolist()) - known)]
            if unknown:
                logger.warning("the %s split has labels that the training split lacks: %s", split, ", ".join(unknown))
    return {split: found[split] for split in SPLIT_NAMES if split in found}


def cut_in_three(dataset: AnyLabelled) -> dict[str, AnyLabelled]:
    """Data without splits as 80 % train, 10 % validation and 10 % test of each label, which is logged."""
    rest, test = hold_out(dataset)
    train, validation = hold_out(rest, of=len(dataset))
    sizes = len(train), len(validation), len(test)
    logger.warning("%s: no splits; cut into %d training, %d validation and %d test %s", dataset.source, *sizes,
                   dataset.noun)  # fmt: skip
    return {"train": train, "validation": validation, "test": test}


def label_pairs(targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The labels of all examples as two arrays (E,), the row and the label of each; numbers are no labels."""
    problem_type = problem_type_of(targets)
    if problem_type == "multi_label_classification":
        rows, labels = np.nonzero(targets)
        return rows, labels
    if problem_type == "regression":
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    return np.arange(len(targets)), targets


def _part_of_each_label(targets: np.ndarray, wanted: float, seed: int) -> np.ndarray:
    """Which examples, (N,) bool, make up about ``wanted`` of them, so many of each label as is its share."""
    random = np.random.default_rng(seed)
    chosen = np.zeros(len(targets), dtype=bool)
    for label in np.unique(targets):
        members = np.flatnonzero(targets == label)
        # Divided before it is multiplied: another order rounds halves to the other side, and so changes the choice.
        chosen[random.permutation(members)[: round(wanted / len(targets) * len(members))]] = True
    return chosen


def stratified_split(
    group_of_row: np.ndarray, type_counts: tuple[np.ndarray, np.ndarray], shares: ArrayLike, seed: int
) -> np.ndarray:
    """The split of every row, (N,) uint8.

    From the rarest type on, each group with that type goes to the split that lacks most of it; then the groups
    without entities fill up what the splits lack in rows.

    Args:
        group_of_row: (N,) rows of one group go into one split.
        type_counts: the entities as two arrays (E,), the row and the type of each.
        shares: (S,) of each type's entities and of all rows, summing to 1.
        seed: decides between groups that would do equally well.

    Raises:
        ValueError: the shares are not positive numbers that sum to 1.
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
    group_types: np.ndarray,
    counts: np.ndarray,
    sizes: np.ndarray,
    shares: np.ndarray,
    generator: np.random.Generator,
    split_of_group: np.ndarray,
    lacking_rows: np.ndarray,
) -> None:
    """Fill ``split_of_group`` for groups with entities, and take their rows off ``lacking_rows``."""
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
    """How often to write training sentences, so that no type is much rarer than the most frequent one.

    From the rarest type on, its sentences are repeated in turn, in random order, until it has enough or each is there
    MOST_REPEATS times.

    Args:
        rows: (E,) the row of each entity.
        types: (E,) the type of each entity.
        share: of the most frequent type's entities; so many are enough.
        seed: decides the order.

    Returns:
        The rows with entities, in order, and how often each is written.
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
