"""The tner layout: JSON lines {"tokens": [...], "tags": [...]}, and label.json that names the tags."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from trainers.data.rows import BadRows, numbered_lines, refuse_lone_surrogates, short

IOB_LABEL = re.compile(r"O|[BI](-.+)?")


def read_label_file(path: Path) -> tuple[str, ...]:
    """Names of tags in order of their ids."""
    names = read_label_names(path)
    foreign = [name for name in names if not IOB_LABEL.fullmatch(name)]
    if foreign:
        raise ValueError(
            f"{path} has labels outside the IOB scheme: {short(foreign)}; expected O, B-TYPE and I-TYPE. Tags of "
            f"IOBES and BILOU (S-, E-, U-, L-) must be rewritten first: S- and U- as B-, E- and L- as I-."
        )
    return names


def read_label_names(path: Path) -> tuple[str, ...]:
    """Label names of any kind in order of their ids."""
    if not path.is_file():
        raise ValueError(f'{path} is missing: the tner layout names its label ids there, as {{"O": 0, "B-X": 1, ...}}.')
    try:
        ids = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON in UTF-8: {error}.") from error
    if not isinstance(ids, dict) or not ids or any(type(index) is not int for index in ids.values()):
        raise ValueError(f'{path} holds {short(ids)}, expected label names with their ids: {{"O": 0, "B-X": 1, ...}}.')
    if sorted(ids.values()) != list(range(len(ids))):
        raise ValueError(
            f"{path} gives the ids {short(sorted(ids.values()))}, expected 0 to {len(ids) - 1}, each once."
        )
    return tuple(sorted(ids, key=ids.__getitem__))


def read_tner_file(path: Path, num_labels: int, bad_rows: BadRows) -> Iterator[tuple[list[str], list[int]]]:
    """Words and label ids of every usable row, one after another."""
    for number, line in numbered_lines(path):
        if not line.strip():
            continue
        try:
            row = _parse_row(line, num_labels)
        except ValueError as problem:
            bad_rows.add(path, number, str(problem))
            continue
        yield row


def _parse_row(line: bytes, num_labels: int) -> tuple[list[str], list[int]]:
    """Words and tags of one line; ValueError says what is wrong with it."""
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 ({error})") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({error}): {short(line)}") from error
    if not isinstance(row, dict) or "tokens" not in row or "tags" not in row:
        raise ValueError(f'expected an object {{"tokens": [...], "tags": [...]}} on one line, got {short(row)}')
    words, tags = row["tokens"], row["tags"]
    for key in ("tokens", "tags"):
        if not isinstance(row[key], list):
            raise ValueError(f"{key} is {short(row[key])}, expected a list")
    if len(words) != len(tags):
        raise ValueError(f"{len(words)} tokens but {len(tags)} tags: {short(words)}")
    if not words:
        raise ValueError("an empty sentence (no tokens)")
    if set(map(type, words)) != {str}:
        index, word = next((index, word) for index, word in enumerate(words) if type(word) is not str)
        raise ValueError(f"token {index} is {short(word)}, expected a string")
    if set(map(type, tags)) != {int} or min(tags) < 0 or max(tags) >= num_labels:
        known = range(num_labels)
        index, tag = next((index, tag) for index, tag in enumerate(tags) if type(tag) is not int or tag not in known)
        raise ValueError(f"tag {index} is {short(tag)}, expected a label id of label.json (0 to {num_labels - 1})")
    refuse_lone_surrogates("".join(words))
    return words, tags
