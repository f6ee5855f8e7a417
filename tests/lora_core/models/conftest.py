"""transformers as the oracle: tiny models of every family and task, every weight of which matters."""

from collections.abc import Callable

import pytest
import torch
import transformers

LABELS = ("O", "B-protein", "I-protein")

DEBERTA_POSITIONS = {
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_buckets": 4,
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
}

FAMILIES = {
    "bert": (
        transformers.BertConfig,
        {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40},
        {"vocab_size": 50, "max_position_embeddings": 16},
    ),
    "roberta": (
        transformers.RobertaConfig,
        {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40},
        {"vocab_size": 50, "max_position_embeddings": 18, "type_vocab_size": 1},
    ),
    "xlm-roberta": (
        transformers.XLMRobertaConfig,
        {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40},
        {"vocab_size": 50, "max_position_embeddings": 18, "type_vocab_size": 1},
    ),
    "camembert": (
        transformers.CamembertConfig,
        {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40},
        {"vocab_size": 50, "max_position_embeddings": 18, "type_vocab_size": 1},
    ),
    "distilbert": (
        transformers.DistilBertConfig,
        {"dim": 24, "n_layers": 2, "n_heads": 3, "hidden_dim": 40},
        {"vocab_size": 50, "max_position_embeddings": 16},
    ),
    "deberta-v2": (
        transformers.DebertaV2Config,
        {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40},
        {"vocab_size": 50, "max_position_embeddings": 16, "position_biased_input": False, **DEBERTA_POSITIONS},
    ),
    "modernbert": (
        transformers.ModernBertConfig,
        {"hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 20},
        {
            "vocab_size": 50,
            "max_position_embeddings": 32,
            "local_attention": 6,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "cls_token_id": 1,
            "sep_token_id": 2,
        },
    ),
}

AUTO_CLASSES = {
    "encoder": transformers.AutoModel,
    "token-classification": transformers.AutoModelForTokenClassification,
    "text-classification": transformers.AutoModelForSequenceClassification,
}


@pytest.fixture(scope="session")
def oracle() -> Callable[..., transformers.PreTrainedModel]:
    """`oracle(family, task, labels=LABELS, **fields)`: a random transformers model in eval mode."""

    def make(
        family: str, task: str, labels: tuple[str, ...] = LABELS, **fields: object
    ) -> transformers.PreTrainedModel:
        config_class, sizes, limits = FAMILIES[family]
        config = config_class(**{**sizes, **limits, **fields}, id2label=dict(enumerate(labels)))
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = AUTO_CLASSES[task].from_config(config).eval()
            with torch.no_grad():
                # transformers starts biases at 0 and norms at 1, which would hide a bias left out.
                for parameter in model.parameters():
                    parameter.normal_(0, 0.3)
        return model

    return make


@pytest.fixture(scope="session")
def batch() -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """`batch(lengths, pad_token_id)`: ids (B, T) padded to the longest, and their mask."""

    def make(lengths: list[int], pad_token_id: int, vocab_size: int = 50) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(sum(lengths))
        input_ids = torch.randint(3, vocab_size, (len(lengths), max(lengths)), generator=generator)
        mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        return input_ids.masked_fill(~mask, pad_token_id), mask.long()

    return make
