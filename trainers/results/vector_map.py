"""Texts or images as points on a plane: the vectors that a classifier's last layer reads, by PCA and t-SNE.

Shapes: N examples, D size of the vectors.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trainers.finished import FinishedRun
from trainers.show import COLOURS, blank_figure, save_figure


@torch.inference_mode()
def classifier_vectors(run: FinishedRun, dataset: Any) -> np.ndarray:
    """What the run's last layer reads of each example, (N, D) float32: for BERT's own head the pooled [CLS] vector.

    Of a text of several windows it is their mean.
    """
    layer = run.model.get_submodule(run.model.label_layers[-1])
    read: list[Tensor] = []

    def keep(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        read.append(arguments[0].float().cpu())

    handle = layer.register_forward_pre_hook(keep)
    try:
        indices = []
        for batch, inputs in run.batches(dataset):
            indices.append(batch)
            run.model(**inputs)
    finally:
        handle.remove()
    rows = np.concatenate(indices)
    sums = np.zeros((len(dataset), read[0].shape[-1]), dtype=np.float32)
    np.add.at(sums, rows, torch.cat(read).numpy())
    return sums / np.bincount(rows, minlength=len(dataset)).astype(np.float32)[:, None]


def plane_pca(vectors: np.ndarray) -> tuple[np.ndarray, float]:
    """(N, 2) coordinates along the two directions of most variance, and their share of it."""
    from sklearn.decomposition import PCA

    pca = PCA(2, svd_solver="full")
    return pca.fit_transform(vectors), float(pca.explained_variance_ratio_.sum())


def plane_tsne(vectors: np.ndarray, seed: int = 0) -> np.ndarray:
    """(N, 2) coordinates by t-SNE (van der Maaten and Hinton 2008), which keeps neighbours and not distances."""
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(vectors) - 1) / 3)
    return TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(vectors)


def vectors_picture(
    vectors: np.ndarray, gold: np.ndarray, predicted: np.ndarray, labels: Sequence[str], path: str | Path, seed: int = 0
) -> None:
    """Write both planes as a PNG: colours are true labels, rings the errors.

    Raises:
        ValueError: fewer than four examples.
    """
    if len(vectors) < 4:
        raise ValueError(f"a map of vectors needs at least 4 examples, but there are {len(vectors)}.")
    flat, share = plane_pca(vectors)
    figure = blank_figure(11, 5.2)
    titles = {f"PCA ({share:.0%} of the variance)": flat, "t-SNE": plane_tsne(vectors, seed)}
    for panel, (title, points) in zip(figure.subplots(1, 2), titles.items(), strict=True):
        for index, label in enumerate(labels):
            own = points[gold == index]
            panel.scatter(*own.T, s=10, color=COLOURS[index % len(COLOURS)], label=label, linewidths=0)
        wrong = points[gold != predicted]
        panel.scatter(*wrong.T, s=45, facecolors="none", edgecolors="black", linewidths=0.8, label="error")
        panel.set(title=title, xticks=[], yticks=[])
    figure.axes[0].legend(fontsize=8, markerscale=1.5, loc="best")
    save_figure(figure, path)
