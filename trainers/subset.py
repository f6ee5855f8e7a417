"""Some examples of a data set, whatever its task."""

import dataclasses
from typing import TypeVar

import numpy as np

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
