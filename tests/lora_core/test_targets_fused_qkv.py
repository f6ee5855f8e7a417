"""Thirds of a fused qkv Linear, on a stand-in with timm's layout; dense arithmetic and PEFT as oracles."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lora_core
from lora_core import inject_lora, load_adapter, merge_lora, save_adapter
from lora_core.adapters import hosts


class Attention(nn.Module):
    """As in timm's vision transformers."""

    def __init__(self, dim: int = 12, heads: int = 3) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = self.qkv(x).reshape(b, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, c))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = Attention()
        self.fc1 = nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc1(x + self.attn(x))


class VisionTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Block(), Block())
        self.head = nn.Linear(12, 4)

    def get_classifier(self) -> nn.Module:
        return self.head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x).mean(1))


@pytest.fixture
def vit():
    def build() -> VisionTransformer:
        torch.manual_seed(0)
        return VisionTransformer().eval()

    return build


X = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("targets", "thirds"),
    [
        (None, "qv"),
        ("qv", "qv"),
        ("qkv", "qkv"),
        (["qkv.k"], "k"),
        (["qkv.q", "attn.qkv.v"], "qv"),
        (r".*1\.attn\.qkv\.[kv]", "kv"),
    ],
)
def test_only_the_chosen_thirds_change(targets, thirds, vit, randomise):
    model = randomise(inject_lora(vit(), r=4, target_modules=targets))
    layer = model.blocks[1].attn.qkv
    change = (layer(X) - F.linear(X, layer.weight, layer.bias)).chunk(3, -1)
    assert [bool(part.abs().max() > 1e-3) for part in change] == [third in thirds for third in "qkv"]
    assert lora_core.parameter_counts(model)[0] == sum(len(thirds) * 4 * (12 + 12) for _ in hosts(model)) + 4 * 12 + 4


def test_each_third_is_an_update_of_its_own(vit, randomise):
    """The third's rows change by scaling * B_third A_third."""
    model = randomise(inject_lora(vit(), r=4, lora_alpha=6, target_modules=["qkv.q", "qkv.v"]))
    layer = model.blocks[0].attn.qkv
    own = layer.lora["default"]
    (a_q, a_v), (b_q, b_v) = own.lora_A.weight.chunk(2), own.lora_B.weight.chunk(2)
    update = torch.cat([b_q @ a_q, torch.zeros(12, 12), b_v @ a_v]) * 1.5
    torch.testing.assert_close(layer(X), F.linear(X, layer.weight + update, layer.bias))


def test_presets(vit):
    def adapted(preset) -> list[str]:
        return [path for path, _ in hosts(inject_lora(vit(), target_modules=preset)) if path.startswith("blocks.0")]

    assert adapted("attention") == ["blocks.0.attn.qkv", "blocks.0.attn.proj"]
    assert adapted("all-linear") == ["blocks.0.attn.qkv", "blocks.0.attn.proj", "blocks.0.fc1"]
    whole = inject_lora(vit(), r=4, target_modules=["qkv"]).blocks[0].attn.qkv.lora["default"]
    assert whole.lora_B.weight.shape == (36, 4)  # a list names the layer, as in PEFT


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"use_rslora": True},
        {"use_dora": True},
        {"init_lora_weights": "pissa"},
        {"rank_pattern": {"blocks.1.attn.qkv": 2}},
        {"lora_dropout": 0.1},
    ],
)
def test_saved_as_an_ordinary_adapter(fields, vit, randomise, peft_load, tmp_path):
    model = inject_lora(
        vit(), r=3, lora_alpha=5, target_modules=["qkv.q", "qkv.v", "fc1"], modules_to_save=["head"], **fields
    )
    if fields.get("init_lora_weights") == "pissa":
        torch.testing.assert_close(model(X), vit()(X))
    randomise(model)
    save_adapter(model, tmp_path)
    expected = model(X)
    for loaded in (load_adapter(vit(), tmp_path), peft_load(vit(), tmp_path)):
        torch.testing.assert_close(loaded(X), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(merge_lora(model)(X), expected, atol=1e-5, rtol=1e-4)


def test_gradients_equal_those_of_the_dense_form(vit, randomise):
    model = randomise(inject_lora(vit(), r=4, target_modules="qv")).train()
    layer = model.blocks[0].attn.qkv
    own = layer.lora["default"]
    layer(X).square().sum().backward()
    a, b = (p.grad.clone() for p in (own.lora_A.weight, own.lora_B.weight))
    model.zero_grad()
    low_a, low_b = own.factors()
    F.linear(X, layer.weight + own.scaling * low_b @ low_a, layer.bias).square().sum().backward()
    torch.testing.assert_close(own.lora_A.weight.grad, a, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(own.lora_B.weight.grad, b, atol=1e-4, rtol=1e-4)


def test_layer_and_part_together_are_refused(vit):
    with pytest.raises(ValueError, match=r"both blocks\.0\.attn\.qkv and its part blocks\.0\.attn\.qkv\.q"):
        inject_lora(vit(), target_modules=["qkv", "qkv.q"])
    with pytest.raises(ValueError, match="lora_bias is not available for thirds"):
        inject_lora(vit(), target_modules="qv", lora_bias=True)


def test_compiles_to_one_graph(vit, randomise):
    torch._dynamo.reset()
    model = randomise(inject_lora(vit(), r=4))
    torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(X), model(X))
    torch._dynamo.reset()
