"""What the labels of a model are called, and what its logits are for: as config.json and ONNX files say it.

Nothing here needs torch.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from lora_core.patterns import shown

ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]
"""What the logits of a text or an image are for, in the words of transformers' `problem_type` in config.json."""


def problem_type_of_config(values: Mapping[str, Any]) -> ProblemType | None:
    """Return what a config.json says that its head's logits are for; None: it does not say.

    Raises:
        ValueError: it says what transformers does not know.
    """
    found = values.get("problem_type")
    if found is not None and found not in get_args(ProblemType):
        raise ValueError(f"problem_type is {shown(found)}; expected one of {', '.join(get_args(ProblemType))}, or null")
    return found


def check_labels(labels: Sequence[str]) -> tuple[str, ...]:
    """Return the label names as a tuple.

    Raises:
        ValueError: they are not distinct, non-empty strings.
    """
    names = tuple(labels)
    if isinstance(labels, str) or not names or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"labels is {shown(labels)}; expected a list of names such as ['O', 'B-protein', 'I-protein']")
    repeated = sorted(name for name, count in Counter(names).items() if count > 1)
    if repeated:
        raise ValueError(f"labels holds {', '.join(repeated)} more than once; give each name once")
    return names


def labels_of_config(values: Mapping[str, Any], rows: int) -> tuple[str, ...]:
    """Return the names that a config.json states for a head of `rows` labels.

    transformers leaves out names that were never set; they are LABEL_0, LABEL_1... then. ImageNet has two classes
    called crane: names that occur twice get their row, as in "crane (134)".

    Raises:
        ValueError: `id2label` is malformed, or not of so many rows.
    """
    id2label = values.get("id2label")
    if id2label is None:
        return _placeholders(rows)
    try:
        by_row = {int(row): name for row, name in id2label.items()}
    except (AttributeError, ValueError) as error:
        raise ValueError(f"id2label is {shown(id2label)}; expected names by number, such as {{'0': 'O'}}") from error
    if sorted(by_row) != list(range(rows)):
        raise ValueError(f"id2label has the numbers {shown(sorted(by_row))}; the head has the rows 0 to {rows - 1}")
    names = [str(by_row[row]) if isinstance(by_row[row], int | float) else by_row[row] for row in range(rows)]
    counts = Counter(map(str, names))
    return check_labels([name if counts[str(name)] == 1 else f"{name} ({row})" for row, name in enumerate(names)])


def are_placeholders(labels: Sequence[str]) -> bool:
    """Whether these are the names that transformers gives to labels without one: LABEL_0, LABEL_1..."""
    return tuple(labels) == _placeholders(len(labels))


def rows_for(labels: tuple[str, ...], known: tuple[str, ...]) -> list[int]:
    """Return, for each of `labels`, its row in a head whose rows are `known`.

    Placeholder names say nothing, so their rows are taken as they come.

    Raises:
        ValueError: the names differ.
    """
    if known == _placeholders(len(labels)):
        return list(range(len(labels)))
    if set(labels) != set(known):
        raise ValueError(
            f"the labels asked for are {list(labels)}, those of the checkpoint's head {list(known)}; leave "
            "labels out to keep its head, or pass fresh_head=True to start a new one"
        )
    return [known.index(name) for name in labels]


def _placeholders(count: int) -> tuple[str, ...]:
    return tuple(f"LABEL_{row}" for row in range(count))
