"""What a new family costs: its own file and one line in ENCODERS. It is then built, adapted, trained by the fused
layers, saved, loaded and exported.

`PlainModel` is what most families are: norms after the sums, positions in the embeddings; its two layers run twice, as
ALBERT's do. `ModernModel` differs wherever an encoder may: norms first, relative positions in the scores, gated
feed-forward layers, one projection for query, key and value, no biases, and layers of its own in the head.
"""

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lora_core
from lora_core.dropout import Dropout
from lora_core.export import (
    OnnxModel,
    export_onnx,
    export_onnx_base,
    fused_counts,
    parity_batches,
    quantize_onnx,
    save_onnx_adapter,
    verify_onnx,
    verify_onnx_adapter,
)
from lora_core.kernels.fused import FusedStack, fuse, unfuse
from lora_core.models import build_model, config_from_dict, load_pretrained, save_pretrained
from lora_core.models.checks import check_input
from lora_core.models.encoder import Encoder, EncoderConfig
from lora_core.models.encoders.build import ENCODERS
from lora_core.models.heads import TokenClassifier
from lora_core.models.layers import (
    MASKED,
    GraphBuilder,
    LayerParts,
    LayerStack,
    MultiHeadAttention,
    TransformerLayer,
    additive_mask,
)
from lora_core.models.task_model import TextModel

LABELS = ("O", "B-a", "I-a")
HEADS = ("linear", "mlp", "textcnn", "attention")


@dataclass(frozen=True)
class PlainConfig(EncoderConfig):
    model_type = "plain"
    activation_field = None
    attention_dropout_field = "dropout"
    hidden_dropout_field = "dropout"

    vocab_size: int = 50
    hidden_size: int = 24
    num_hidden_layers: int = 4
    num_attention_heads: int = 3
    max_tokens: int = 16
    dropout: float = 0.0
    initializer_range: float = 0.2
    pad_token_id: int = 0

    @property
    def head_dropout(self) -> float:
        return self.dropout


class PlainAttention(MultiHeadAttention):
    def __init__(self, config: PlainConfig) -> None:
        super().__init__(config.num_attention_heads, config.dropout)
        self.q, self.k, self.v = (nn.Linear(config.hidden_size, config.hidden_size) for _ in range(3))

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        return self.attend(self.q(hidden), self.k(hidden), self.v(hidden), mask)


