"""What a finished text classifier gets wrong, and why: pictures, a table of its worst errors, and the words that lead
it astray, which set the confused texts of a label apart from its others.

Shapes: N texts, V words of the vocabulary.
"""

import dataclasses
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from lora_core.files import write_json, write_text
from trainers.data.splits import sample, take
from trainers.finished import FinishedRun
from trainers.results.attribution import by_word, integrated_gradients
from trainers.show import duration, markdown_table, progress_bar
from trainers.tasks import text as text_kind
from trainers.tasks.label_scores import classification_metrics
from trainers.tasks.token import tokenizer_and_length

logger = logging.getLogger("trainers")

Directions = Literal["one", "both"]
WORD = r"(?u)\b[^\W\d_]{3,}\b"
"""Words that count: letters only, three at least."""


@dataclass(frozen=True)
class ConfusedPair:
    """Texts of one label that were taken for another."""

    true: str
    predicted: str
    errors: int
    """How many there are."""
    words: list[tuple[str, float]]
    """Their words, the most telling first, with the score that ranks them."""


def confused_pairs(
    texts: Sequence[str],
    gold: np.ndarray,
    predicted: np.ndarray,
    labels: Sequence[str],
    *,
    pairs: int = 1,
    directions: Directions = "both",
    words: int = 15,
) -> list[ConfusedPair]:
    """The most frequent confusions and their words.

    A word's score is its mean TF-IDF weight in the confused texts, minus that in the texts of the same true label that
    were recognised: what is frequent in the label anyway does not count. Only positive scores are kept.

    Args:
        texts: N texts that the model was not trained on.
        gold, predicted: (N,) label ids.
        pairs: how many pairs of labels to look at, the most confused first.
        directions: of a pair take only the more frequent direction, or both.
        words: most words for each direction.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    matrix = np.zeros((len(labels), len(labels)), dtype=np.int64)
    np.add.at(matrix, (gold, predicted), 1)
    np.fill_diagonal(matrix, 0)
    found = _most_confused(matrix, pairs, directions)
    if not found:
        return []
    vectorizer = TfidfVectorizer(token_pattern=WORD, stop_words="english", sublinear_tf=True)
    weights = vectorizer.fit_transform(texts)  # (N, V), sparse
    vocabulary = vectorizer.get_feature_names_out()
    result = []
    for true, guess in found:
        confused = np.flatnonzero((gold == true) & (predicted == guess))
        recognised = np.flatnonzero((gold == true) & (predicted == true))
        score = np.asarray(weights[confused].mean(0)).ravel()  # (V,)
        if len(recognised):
            score = score - np.asarray(weights[recognised].mean(0)).ravel()
        best = [index for index in np.argsort(-score, kind="stable")[:words] if score[index] > 0]
        result.append(
            ConfusedPair(
                labels[true],
                labels[guess],
                len(confused),
                [(str(vocabulary[index]), float(score[index])) for index in best],
            )
        )
    return result


def word_list(pairs: Sequence[ConfusedPair]) -> list[str]:
    """The words of all pairs, each once, as `confusing_words` reads them from a file."""
    return list(dict.fromkeys(word for pair in pairs for word, _ in pair.words))


def _most_confused(errors: np.ndarray, pairs: int, directions: Directions) -> list[tuple[int, int]]:
    """(True label, predicted label) of the pairs of labels with most errors, the more frequent direction first."""
    both = np.triu(errors + errors.T, 1)
    order = np.argsort(-both, axis=None, kind="stable")[:pairs]
    found = []
    for low, high in zip(*np.unravel_index(order, both.shape), strict=True):
        ways = sorted([(int(low), int(high)), (int(high), int(low))], key=lambda way: -errors[way])
        found += [way for way in ways[: 1 if directions == "one" else 2] if errors[way]]
    return found


WORDS_FILE = "confusing_words.txt"
SHOWN_WORDS, SHOWN_CHARACTERS = 5, 160
MAPPED = 1500
"""Most texts of the map of vectors: t-SNE takes half a minute for as many."""


@dataclass(frozen=True)
class WorstText:
    """A text whose true label the model found unlikely."""

    text: str
    true: str
    predicted: str
    probability: float
    """Of the true label."""
    words: list[tuple[str, float]]
    """Words that spoke most for the predicted label, with their share in its logit."""
    completeness: float
    """Sum of the shares of all words, over what it should be: the logit's rise over a text of padding."""


@dataclass(frozen=True)
class Analysis:
    """What `analyse` found."""

    run: str
    split: str
    examples: int
    accuracy: float
    confusion: list[list[int]]
    """Rows are true labels."""
    pairs: list[ConfusedPair]
    worst: list[WorstText]


