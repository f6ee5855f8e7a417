"""Tiny models, of transformers and our own, and PEFT as the oracle."""

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor, nn

from lora_core.models import build_model, config_from_dict

BERT = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 24,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.3,
}
DISTILBERT = {
    "vocab_size": 60,
    "dim": 32,
    "n_layers": 2,
    "n_heads": 2,
    "hidden_dim": 48,
    "max_position_embeddings": 24,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "seq_classif_dropout": 0.0,
    "initializer_range": 0.3,
}
LABELS = ("O", "B-DNA", "I-DNA", "B-RNA", "I-RNA")

TRANSFORMERS = {
    "bert": ("Bert", "TokenClassification", BERT),
    "bert-text": ("Bert", "SequenceClassification", BERT),
    "bert-question": ("Bert", "QuestionAnswering", BERT),
    "roberta": ("Roberta", "TokenClassification", {**BERT, "pad_token_id": 1}),
    "roberta-text": ("Roberta", "SequenceClassification", {**BERT, "pad_token_id": 1}),
    "distilbert-text": ("DistilBert", "SequenceClassification", DISTILBERT),
}


class ConvNet(nn.Module):
    """An image classifier: convolutions, batch norm, a head that bears timm's name."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, stride=2, bias=False)
        self.inner = nn.Linear(8, 12)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(torch.relu(self.norm(self.first(x))))
        return self.head(torch.relu(self.inner(x.mean((2, 3)))))


def build(kind: str, **config) -> nn.Module:
    """A seeded model in eval mode: a key of TRANSFORMERS, "bert-encoder", "ours", "ours-text" or "conv"."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "conv":
            return ConvNet().eval()
        if kind == "bert-encoder":
            return transformers.BertModel(transformers.BertConfig(**BERT), add_pooling_layer=False).eval()
        if kind.startswith("ours"):
            task = "text-classification" if kind == "ours-text" else "token-classification"
            return build_model(config_from_dict({"model_type": "bert", **BERT, **config}), task, LABELS)
        family, task, values = TRANSFORMERS[kind]
        labels = 2 if task == "QuestionAnswering" else 5
        settings = getattr(transformers, f"{family}Config")(**{"num_labels": labels, **values, **config})
        return getattr(transformers, f"{family}For{task}")(settings).eval()


@pytest.fixture
def make() -> Callable[..., nn.Module]:
    """Factory of tiny models; the same kind always has the same weights."""
    return build


@pytest.fixture
def run() -> Callable[[nn.Module], Tensor]:
    """The model's outputs for one fixed batch, whatever the model is."""

    def outputs(model: nn.Module, rows: slice = slice(None)) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        if "conv" in type(next(m for m in model.modules() if not hasattr(m, "peft_config"))).__name__.lower():
            return model(torch.randn(4, 3, 8, 8, generator=generator)[rows])
        ids = torch.randint(2, 60, (4, 9), generator=generator)[rows]
        mask = torch.ones_like(ids)
        mask[-1, 6:] = 0
        result = model(input_ids=ids, attention_mask=mask)
        if isinstance(result, Tensor):
            return result
        return result.logits if "logits" in result else result[0]

    return outputs


@pytest.fixture
def randomise() -> Callable[[nn.Module], nn.Module]:
    """Fill every trainable parameter with random numbers, so that each counts in the outputs."""

    def fill(model: nn.Module, seed: int = 5, std: float = 0.2) -> nn.Module:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in sorted(model.named_parameters()):
                if parameter.requires_grad:
                    values = torch.randn(parameter.shape, generator=generator) * std
                    parameter.copy_(values.abs() + 0.5 if "magnitude" in name else values)
        return model

    return fill


@pytest.fixture
def train() -> Callable[[nn.Module], None]:
    """Three steps of SGD."""

    def steps(model: nn.Module, run: Callable[[nn.Module], Tensor], learning_rate: float = 0.5) -> None:
        model.train()
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], learning_rate)
        for _ in range(3):
            optimizer.zero_grad()
            run(model).float().square().mean().backward()
            optimizer.step()
        model.eval()

    return steps


@pytest.fixture
def peft_model() -> Callable[..., nn.Module]:
    """The model wrapped by PEFT, which is the oracle; its own warnings are not the subject here."""
    import peft

    def wrap(model: nn.Module, **config) -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return peft.get_peft_model(model, peft.LoraConfig(**config)).eval()

    return wrap


@pytest.fixture
def peft_load() -> Callable[..., nn.Module]:
    """The adapter in a folder, loaded by PEFT: its complaints (UserWarning) are errors."""
    import peft

    def load(model: nn.Module, folder: Path) -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # between versions of PEFT and transformers
            return peft.PeftModel.from_pretrained(model, folder).eval()

    return load


@pytest.fixture
def state() -> Callable[[nn.Module], dict]:
    """Everything that an operation which fails must leave as it was."""

    def snapshot(model: nn.Module) -> dict:
        modules = {path: (type(m), m.training, len(m._forward_hooks)) for path, m in model.named_modules()}
        flags = {name: p.requires_grad for name, p in model.named_parameters()}
        tensors = {name: (id(t), t.clone()) for name, t in model.state_dict(keep_vars=True).items()}
        return {"modules": modules, "flags": flags, "tensors": tensors}

    return snapshot


@pytest.fixture
def same() -> Callable[[dict, dict], bool]:
    """Whether two snapshots of `state` are equal, the identity of every tensor included."""

    def equal(before: dict, after: dict) -> bool:
        if before["modules"] != after["modules"] or before["flags"] != after["flags"]:
            return False
        a, b = before["tensors"], after["tensors"]
        return a.keys() == b.keys() and all(
            a[k][0] == b[k][0] and torch.equal(a[k][1].nan_to_num(), b[k][1].nan_to_num()) for k in a
        )

    return equal
