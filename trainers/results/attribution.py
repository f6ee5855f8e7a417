"""How much each word of a text speaks for a label: integrated gradients on the word embeddings.

Sundararajan, Taly and Yan 2017 (https://arxiv.org/abs/1703.01365), equation 1: the gradient of the label's logit,
summed along the straight line from a text of padding to the text itself. The attributions of a text add up to the
logit minus that of the padding (completeness), up to the error of so many steps.

Shapes: T tokens, E embedding size, W words, S steps.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from trainers.training.adversarial import word_embeddings

STEPS = 64
TOKENS_AT_ONCE = 4096
"""Tokens whose hidden states are in memory at a time, unless one text has more."""


@dataclass(frozen=True)
class Attribution:
    """Why a model gives a text a label."""

    tokens: np.ndarray
    """(T,) share of each token in the logit; special tokens have none."""
    difference: float
    """The label's logit for the text, minus that for the padding: what `tokens` adds up to."""


def integrated_gradients(
    model: nn.Module,
    input_ids: Tensor,
    label: int,
    pad_token_id: int,
    special: Tensor,
    steps: int = STEPS,
    *,
    position: int | None = None,
) -> Attribution:
    """The share of each token of one text in the logit of a label.

    Args:
        model: in eval mode, `model(input_ids, attention_mask)` -> (B, L); with a position (B, T, L).
        input_ids: (T,) tokens of the text.
        label: its id.
        pad_token_id: what the words are compared with.
        special: (T,) True at tokens that stay, such as [CLS].
        steps: points of the line, at the middle of as many equal parts.
        position: the token whose label it is, for a model that labels tokens; None: the text's.
    """
    of_label = (slice(None), label) if position is None else (slice(None), position, label)
    embeddings = word_embeddings(model)
    embed = embeddings.forward
    with torch.no_grad():
        text = embed(input_ids[None])  # (1, T, E)
        empty = embed(torch.where(special, input_ids, pad_token_id)[None])  # (1, T, E)
    points = (torch.arange(steps, device=text.device, dtype=text.dtype) + 0.5) / steps  # (S,)
    total = torch.zeros_like(text[0], dtype=torch.float64)  # (T, E) sum of the gradients
    for part in points.split(max(1, TOKENS_AT_ONCE // len(input_ids))):
        line = (empty + part[:, None, None] * (text - empty)).requires_grad_()  # (part of S, T, E)
        with torch.backends.cudnn.flags(enabled=False):  # cuDNN's LSTM has no backward pass in eval mode
            logits = _logits(model, embeddings, input_ids, line)
            (gradient,) = torch.autograd.grad(logits[of_label].sum(), line)
        total += gradient.double().sum(0)
    with torch.no_grad():
        ends = torch.cat([empty, text])  # (2, T, E)
        at_empty, at_text = _logits(model, embeddings, input_ids, ends)[of_label].double().tolist()
    shares = (total / steps * (text - empty)[0].double()).sum(-1)  # (T,)
    return Attribution(shares.cpu().numpy(), at_text - at_empty)


def by_word(values: np.ndarray, words: np.ndarray) -> np.ndarray:
    """(W,) sums over the tokens of each word. `words`: (T,) number of each token's word, -1 for special tokens."""
    inside = words >= 0
    _, numbers = np.unique(words[inside], return_inverse=True)
    return np.bincount(numbers, weights=values[inside])


def _logits(model: nn.Module, embeddings: nn.Module, input_ids: Tensor, embedded: Tensor) -> Tensor:
    """The model's logits (S, L) or (S, T, L) for S embedded texts (S, T, E) in the place of `input_ids`."""

    def replace(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return embedded

    handle = embeddings.register_forward_hook(replace)
    try:
        ids = input_ids.expand(len(embedded), -1)
        return model(input_ids=ids, attention_mask=torch.ones_like(ids))
    finally:
        handle.remove()
