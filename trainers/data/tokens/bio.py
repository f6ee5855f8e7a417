"""Tags in BIO: what one is, the entities that they mark, and what IOB2 allows. The one home of these rules.

O stands outside of all entities. B-X begins an entity of the type X, I-X continues one; B and I alone mark entities of
the type `_`. An I- that continues no entity of its type is stray. It can be read in two ways: leniently it opens an
entity (as conlleval has it, and IOB1), strictly it belongs to none (IOB2).
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np

OUTSIDE = "O"
Entity = tuple[str, int, int]
"""(type, first word, one past the last word)"""
Tag = TypeVar("Tag", str, int)

_TAG = re.compile(r"O|[BI](-.+)?")
BIO_PREFIX = {"B": "B", "S": "B", "U": "B", "W": "B", "I": "I", "M": "I", "E": "I", "L": "I"}
"""What the letters of other schemes (IOBES, BILOU, BMEWO) are in BIO."""
_TAG_OF_ANY_SCHEME = re.compile(rf"[BI]|[{''.join(BIO_PREFIX)}]-.+")


def is_tag(text: str) -> bool:
    """Whether this is a tag in BIO: O, B-TYPE, I-TYPE, or B or I alone."""
    return _TAG.fullmatch(text) is not None


def entity_type(tag: str) -> str | None:
    """The type of a tag's entity; None for O."""
    return None if tag == OUTSIDE else tag[2:] or "_"


def entity_types(tags: Iterable[str]) -> list[str]:
    """The different types of these tags, in the order in which they come."""
    return list(dict.fromkeys(tag[2:] or "_" for tag in tags if tag != OUTSIDE))


def find_entities(tags: Sequence[str], *, strict: bool) -> set[Entity]:
    """Entities of one sentence as (type, first word, one past the last word).

    Args:
        tags: a tag for each word.
        strict: whether a stray I- is ignored. Otherwise it opens an entity.
    """
    found: set[Entity] = set()
    start, open_type = -1, None
    for position, tag in enumerate([*tags, OUTSIDE]):
        prefix, type_name = tag[0], tag[2:] or "_"
        if prefix == "I" and type_name == open_type:
            continue
        if open_type is not None:
            found.add((open_type, start, position))
            open_type = None
        if prefix == "B" or (prefix == "I" and not strict):
            start, open_type = position, type_name
    return found


def paired_labels(tags: Iterable[str]) -> tuple[str, ...]:
    """O, then B-X and I-X for every type X of the tags, sorted by type, whether both occur or not."""
    types = sorted({tag[1:] for tag in tags if tag != OUTSIDE})  # "-X", or nothing for B and I alone
    return (OUTSIDE, *(prefix + kind for kind in types for prefix in "BI"))


def openings(labels: Sequence[str]) -> dict[int, int]:
    """For the id of every I-X the id of its B-X, where there is one: what `open_stray` needs to know of label ids."""
    ids = {name: index for index, name in enumerate(labels)}
    begins = {index: ids.get(f"B{name[1:]}") for name, index in ids.items() if _continues(name)}
    return {inside: begin for inside, begin in begins.items() if begin is not None}


def open_stray(tags: Sequence[Tag], opening: Mapping[Tag, Tag]) -> list[Tag]:
    """The tags of a sentence in IOB2: an I- that continues no entity of its type becomes B-.

    Args:
        tags: names, or ids.
        opening: the B- of every I-.
    """
    repaired = []
    previous = None
    for tag in tags:
        begin = opening.get(tag)
        repaired.append(tag if begin is None or previous in (begin, tag) else begin)
        previous = tag
    return repaired


def iob2_transitions(labels: Sequence[str]) -> np.ndarray:
    """Which label may follow which in IOB2, (L, L) bool from row to column: I-X follows B-X or I-X alone.

    Any label may come first: a window can begin inside of an entity.
    """
    types = np.array([entity_type(label) or "" for label in labels])
    is_inside = np.array([_continues(label) for label in labels])
    return ~is_inside | (types[:, None] == types)


def _continues(label: str) -> bool:
    return label == "I" or label.startswith("I-")


def bio_labels(labels: Sequence[str]) -> tuple[str, ...]:
    """Labels in BIO, one for each label of a model that was trained with another scheme.

    In BIOES and BILOU, the last word (E-, L-) continues an entity and a single word (S-, U-) opens one. Labels
    without any scheme, such as `PER`, become `I-PER`: neighbours with the same label are one entity.
    """
    if not all(label == OUTSIDE or _TAG_OF_ANY_SCHEME.fullmatch(label) for label in labels):
        return tuple(label if label == OUTSIDE else f"I-{label}" for label in labels)
    return tuple(label if label == OUTSIDE else BIO_PREFIX[label[0]] + label[1:] for label in labels)
