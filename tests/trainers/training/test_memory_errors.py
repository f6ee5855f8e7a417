"""Too little memory ends in one line that says how much was needed and what to change."""

import numpy as np
import pytest
import torch

from trainers.config import TrainConfig
from trainers.data.tokens.windows import TokenWindows
from trainers.loop import evaluate, fit
from trainers.tasks.token import TokenClassification
from trainers.training.memory import TooLittleMemoryError, is_out_of_memory, memory_errors

CPU = torch.device("cpu")
TOO_MUCH = 1 << 50
REAL = {
    "torch": (lambda: torch.empty(TOO_MUCH, dtype=torch.uint8), "1125899906842624 bytes more were needed"),
    "numpy": (lambda: np.empty(TOO_MUCH, np.uint8), "1.00 PiB more were needed"),
    "python": (lambda: bytearray(TOO_MUCH), "more was needed"),
}
"""What really fails, each in its own way."""


@pytest.mark.fault("an allocation that fails in training", "a line: bytes and --micro-batch-tokens", "the epoch")
@pytest.mark.parametrize("kind", REAL)
@pytest.mark.parametrize(
    ("settings", "tokens"),
    [({"micro_batch_tokens": 90}, 45), ({"micro_batch_size": 4}, 40), ({"batch_tokens": 64, "kernels": "plain"}, 32)],
)
def test_training_without_memory(tiny, alone, tmp_path, kind, settings, tokens):
    allocate, needed = REAL[kind]

    class Task(TokenClassification):
        def training_loss_sum(self, logits, labels):
            allocate()
            return super().training_loss_sum(logits, labels)

    config = TrainConfig(epochs=1, metric="loss", **settings)
    with pytest.raises(TooLittleMemoryError) as error:
        fit(tiny.build(), Task(tiny.LABELS), tiny.windows(40), tiny.windows(9, 1), config, alone, tmp_path)
    message = str(error.value)
    assert message.startswith(f"Out of memory on cpu: {needed}, ")
    assert f" bytes are free. Add --micro-batch-tokens {tokens}, half of what one pass takes now" in message
    assert "\n" not in message


@pytest.mark.fault("an allocation that fails in evaluation", "a line: bytes and --micro-batch-tokens", "the epoch")
def test_evaluation_without_memory(tiny, alone, monkeypatch):
    monkeypatch.setattr(TokenWindows, "collate", lambda *_: torch.empty(TOO_MUCH, dtype=torch.uint8))
    config = TrainConfig(micro_batch_tokens=100)
    with pytest.raises(TooLittleMemoryError, match="--micro-batch-tokens 50,"):
        evaluate(tiny.build(), TokenClassification(tiny.LABELS), tiny.windows(9, 1), config, alone)


def test_half_the_tokens_give_the_same_weights(tiny, alone, tmp_path):
    """What the message promises."""
    data, found = tiny.windows(24), []
    for most in (90, 45):
        config = TrainConfig(epochs=1, metric="loss", micro_batch_tokens=most, kernels="plain")
        model = tiny.build()
        fit(model, TokenClassification(tiny.LABELS), data, tiny.windows(9, 1), config, alone, tmp_path)
        found.append(tiny.weights(model))
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-4, atol=1e-5)


def raise_in_pass(error, tokens):
    with memory_errors(CPU, tokens):
        raise error


def test_a_gpu_says_so_in_its_own_words():
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has 1 GiB")
    assert is_out_of_memory(error)
    with pytest.raises(TooLittleMemoryError, match=r"20\.00 MiB more were needed.*--micro-batch-tokens 4,"):
        raise_in_pass(error, 8)


def test_one_example_that_is_too_much():
    with pytest.raises(TooLittleMemoryError, match="One example is too much"):
        raise_in_pass(MemoryError(), 1)


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes cannot be multiplied"), ValueError("out of memory"), KeyError()]
)
def test_other_errors_pass(error):
    with pytest.raises(type(error)) as raised:
        raise_in_pass(error, 8)
    assert raised.value is error