def analyse(
    run: FinishedRun,
    split: str = "validation",
    *,
    pairs: int = 1,
    directions: Directions = "both",
    words: int = 15,
    worst: int = 10,
) -> Analysis:
    """Look at a run's errors on a split.

    Words that are to be used in training (`confusing_words`) must not come from the test split.

    Args:
        split: validation, test or train.
        pairs, directions, words: of `confused_pairs`.
        worst: texts to list and explain.

    Raises:
        ValueError: the run does not classify texts, or has no such split.
    """
    if run.kind is not text_kind:
        raise ValueError(f"{run.run.folder} did {run.config.task}: the analysis is for text-classification.")
    run.check_one_label()
    dataset = run.examples(split)
    if dataset.pairs is not None:
        raise ValueError(f"{run.run.folder} read pairs of texts: the analysis of words is for single texts.")
    began = time.monotonic()
    probabilities = run.probabilities(dataset)  # (N, L)
    predicted = probabilities.argmax(-1)
    scores = classification_metrics(dataset.targets, predicted, run.labels)
    of_true = probabilities[np.arange(len(dataset)), dataset.targets]
    wrong = np.flatnonzero(predicted != dataset.targets)
    hardest = wrong[np.argsort(of_true[wrong], kind="stable")[:worst]]
    analysis = Analysis(
        str(run.run.folder),
        split,
        len(dataset),
        scores["accuracy"],
        scores["confusion"],
        confused_pairs(
            dataset.texts, dataset.targets, predicted, run.labels, pairs=pairs, directions=directions, words=words
        ),
        explain(run, take(dataset, hardest), predicted[hardest], of_true[hardest]) if len(hardest) else [],
    )
    said = split, len(dataset), len(wrong), len(hardest), duration(time.monotonic() - began)
    logger.info("%s split: %d texts, %d of them wrong, %d explained, in %s", *said)
    return analysis


def explain(run: FinishedRun, dataset: Any, predicted: np.ndarray, of_true: np.ndarray) -> list[WorstText]:
    """The words of each text that spoke for the predicted label; of texts in windows, those of the first."""
    # The augmentation numbers the words of the texts; without an epoch it changes nothing.
    config = dataclasses.replace(run.config, text_augment="eda")
    if config.long_text == "windows":
        config = dataclasses.replace(config, long_text="head")
    data = text_kind.encode(dataset, run.model, config, run.inputs_folder)
    tokenizer, _ = tokenizer_and_length(run.model, run.config, run.inputs_folder)
    assert data.words is not None
    found = []
    rows = zip(dataset.texts, dataset.targets, predicted, strict=True)
    for index, (text, true, guess) in enumerate(
        progress_bar("explain", len(dataset), unit="text", delay=1, iterable=rows)
    ):
        own = slice(data.offsets[index], data.offsets[index + 1])
        ids, words = data.input_ids[own].astype(np.int64), data.words[own]
        special = torch.from_numpy(words < 0).to(run.device)
        attribution = integrated_gradients(
            run.model, torch.from_numpy(ids).to(run.device), int(guess), data.pad_token_id, special
        )
        shares = by_word(attribution.tokens, words)
        names = [
            tokenizer.decode(ids[words == word].tolist()).replace(" ##", "").strip()
            for word in np.unique(words[words >= 0])
        ]
        best = np.argsort(-shares, kind="stable")[:SHOWN_WORDS]
        found.append(
            WorstText(
                text,
                run.labels[true],
                run.labels[guess],
                float(of_true[index]),
                [(names[word], float(shares[word])) for word in best if shares[word] > 0],
                float(attribution.tokens.sum() / attribution.difference) if attribution.difference else 1.0,
            )
        )
    return found


def analysis_report(analysis: Analysis) -> str:
    """The analysis as Markdown."""
    counted = f"{analysis.examples:,} texts, {analysis.accuracy:.2%} right."
    parts = [f"# {analysis.run}, {analysis.split} split", "", counted, "", "## Words of confused texts", ""]
    for pair in analysis.pairs:
        listed = ", ".join(word for word, _ in pair.words)
        parts += [f"{pair.true} taken for {pair.predicted}, {pair.errors} texts: {listed}", ""]
    if not analysis.pairs:
        parts += ["There are no errors.", ""]
    rows = [
        [
            row.true,
            row.predicted,
            f"{row.probability:.3f}",
            ", ".join(f"{word} {share:+.2f}" for word, share in row.words),
            _excerpt(row.text),
        ]
        for row in analysis.worst
    ]
    header = ["true", "predicted", "p(true)", "words for the predicted label", "text"]
    parts += [
        "## Texts whose true label was least likely",
        "",
        markdown_table(header, rows, left=5),
        "",
        "Words: their share in the logit of the predicted label, by integrated gradients against a text of padding.",
    ]
    return "\n".join(parts) + "\n"


def write_analysis(run: FinishedRun, analysis: Analysis, folder: str | Path, seed: int = 0) -> list[Path]:
    """Write analysis.md, analysis.json, confusing_words.txt, confusion.png and vectors.png; return their paths.

    The words are left out where there are no errors, and for the test split: a model that is trained with words of its
    test texts cannot be tested.
    """
    from trainers.results.confusion import confusion_picture
    from trainers.results.vector_map import classifier_vectors, vectors_picture

    folder = Path(folder)
    written = [
        write_text(folder / "analysis.md", analysis_report(analysis)),
        write_json(folder / "analysis.json", dataclasses.asdict(analysis)),
    ]
    listed = [] if analysis.split == "test" else word_list(analysis.pairs)
    if listed:
        written.append(write_text(folder / WORDS_FILE, "\n".join(listed) + "\n"))
    confusion, vectors = folder / "confusion.png", folder / "vectors.png"
    confusion_picture({f"{run.run.name}, {analysis.split}": analysis.confusion}, run.labels, confusion)
    dataset = run.examples(analysis.split)
    mapped = sample(dataset, MAPPED, seed)
    vectors_picture(
        classifier_vectors(run, mapped), mapped.targets, run.probabilities(mapped).argmax(-1), run.labels, vectors, seed
    )
    return [*written, confusion, vectors]


def _excerpt(text: str) -> str:
    joined = " ".join(text.split())
    return joined if len(joined) <= SHOWN_CHARACTERS else f"{joined[: SHOWN_CHARACTERS - 1]}…"
