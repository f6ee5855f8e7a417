"""How updates start: each scheme fills A and B, for PiSSA and OLoRA from the frozen weight."""

import math

import torch
from torch import Tensor, nn

from lora_core.config import LoRAConfig
from lora_core.updates import Conv2dUpdate, EmbeddingUpdate, LinearUpdate, Update


@torch.no_grad()
def initialise(update: Update, matrix: Tensor, config: LoRAConfig) -> None:
    """Fill ``update`` for the frozen weight ``matrix`` (out, in) of its layer, by ``config.init_lora_weights``.

    Raises:
        ValueError: the scheme is not defined for this kind of layer, or the rank is too large for it.
    """
    scheme = config.initialisation
    if isinstance(update, EmbeddingUpdate):
        _start_embedding(update, scheme)
    else:
        if isinstance(update, Conv2dUpdate) and scheme not in _START_BY_SHAPE:
            raise ValueError(
                f"init_lora_weights={scheme!r} is not defined for a convolution; use 'gaussian' or exclude it."
            )
        if update.bias is not None:
            nn.init.zeros_(update.bias)
        for a, b, weight in update.blocks(matrix):
            _fill(a, b, weight, update, config)
        if isinstance(update, LinearUpdate) and (scheme == "olora" or scheme.startswith("pissa")):
            update.keep_start()
    if update.lora_magnitude_vector is not None and not matrix.is_meta:
        update.lora_magnitude_vector.copy_(update.row_norms(matrix))


_START_BY_SHAPE = ("gaussian", "kaiming", "random")


def _fill(a: Tensor, b: Tensor, weight: Tensor, update: Update, config: LoRAConfig) -> None:
    match config.initialisation:
        case "gaussian":
            nn.init.normal_(a, std=1 / update.r)
            nn.init.zeros_(b)
        case "kaiming" | "eva":  # eva: until eva.py replaces A by what the data says
            nn.init.kaiming_uniform_(a, a=math.sqrt(5))
            nn.init.zeros_(b)
        case "random":
            nn.init.kaiming_uniform_(a, a=math.sqrt(5))
            nn.init.kaiming_uniform_(b, a=math.sqrt(5))
        case "orthogonal":
            _orthogonal(a, b)
        case "olora":
            _olora(a, b, weight)
        case _:
            _pissa(a, b, weight, float(update.scaling), config.pissa_iterations)


def _start_embedding(update: EmbeddingUpdate, scheme: str) -> None:
    """A of zeros and B of ones' spread, as PEFT starts an embedding; "random" draws both."""
    if scheme not in _START_BY_SHAPE:
        raise ValueError(f"init_lora_weights={scheme!r} is not defined for an embedding; use 'gaussian' or exclude it.")
    if scheme == "random":
        nn.init.normal_(update.lora_embedding_A)
    else:
        nn.init.zeros_(update.lora_embedding_A)
    nn.init.normal_(update.lora_embedding_B)


def _orthogonal(a: Tensor, b: Tensor) -> None:
    """Rows of A and columns of B from the two halves of one orthogonal basis, so that B A = 0 although neither is.

    https://datta0.github.io/posts/rethink-lora-init
    """
    r = a.shape[0]
    basis = torch.linalg.qr(torch.randn(r, r, device=a.device)).Q
    a.copy_((torch.randn(a.shape[1], r // 2, device=a.device) @ basis[0::2]).T / 10)
    b.copy_(torch.randn(b.shape[0], r // 2, device=a.device) @ basis[1::2] / 10)


def _olora(a: Tensor, b: Tensor, weight: Tensor) -> None:
    """The first r columns of Q and rows of R in W = Q R. https://arxiv.org/abs/2406.01775"""
    r = _feasible(a, weight)
    w = weight.float()
    q = torch.linalg.qr(w[:, :r]).Q  # Householder's Q depends on no later column
    a.copy_(q.T @ w)
    b.copy_(q)


def _pissa(a: Tensor, b: Tensor, weight: Tensor, scaling: float, iterations: int | None) -> None:
    """The r largest singular values of W, split evenly, so that scaling * B A is W's best rank-r approximation.

    ``iterations`` of a randomised SVD, or None for an exact one. https://arxiv.org/abs/2404.02948, equations 2-4.
    """
    r = _feasible(a, weight)
    if scaling <= 0:
        raise ValueError(f"PiSSA needs a scaling above 0, but lora_alpha gives {scaling}.")
    if iterations is None:
        u, s, vh = torch.linalg.svd(weight.float(), full_matrices=False)
    else:
        u, s, vh = _leading_vectors(weight.float(), r, iterations)
    root = (s[:r] / scaling).sqrt()
    a.copy_(root[:, None] * vh[:r])
    b.copy_(u[:, :r] * root)


def _leading_vectors(w: Tensor, r: int, iterations: int) -> tuple[Tensor, Tensor, Tensor]:
    """The r largest singular values of ``w`` (out, in), nearly: U (out, r), S (r,), V^T (r, in).

    Subspace iteration, Halko et al. 2011 (https://arxiv.org/abs/0909.4061), algorithms 4.4 and 5.1. The few vectors
    are kept as rows, which makes these products several times as fast on a CPU as with columns.
    """
    out_rows = _orthonormal(torch.randn(r, w.shape[1], device=w.device) @ w.T)  # (r, out)
    for _ in range(iterations):
        out_rows = _orthonormal(_orthonormal(out_rows @ w) @ w.T)
    u, s, vh = torch.linalg.svd(out_rows @ w, full_matrices=False)
    return out_rows.T @ u, s, vh


def _orthonormal(rows: Tensor) -> Tensor:
    """Orthonormal rows that span the same space."""
    return torch.linalg.qr(rows.T).Q.T


def _feasible(a: Tensor, weight: Tensor) -> int:
    """The rank, which a decomposition of ``weight`` cannot exceed."""
    if a.shape[0] > min(weight.shape):
        raise ValueError(
            f"The rank {a.shape[0]} is more than a weight of {tuple(weight.shape)} has. Lower r or set rank_pattern."
        )
    return a.shape[0]
