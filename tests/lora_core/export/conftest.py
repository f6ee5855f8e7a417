"""Tiny task models of every family, with every weight of which the logits depend, and batches for them."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lora_core.models import build_model, config_from_dict
from lora_core.models.task_model import TaskModel

LABELS = ("O", "B-protein", "I-protein")

BERT = {"vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3,
        "intermediate_size": 40, "max_position_embeddings": 16}  # fmt: skip
ROBERTA = {**BERT, "max_position_embeddings": 18, "type_vocab_size": 1, "pad_token_id": 1}
VIT = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40,
       "image_size": 8, "patch_size": 4}  # fmt: skip

FAMILIES = {
    "bert": BERT,
    "roberta": ROBERTA,
    "xlm-roberta": ROBERTA,
    "camembert": ROBERTA,
    "distilbert": {"vocab_size": 50, "dim": 24, "n_layers": 2, "n_heads": 3, "hidden_dim": 40,
                   "max_position_embeddings": 16},
    "deberta-v2": {**BERT, "relative_attention": True, "pos_att_type": "p2c|c2p", "position_buckets": 4,
                   "share_att_key": True, "norm_rel_ebd": "layer_norm", "position_biased_input": False},
    "modernbert": {"vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 3,
                   "intermediate_size": 20, "max_position_embeddings": 16, "pad_token_id": 0, "local_attention": 6},
    "electra": {**BERT, "embedding_size": 16},
    "albert": {**BERT, "num_hidden_layers": 3, "embedding_size": 16},
    "mpnet": {**BERT, "max_position_embeddings": 18},
    "vit": VIT,
    "deit": VIT,
    "dinov2": {name: VIT[name] for name in VIT if name != "intermediate_size"},
}  # fmt: skip

TEXT_FAMILIES = ("bert", "roberta", "distilbert")
TEXT_TASKS = ("token-classification", "text-classification")


def randomise(model: TaskModel, seed: int = 0) -> TaskModel:
    """Fill every parameter with random numbers: fresh biases of 0 would hide a bias left out."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


@pytest.fixture(scope="session")
def make() -> Callable[..., TaskModel]:
    """`make(family, task, labels=LABELS, head="default", **fields)`: a random model in eval mode."""

    def build(
        family: str, task: str, labels: tuple[str, ...] = LABELS, head: str = "default", **fields: object
    ) -> TaskModel:
        config = config_from_dict({"model_type": family, **FAMILIES[family], **fields})
        model = build_model(config, task, labels, head=head)
        assert isinstance(model, TaskModel)
        return randomise(model)

    return build


@pytest.fixture(scope="session")
def texts() -> list[list[int]]:
    """Token ids of texts of many lengths."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, 50, (length,), generator=generator).tolist() for length in (3, 1, 7, 12, 7, 4, 16)]


@pytest.fixture(scope="session")
def batch() -> Callable[..., dict[str, Tensor]]:
    """`batch(model, lengths)`: a padded batch of random ids and its mask; or so many images."""

    def build(model: TaskModel, lengths: tuple[int, ...] = (9, 4, 1)) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(sum(lengths))
        if model.task == "image-classification":
            return {"pixel_values": torch.randn(len(lengths), 3, *model.config.image_shape, generator=generator)}
        ids = torch.randint(3, model.config.vocab_size, (len(lengths), max(lengths)), generator=generator)
        mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        return {"input_ids": ids.masked_fill(~mask, model.config.pad_token_id), "attention_mask": mask.long()}

    return build
