"""What a tagger takes for what: by word and label, and by entity and type. L labels, K types."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from trainers.metrics import find_entities
from trainers.runs import Run, read_predictions

NO_ENTITY = "(no entity)"


def word_confusion(gold: list[np.ndarray], predicted: list[np.ndarray], labels: Sequence[str]) -> np.ndarray:
    """(L, L) words: a row for each true label, a column for each predicted one."""
    pairs = np.concatenate(gold).astype(np.int64) * len(labels) + np.concatenate(predicted)  # gold is saved in 16 bits
    return np.bincount(pairs, minlength=len(labels) ** 2).reshape(len(labels), -1)


def entity_confusion(gold: list[list[str]], predicted: list[list[str]], types: Sequence[str]) -> np.ndarray:
    """(K + 1, K + 1) entities: a row for each true type, a column for each predicted one; last those without.

    Entities meet when their first and last word agree. A true one that meets none was taken for none; a predicted one
    that meets none was taken from none. Entities are read as in the lenient scores of `ner_metrics`.
    """
    place = {name: index for index, name in enumerate(types)}
    matrix = np.zeros((len(types) + 1, len(types) + 1), dtype=np.int64)
    for gold_tags, predicted_tags in zip(gold, predicted, strict=True):
        true, guessed = ({(start, end): place[kind] for kind, start, end in find_entities(tags, strict=False)}
                         for tags in (gold_tags, predicted_tags))  # fmt: skip
        for span in true.keys() | guessed.keys():
            matrix[true.get(span, len(types)), guessed.get(span, len(types))] += 1
    return matrix


def entity_types(labels: Sequence[str]) -> list[str]:
    """The K types of BIO labels, in their order."""
    return list(dict.fromkeys(label[2:] or "_" for label in labels if label != "O"))


def write_confusion(runs: Sequence[Run], folder: str | Path, split: str = "test") -> list[Path]:
    """Write confusion_words.png and confusion_entities.png of finished runs side by side; return their paths.

    Raises:
        ValueError: the runs have different labels, or one has no predictions for the split.
        ModuleNotFoundError: matplotlib is not installed.
    """
    from trainers.pictures import confusion_picture  # brings in matplotlib

    labels = list(runs[0].result["labels"])
    for run in runs[1:]:
        if list(run.result["labels"]) != labels:
            raise ValueError(f"{runs[0].folder} has the labels {labels} but {run.folder} has {run.result['labels']}.")
    types = entity_types(labels)
    words, entities = {}, {}
    for run in runs:
        predicted, gold = read_predictions(run.folder, split)
        words[run.name] = word_confusion(gold, predicted, labels).tolist()
        names = [[[labels[index] for index in sentence] for sentence in ids] for ids in (gold, predicted)]
        entities[run.name] = entity_confusion(names[0], names[1], types).tolist()
    paths = [Path(folder) / "confusion_words.png", Path(folder) / "confusion_entities.png"]
    paths[0].parent.mkdir(parents=True, exist_ok=True)
    confusion_picture(words, labels, paths[0])
    confusion_picture(entities, [*types, NO_ENTITY], paths[1])
    return paths