class PlainLayer(TransformerLayer):
    def __init__(self, config: PlainConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.attend = PlainAttention(config)
        self.mix, self.wide, self.narrow = nn.Linear(size, size), nn.Linear(size, 40), nn.Linear(40, size)
        self.act, self.drop = nn.GELU(), Dropout(config.dropout)
        self.norm1, self.norm2 = nn.LayerNorm(size), nn.LayerNorm(size)

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        hidden = self.norm1(hidden + self.drop(self.mix(self.attend(hidden, mask))))
        return self.norm2(hidden + self.drop(self.narrow(self.act(self.wide(hidden)))))

    def parts(self) -> LayerParts:
        own, drop = self.attend, self.drop
        return LayerParts(
            own, (own.q, own.k, own.v), self.mix, drop, self.norm1, self.wide, self.act, self.narrow, drop, self.norm2
        )


class PlainModel(Encoder):
    config_class = PlainConfig
    base_model_prefix = "plain"
    architecture_stem = "Plain"
    heads = (TokenClassifier,)

    def __init__(self, config: PlainConfig) -> None:
        super().__init__(config)
        self.words = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.places = nn.Embedding(config.max_tokens, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size)
        self.blocks = LayerStack((PlainLayer(config) for _ in range(config.num_hidden_layers // 2)), times=2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: None = None) -> Tensor:
        check_input(input_ids, attention_mask, self.config.max_tokens)
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        hidden = self.norm(self.words(input_ids) + self.places(places))
        return self.blocks(hidden, additive_mask(attention_mask, hidden.dtype))

    def onnx_embeddings(self, graph: GraphBuilder, inputs: str) -> str:
        return graph.embed(inputs, self.words, [self.places], self.norm)


@dataclass(frozen=True)
class ModernConfig(PlainConfig):
    model_type = "modern"

    num_hidden_layers: int = 2


class ModernAttention(MultiHeadAttention):
    """What all layers share, (1, N, T, T), is added to the scores."""

    def __init__(self, config: ModernConfig) -> None:
        super().__init__(config.num_attention_heads, config.dropout)
        self.Wqkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)

    def forward(self, hidden: Tensor, mask: Tensor | None, bias: Tensor) -> Tensor:
        return self.attend(*self.Wqkv(hidden).chunk(3, -1), mask, bias)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *shared: Tensor) -> Tensor:
        added = shared[0] if mask is None else shared[0] + mask
        return super().attend(query, key, value, added)

    def onnx(self, graph: GraphBuilder, x: str, query_key_value: Any, mask: str, *shared: str) -> str:
        parts = [f"{graph.path(self)}.{part}" for part in ("query", "key", "value")]
        graph.op("Split", graph.linear(x, query_key_value), outputs=parts, axis=-1, num_outputs=3)
        query, key, value = (self._heads(graph, part) for part in parts)
        scores = graph.op("MatMul", query, graph.op("Transpose", key, perm=[0, 1, 3, 2]))  # (B, N, T, T)
        width = self.Wqkv.in_features // self.num_heads
        scores = graph.op("Mul", scores, graph.constant(width**-0.5, np.float32))
        padding = graph.op("Sub", graph.constant(1, np.float32), graph.cast(mask, np.float32))
        padding = graph.op("Mul", padding, graph.constant(MASKED, np.float32))
        added = graph.op("Add", shared[0], graph.op("Unsqueeze", padding, graph.constant([1, 2])))
        weights = graph.op("Softmax", graph.op("Add", scores, added), axis=-1)
        context = graph.op("Transpose", graph.op("MatMul", weights, value), perm=[0, 2, 1, 3])
        return graph.op("Reshape", context, graph.constant([0, 0, -1]))

    def _heads(self, graph: GraphBuilder, x: str) -> str:
        split = graph.op("Reshape", x, graph.constant([0, 0, self.num_heads, -1]))
        return graph.op("Transpose", split, perm=[0, 2, 1, 3])  # (B, N, T, D)


class Gate(nn.Module):
    """(..., 2 F) -> (..., F), GeGLU."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        value, gate = x.chunk(2, -1)
        return self.act(value) * gate

    def onnx(self, graph: GraphBuilder, x: str) -> str:
        graph.op("Split", x, outputs=[f"{x}.value", f"{x}.gate"], axis=-1, num_outputs=2)
        return graph.op("Mul", graph.activate(f"{x}.value", self.act), f"{x}.gate")


class ModernLayer(TransformerLayer):
    norm_first = True

    def __init__(self, config: ModernConfig, first: bool) -> None:
        super().__init__()
        size = config.hidden_size
        self.attend = ModernAttention(config)
        sizes = (size, size), (size, 80), (40, size)
        self.mix, self.wide, self.narrow = (nn.Linear(*pair, bias=False) for pair in sizes)
        self.gate, self.drop = Gate(), Dropout(config.dropout)
        self.norm1 = nn.Identity() if first else nn.LayerNorm(size, bias=False)
        self.norm2 = nn.LayerNorm(size, bias=False)

    def forward(self, hidden: Tensor, mask: Tensor | None, bias: Tensor) -> Tensor:
        hidden = hidden + self.drop(self.mix(self.attend(self.norm1(hidden), mask, bias)))
        return hidden + self.drop(self.narrow(self.gate(self.wide(self.norm2(hidden)))))

    def parts(self) -> LayerParts:
        own, drop = self.attend, self.drop
        return LayerParts(
            own, (own.Wqkv,), self.mix, drop, self.norm1, self.wide, self.gate, self.narrow, drop, self.norm2
        )


class ModernTextClassifier(TextModel):
    """Two layers beside the encoder, one of them called `head`."""

    task = "text-classification"
    architecture_suffix = "ForSequenceClassification"
    head_names = ("head", "classifier")
    tokens_read = 1

    def __init__(self, encoder: Encoder, labels: tuple[str, ...]) -> None:
        super().__init__(encoder, labels)
        self.head = nn.Linear(self.config.hidden_size, self.config.hidden_size)
        self.classifier = nn.Linear(self.config.hidden_size, len(labels))

    def logits(self, hidden: Tensor, attention_mask: Tensor | None = None, input_ids: Tensor | None = None) -> Tensor:
        return self.classifier(torch.tanh(self.head(hidden[:, 0])))

    def onnx(self, graph: GraphBuilder, hidden: str, input_ids: str, mask: str) -> str:
        return graph.label_layer(graph.op("Tanh", graph.dense(hidden, self.head)), self.classifier)


class ModernModel(Encoder):
    config_class = ModernConfig
    base_model_prefix = "model"
    architecture_stem = "Modern"
    heads = (TokenClassifier, ModernTextClassifier)

    def __init__(self, config: ModernConfig) -> None:
        super().__init__(config)
        self.words = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.norm = nn.LayerNorm(config.hidden_size)
        self.distances = nn.Embedding(2 * config.max_tokens, config.num_attention_heads)
        self.layers = LayerStack(ModernLayer(config, number == 0) for number in range(config.num_hidden_layers))
        self.final_norm = nn.LayerNorm(config.hidden_size)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: None = None) -> Tensor:
        check_input(input_ids, attention_mask, self.config.max_tokens)
        hidden = self.norm(self.words(input_ids))
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        distance = places - places[:, None] + self.config.max_tokens  # (T, T)
        bias = self.distances(distance).permute(2, 0, 1)[None]  # (1, N, T, T)
        return self.final_norm(self.layers(hidden, additive_mask(attention_mask, hidden.dtype), bias))

    def norm_after_layers(self) -> nn.Module:
        return self.final_norm

    def onnx_embeddings(self, graph: GraphBuilder, inputs: str) -> str:
        return graph.normalise(graph.op("Gather", graph.parameter(self.words), inputs), self.norm)

    def onnx_shared(self, graph: GraphBuilder, inputs: str) -> tuple[str, ...]:
        length = graph.op("Squeeze", graph.op("Shape", inputs, start=1, end=2), graph.constant([0]))
        places = graph.op("Range", graph.constant(0), length, graph.constant(1))
        rows = graph.op("Unsqueeze", places, graph.constant([1]))
        distance = graph.op("Add", graph.op("Sub", places, rows), graph.constant(self.config.max_tokens))
        bias = graph.op("Gather", graph.parameter(self.distances), distance)  # (T, T, N)
        return (graph.op("Unsqueeze", graph.op("Transpose", bias, perm=[2, 0, 1]), graph.constant([0])),)


CASES = [
    ("plain", "token-classification", "default"),
    ("modern", "token-classification", "default"),
    ("modern", "text-classification", "default"),
    *[("modern", "text-classification", head) for head in HEADS],
]


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """The one place where a family is named."""
    for encoder in (PlainModel, ModernModel):
        monkeypatch.setitem(ENCODERS, encoder.config_class.model_type, encoder)


def make(family, task, head):
    """A model in which every weight matters, with an adapter that acts."""
    torch.manual_seed(0)
    model = build_model(config_from_dict({"model_type": family}), task, LABELS, head=head)
    lora_core.inject_lora(model, r=2, target_modules="all-linear")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if parameter.ndim == 1 or "lora_B" in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


def gradients(model, input_ids, mask):
    """Logits at the real tokens, and the gradients of a loss that reads only these."""
    model.zero_grad()
    logits = model(input_ids, mask)
    logits = logits[mask.bool()] if logits.ndim == 3 else logits
    (logits * torch.linspace(-1, 1, logits.numel()).view(logits.shape)).sum().backward()
    return logits, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("family", "task", "head"), CASES[:3])
@pytest.mark.parametrize("full", [False, True])
def test_fused_training_equals_the_plain_layers(batch, family, task, head, full):
    model = make(family, task, head).requires_grad_(full)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(full or "lora_" in name or model.in_head(name))
    fused = fuse(copy.deepcopy(model).train())
    inputs = batch([9, 4, 7], 0)
    expected, found = gradients(model.train(), *inputs), gradients(fused, *inputs)
    stacks = [module for module in fused.modules() if isinstance(module, FusedStack)]
    assert [stack.told for stack in stacks] == [set()], "the plain layers ran"
    torch.testing.assert_close(found[0], expected[0], rtol=1e-4, atol=1e-4)
    assert found[1].keys() == expected[1].keys()
    largest = max(float(gradient.abs().max()) for gradient in expected[1].values())
    for name, gradient in expected[1].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-5 * largest, msg=name)
    with torch.no_grad():
        rounded = fuse(fused, torch.bfloat16)(*inputs)
        exact = unfuse(fused)(*inputs)
    real = inputs[1].bool() if exact.ndim == 3 else slice(None)
    assert 0 < (rounded[real] - exact[real]).norm() < 0.1 * exact[real].norm()


@pytest.mark.parametrize(("family", "task", "head"), CASES)
def test_saved_and_loaded(batch, tmp_path, caplog, family, task, head):
    model = make(family, task, head)
    lora_core.save_adapter(model, tmp_path / "adapter")
    inputs = batch([9, 4, 7], 0)
    adapted = model(*inputs)
    base = lora_core.eject_lora(copy.deepcopy(model))
    torch.testing.assert_close(lora_core.load_adapter(base, tmp_path / "adapter")(*inputs), adapted)
    lora_core.eject_lora(lora_core.merge_lora(model))
    save_pretrained(model, tmp_path / "model")
    again = load_pretrained(tmp_path / "model", task)
    assert (type(again.base_model), again.head_kind, again.labels) == (ENCODERS[family], head, LABELS)
    torch.testing.assert_close(again(*inputs), adapted, rtol=1e-4, atol=1e-4)
    encoder = load_pretrained(tmp_path / "model")  # reads the file of a task model, without its prefix
    save_pretrained(encoder, tmp_path / "encoder")
    without_prefix = load_pretrained(tmp_path / "encoder", task, LABELS, head=head)
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(without_prefix.base_model.state_dict()[name], tensor), name
    assert {name.split(".")[0] for name in without_prefix.fresh_parameters} == set(again.head_names)
    assert len(caplog.records) == 1


@pytest.mark.parametrize(("family", "task", "head"), CASES)
def test_exported(tmp_path, family, task, head):
    model = make(family, task, head).eval()
    texts = [torch.randint(3, 50, (length,)).tolist() for length in (3, 1, 7, 12, 16)]
    batches = parity_batches(model, texts)
    path = export_onnx(model, tmp_path / "model.onnx")
    assert verify_onnx(model, path, batches) < 1e-4
    counts, layers = fused_counts(path), model.config.num_hidden_layers
    assert counts["skip_layer_norm"] == 2 * layers
    assert counts["attention"] == counts["bias_gelu"] == (layers if family == "plain" else 0)
    base = OnnxModel(export_onnx_base(model, tmp_path / "base.onnx"))
    adapter = save_onnx_adapter(model, "default", tmp_path / "adapter")
    assert verify_onnx_adapter(model, "default", base, adapter, batches) < 1e-4
    rounded = OnnxModel(quantize_onnx(path, tmp_path / "model.int8.onnx"))(**batches[4])
    expected = model(**batches[4])
    real = batches[4]["attention_mask"].bool() if expected.ndim == 3 else slice(None)
    assert (rounded[real] - expected[real]).norm() < 0.15 * expected[real].norm()


def test_a_family_without_a_description_is_built_and_saved_but_neither_fused_nor_exported(tmp_path, monkeypatch):
    class Silent(PlainModel):
        onnx_embeddings = Encoder.onnx_embeddings

        def __init__(self, config: PlainConfig) -> None:
            super().__init__(config)
            self.blocks = nn.ModuleList(self.blocks)

    monkeypatch.setitem(ENCODERS, "plain", Silent)
    model = build_model(config_from_dict({"model_type": "plain"}), "token-classification", LABELS)
    with pytest.raises(ValueError, match="no stack of layers that can be fused"):
        fuse(model)
    with pytest.raises(ValueError, match="plain models cannot be exported as ONNX"):
        export_onnx(model, tmp_path / "model.onnx")
    save_pretrained(model, tmp_path)
    assert load_pretrained(tmp_path, "token-classification").labels == LABELS
