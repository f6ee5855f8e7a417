"""Inputs without end, in pieces of bounded memory."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")

CHUNK_ITEMS = 1024
"""Inputs that are prepared and sorted by length together."""
CHUNK_CHARACTERS = 1 << 20
"""Characters after which a chunk is full, however few inputs it has."""


def chunks(items: Iterable[Item]) -> Iterator[list[Item]]:
    """The items in order, in lists of bounded size; no more than one list is read ahead."""
    chunk: list[Item] = []
    characters = 0
    for item in items:
        chunk.append(item)
        characters += len(item) if isinstance(item, str) else 8 * len(item) if isinstance(item, (list, tuple)) else 0
        if len(chunk) == CHUNK_ITEMS or characters >= CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk
