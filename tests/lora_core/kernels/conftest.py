"""Tiny models of every family that can be fused, their inputs, and dropout that plain and fused layers share."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lora_core.models import build_model, config_from_dict

BERT = {"vocab_size": 60, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3,
        "intermediate_size": 40, "max_position_embeddings": 24, "initializer_range": 0.1,
        "attention_probs_dropout_prob": 0.0, "layer_norm_eps": 1e-5}  # fmt: skip
FAMILIES = {
    "bert": {**BERT, "model_type": "bert"},
    "roberta": {**BERT, "model_type": "roberta"},
    "distilbert": {"model_type": "distilbert", "vocab_size": 60, "dim": 24, "n_layers": 3, "n_heads": 3,
                   "hidden_dim": 40, "max_position_embeddings": 24, "initializer_range": 0.1, "dropout": 0.1,
                   "attention_dropout": 0.0},
    "deberta-v2": {**BERT, "model_type": "deberta-v2", "relative_attention": True, "pos_att_type": "p2c|c2p",
                   "position_buckets": 8, "share_att_key": True, "norm_rel_ebd": "layer_norm",
                   "position_biased_input": False},
    "modernbert": {"model_type": "modernbert", "vocab_size": 60, "hidden_size": 24, "num_hidden_layers": 3,
                   "num_attention_heads": 3, "intermediate_size": 20, "max_position_embeddings": 24,
                   "initializer_range": 0.1, "local_attention": 4, "embedding_dropout": 0.1, "mlp_dropout": 0.1,
                   "pad_token_id": 1},
    "vit": {**BERT, "model_type": "vit", "image_size": 16, "patch_size": 4, "num_channels": 1,
            "hidden_dropout_prob": 0.1},
}  # fmt: skip
LABELS = ("O", "B-DNA", "I-DNA")


def build(family: str, task: str | None = None, **fields) -> nn.Module:
    """A seeded model in which every weight, bias and norm matters."""
    values = {**FAMILIES[family], **fields}
    for missing in ("vocab_size", "max_position_embeddings") if family == "vit" else ():
        values.pop(missing, None)
    task = task or ("image-classification" if family == "vit" else "token-classification")
    model = build_model(config_from_dict(values), task, LABELS)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


@pytest.fixture
def make() -> Callable[..., nn.Module]:
    return build


@pytest.fixture
def inputs() -> Callable[..., dict[str, Tensor]]:
    """Keyword arguments of a model: sentences of 9, 4 and 7 tokens, or images."""

    def of(family: str, lengths: tuple[int, ...] = (9, 4, 7)) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(3)
        if family == "vit":
            return {"pixel_values": torch.randn(len(lengths), 1, 16, 16, generator=generator)}
        mask = (torch.arange(max(*lengths, 2)) < torch.tensor(lengths)[:, None]).long()
        ids = torch.randint(3, 60, mask.shape, generator=generator)
        return {"input_ids": ids.where(mask.bool(), 1), "attention_mask": mask}

    return of


@pytest.fixture
def shared_dropout(monkeypatch) -> Callable[[], None]:
    """Dropout that drops whole features, others in every call, whatever the shape of the batch.

    So the plain layers, on padded batches, and the fused ones, on packed ones, drop the same. Call the fixture
    before each pass.
    """
    calls = [0]

    def keep_mask(shape, p: float) -> tuple[Tensor, float]:
        calls[0] += 1
        generator = torch.Generator().manual_seed(calls[0])
        kept = (torch.rand(shape[-1], generator=generator) >= p).to(torch.uint8)
        return kept.expand(shape).contiguous(), 1 / (1 - p)

    monkeypatch.setattr("lora_core.dropout.keep_mask", keep_mask)
    monkeypatch.setattr("lora_core.kernels.linear.draw_keep", lambda x, p: keep_mask(x.shape, p))
    monkeypatch.setattr("lora_core.kernels.transformer_layer.ops", lambda: None)  # they draw masks of their own

    def restart() -> None:
        calls[0] = 0

    return restart


@pytest.fixture
def gradients() -> Callable[[nn.Module, dict[str, Tensor]], tuple[Tensor, dict[str, Tensor]]]:
    """Logits at the real tokens, and the gradient of every trained parameter for a loss that reads only these."""

    def run(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        model.zero_grad()
        logits = model(**batch)
        real = batch["attention_mask"].bool() if logits.ndim == 3 else slice(None)
        logits = logits[real]
        weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(11))
        (logits * weights).sum().backward()
        return logits.detach(), {
            name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
        }

    return run


@pytest.fixture
def assert_same() -> Callable[..., None]:
    """Two results of `gradients` agree, relative to the largest entry of each tensor.

    Some gradients are zero but for rounding (a key's bias cannot change a softmax), so a tensor's scale is at least a
    hundredth of the largest one.
    """

    def check(found: tuple, expected: tuple, tolerance: float = 1e-5) -> None:
        assert found[1].keys() == expected[1].keys()
        largest = max(float(gradient.abs().max()) for gradient in expected[1].values())
        for name, a, b in [("logits", found[0], expected[0]), *((n, found[1][n], expected[1][n]) for n in found[1])]:
            error = (a.double() - b.double()).abs().max() / b.double().abs().max().clamp_min(largest / 100)
            assert error < tolerance, (name, float(error))

    return check
