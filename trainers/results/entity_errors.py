"""What is wrong with each entity: missed, spurious, of the wrong type, with a wrong boundary, or both.

The kinds are those of the MUC evaluations (Chinchor and Sundheim 1993), as SemEval-2013 task 9 counts them for entities
(Segura-Bedmar et al. 2013, https://aclanthology.org/S13-2056): a predicted entity and a true one that overlap are one
error and not two.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from trainers.data.tokens.bio import Entity

Kind = Literal["right", "wrong type", "wrong boundary", "wrong type and boundary", "missed", "spurious"]
KINDS: tuple[Kind, ...] = ("right", "wrong type", "wrong boundary", "wrong type and boundary", "missed", "spurious")

Closeness = tuple[bool, bool, int]
"""Whether two entities have the same words, and the same type, and how many words both have."""


@dataclass(frozen=True)
class Judged:
    """A true entity with what was predicted for it; or one of them alone."""

    kind: Kind
    true: Entity | None
    """None: spurious."""
    predicted: Entity | None
    """None: missed."""

    @property
    def start(self) -> int:
        """Its first word."""
        return min(entity[1] for entity in (self.true, self.predicted) if entity is not None)


def judge(true: Iterable[Entity], predicted: Iterable[Entity]) -> list[Judged]:
    """Every entity of a sentence once, in the order of the words.

    Entities meet that are equal, or else lie in the same words, or else overlap: those of one type first, and of those
    the ones that have most words in common.
    """
    pairs = [(_closeness(real, guess), real, guess) for real in true for guess in predicted if _common(real, guess) > 0]
    pairs.sort(key=_rank)
    met_true: set[Entity] = set()
    met_predicted: set[Entity] = set()
    found = []
    for _, real, guess in pairs:
        if real not in met_true and guess not in met_predicted:
            met_true.add(real)
            met_predicted.add(guess)
            found.append(Judged(_kind(real, guess), real, guess))
    found += [Judged("missed", real, None) for real in true if real not in met_true]
    found += [Judged("spurious", None, guess) for guess in predicted if guess not in met_predicted]
    return sorted(found, key=_start)


def _kind(real: Entity, guess: Entity) -> Kind:
    if real == guess:
        return "right"
    if real[1:] == guess[1:]:
        return "wrong type"
    return "wrong boundary" if real[0] == guess[0] else "wrong type and boundary"


def _common(real: Entity, guess: Entity) -> int:
    """Words that both have."""
    return min(real[2], guess[2]) - max(real[1], guess[1])


def _closeness(real: Entity, guess: Entity) -> Closeness:
    return real[1:] == guess[1:], real[0] == guess[0], _common(real, guess)


def _rank(
    pair: tuple[tuple[bool, bool, int], Entity, Entity],
) -> tuple[bool, bool, int, tuple[int, int], tuple[int, int]]:
    (same_words, same_type, common), real, guess = pair
    return not same_words, not same_type, -common, real[1:], guess[1:]


def _start(judged: Judged) -> int:
    return judged.start
