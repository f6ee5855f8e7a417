"""What the sections draw from: a finished run's examples, its saved predictions, and how sure its model is of them.

Shapes: N examples of the split, M examples that the model is asked about, L labels, W words of a sentence, D vector.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lora_core.models.decoding import marginals, split_scores
from trainers.data.batches import evaluation_batches, load_batches
from trainers.data.splits import take
from trainers.data.texts.encode import mean_of_windows
from trainers.data.tokens.bio import Entity, find_entities
from trainers.data.tokens.windows import IGNORED_LABEL
from trainers.finished import FinishedRun
from trainers.results.compare import distinct_names
from trainers.results.vector_map import classifier_vectors
from trainers.run_folder import Run, has_predictions
from trainers.training.precision import autocast

SEED = 0
"""Of what is drawn: the examples that the model is asked about."""


@dataclass(frozen=True)
class Options:
    """How much a report looks at."""

    errors: int = 20
    """Most examples to show that the model got wrong."""
    examples: int = 2000
    """Most examples to run through the model, for how sure it is and for its vectors."""
    maps: bool = True
    """Whether vectors are drawn as points on a plane."""


class Gone(ValueError):
    """The data or the predictions of a run are not there any more: a section says so, and the others go on."""


class Evidence:
    """All that a report knows of one run. What costs time is computed when it is first asked for, and once."""

    def __init__(self, run: FinishedRun, options: Options, others: Sequence[Run] = ()) -> None:
        """
        Args:
            run: what the page is about.
            options: how much to look at.
            others: runs that it is compared with.
        """
        self.run = run
        self.options = options
        self.runs = [run.run, *others]
        self.names = distinct_names(self.runs)
        self.split = run.scored_split
        self.labels = run.labels
        self.problem_type = run.problem_type

    @property
    def is_tokens(self) -> bool:
        """Whether each word has a label."""
        return not self.run.kind.ONE_LABEL

    @property
    def is_single(self) -> bool:
        """Whether each example has one label of several."""
        return self.problem_type == "single_label_classification"

    @property
    def is_images(self) -> bool:
        """Whether the examples are pictures."""
        return self.run.config.task == "image-classification"

    @property
    def noun(self) -> str:
        """What the examples are, in the plural."""
        return "sentences" if self.is_tokens else "images" if self.is_images else "texts"

    @cached_property
    def saved(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Predicted and true label ids of each of the N examples. Raises Gone where the run saved none."""
        if not has_predictions(self.run.run, self.split):
            raise Gone(
                f"{self.run.run.folder} has no predictions of the {self.split} split: repeat the run with this version."
            )
        return self.run.predictions(self.split)

    @cached_property
    def dataset(self) -> Any:
        """The N examples. Raises Gone where they are not what the run was scored on any more."""
        try:
            return self.run.examples(self.split)
        except (ValueError, OSError) as error:
            raise Gone(f"The examples cannot be shown. {error}") from error

    @cached_property
    def wrong(self) -> np.ndarray:
        """Places of the examples with an error, rising. Of numbers every one that is off."""
        return np.array(
            [n for n, (guess, true) in enumerate(zip(*self.saved, strict=True)) if not np.array_equal(guess, true)],
            dtype=np.int64,
        )

    @cached_property
    def asked(self) -> np.ndarray:
        """Places (M,) of the examples that the model is asked about, rising: all, or as many as the options allow."""
        count, most = len(self.dataset), self.options.examples
        if count <= most:
            return np.arange(count)
        return np.sort(np.random.default_rng(SEED).choice(count, most, replace=False))

    @cached_property
    def asked_dataset(self) -> Any:
        """The examples that the model is asked about."""
        return take(self.dataset, self.asked)

    @cached_property
    def probabilities(self) -> np.ndarray:
        """(M, L) float64 of each label, for examples with one label or several."""
        if self.is_single:
            return self.run.probabilities(self.asked_dataset)
        return self._sigmoids()

    def vectors(self, places: np.ndarray) -> np.ndarray:
        """(len(places), D) what the last layer reads of some of the N examples."""
        return classifier_vectors(self.run, take(self.dataset, places))

    @property
    def word_vectors(self) -> np.ndarray:
        """(words, D) what the last layer reads of the words of M sentences that begin an entity."""
        return self._words.vectors

    @property
    def word_probabilities(self) -> list[np.ndarray]:
        """(W, L) float32 of each label, for the words of each of M sentences."""
        return self._words.probabilities

    def tags(self, ids: np.ndarray) -> list[str]:
        """The labels of a sentence's words."""
        return [self.labels[int(tag)] for tag in ids]

    def entities(self, ids: np.ndarray) -> set[Entity]:
        """The entities of a sentence, read as its lenient F1 reads them."""
        return find_entities(self.tags(ids), strict=False)

    def answer(self, ids: np.ndarray) -> str:
        """What an example is labelled with as a whole: a label, several, or a number."""
        if self.problem_type == "regression":
            return f"{ids[0]:.4g}"
        if self.problem_type == "multi_label_classification":
            return ", ".join(self.labels[index] for index in np.flatnonzero(ids)) or "(no label)"
        return self.labels[int(ids[0])]

    @torch.inference_mode()
    def _sigmoids(self) -> np.ndarray:
        """(M, L) of a model that gives several labels."""
        run, data = self.run, self.run.encode(self.asked_dataset)
        found = np.zeros((len(data.lengths), len(self.labels)))
        batches = evaluation_batches(data.lengths, run.config.evaluation_tokens(data.lengths))
        for indices, (inputs, labels) in zip(batches, load_batches(data, batches, run.device), strict=True):
            with autocast(run.model, run.config.precision, run.device):
                logits = run.model(**inputs).double()
            if run.config.long_text == "windows":
                logits = mean_of_windows(logits, labels)
            found[indices] = logits.sigmoid().cpu().numpy()
        return found

    @cached_property
    @torch.inference_mode()
    def _words(self) -> "_Words":
        run = self.run
        data: Any = run.encode(self.asked_dataset)
        model, begins = run.model, torch.tensor([tag.startswith("B") for tag in self.labels], device=run.device)
        probabilities: list[np.ndarray] = [np.empty(0)] * len(data)
        vectors: list[np.ndarray] = [np.empty(0)] * len(data)
        read: list[Tensor] = []
        batches = evaluation_batches(data.lengths, run.config.evaluation_tokens(data.lengths))
        hook = model.get_submodule(model.label_layers[-1]).register_forward_pre_hook(_keeper(read))
        try:
            for indices, (inputs, labels) in zip(batches, load_batches(data, batches, run.device), strict=True):
                read.clear()
                with autocast(model, run.config.precision, run.device):
                    logits = model(**inputs).float()
                scored = labels != IGNORED_LABEL  # (B, T)
                crf = run.config.head == "crf"
                found = logits.softmax(-1)
                if crf:
                    found = marginals(*split_scores(logits.cpu().numpy()), scored.cpu().numpy())
                    found = torch.from_numpy(found).to(run.device)
                first = scored & begins[labels.clamp(min=0)]  # (B, T)
                for row, index in enumerate(indices.tolist()):
                    probabilities[index] = found[row][scored[row]].cpu().numpy()
                    vectors[index] = read[0][row][first[row]].float().cpu().numpy()
        finally:
            hook.remove()
        # The windows of a sentence lie side by side, and each word is scored in one of them.
        ends = np.searchsorted(data.sentence, np.arange(len(self.asked)), side="right")[:-1]
        of_sentence = [np.concatenate(windows) for windows in np.split(_objects(probabilities), ends)]
        return _Words(of_sentence, np.concatenate(vectors))


@dataclass(frozen=True)
class _Words:
    """What a model of labelled words says."""

    probabilities: list[np.ndarray]
    """(W, L) of each of M sentences."""
    vectors: np.ndarray
    """(words that begin an entity, D) what the last layer reads of them."""


def _objects(arrays: list[np.ndarray]) -> np.ndarray:
    """An array of arrays."""
    found = np.empty(len(arrays), dtype=object)
    found[:] = arrays
    return found


def _keeper(read: list[Tensor]) -> Any:
    """A hook that keeps what a layer is given."""

    def keep(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        read.append(arguments[0].detach())

    return keep


def shares(counts: Sequence[int]) -> list[float]:
    """Of their sum, in percent; zeros where there is none."""
    total = sum(counts)
    return [100 * count / total if total else 0.0 for count in counts]
