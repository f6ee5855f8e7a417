"""Heads and biases that wait are part of the model like those in place, and what is in place is the truth."""

import copy

import pytest
import torch
import transformers
from torch import nn

from lora_core import (
    add_adapter,
    disable_adapters,
    eject_lora,
    inject_lora,
    load_adapter,
    merge_lora,
    mixed_batch,
    parameter_counts,
    save_adapter,
    set_adapter,
)
from lora_core.whole import is_waiting


@pytest.fixture
def two(make, randomise):
    """Adapters a, which acts, and b, each with a head and biases of its own."""

    def prepare(bias: str = "none", kind: str = "bert", **fields) -> nn.Module:
        model = inject_lora(make(kind), adapter_name="a", bias=bias, **fields)
        add_adapter(model, "b", bias=bias, **fields)
        for seed, name in enumerate("ba"):
            set_adapter(model, name)
            randomise(model, seed=seed)
        return model

    return prepare


@pytest.mark.parametrize("inside", ["switch", "mixed batch"])
def test_an_optimiser_made_before_the_switch_trains_the_head(inside, two, run):
    model = two()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before = copy.deepcopy(model)
    if inside == "switch":
        set_adapter(model, "b")
        run(model).square().mean().backward()
    else:
        with mixed_batch(model, ["b", None, "b", "b"]):
            run(model).square().mean().backward()
    optimizer.step()
    for changed in (model, before):
        set_adapter(changed, "b")
    assert not torch.equal(model.classifier.weight, before.classifier.weight)
    for changed in (model, before):
        set_adapter(changed, "a")
    assert torch.equal(model.classifier.weight, before.classifier.weight)


@pytest.mark.parametrize("bias", ["none", "all"])
def test_a_state_dict_holds_every_adapter(bias, make, two, run):
    model, fresh = two(bias), two(bias)
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.zero_()
    fresh.load_state_dict(model.state_dict())
    for name in ("b", "a", ()):
        set_adapter(model, name)
        set_adapter(fresh, name)
        assert torch.equal(run(fresh), run(model))
    set_adapter(model, "b")
    set_adapter(fresh, "a")
    with pytest.raises(RuntimeError, match="_waiting_weight_of_a"):  # b's head is not put into a in silence
        fresh.load_state_dict(model.state_dict())


@pytest.mark.parametrize("convert", [nn.Module.double, nn.Module.bfloat16, lambda model: model.to(torch.float64)])
def test_a_cast_reaches_what_waits(convert, two, run):
    model = convert(two("all"))
    dtype = model.bert.embeddings.word_embeddings.weight.dtype
    for name in ("b", ()):
        set_adapter(model, name)
        assert run(model).dtype == dtype
    with disable_adapters(model):
        assert run(model).dtype == dtype
    assert run(eject_lora(model)).dtype == dtype
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}


def assign(model):
    model.load_state_dict({key: tensor.clone() for key, tensor in model.state_dict().items()}, assign=True)


def replace(model):
    model.classifier = nn.Linear(32, 5)


@pytest.mark.parametrize("change", [assign, replace])
def test_what_was_put_in_place_is_trained_and_saved(change, make, run, train, tmp_path):
    model = inject_lora(make("bert"))
    change(model)
    before = model.classifier.weight.detach().clone()
    train(model, run, learning_rate=0.1)
    assert not torch.equal(model.classifier.weight, before)
    twin = load_adapter(make("bert"), save_adapter(model, tmp_path))
    assert torch.equal(run(twin), run(model))


def test_what_is_gone_with_its_module_is_named(make):
    model = inject_lora(make("bert"))
    replace(model)
    with pytest.raises(ValueError, match="weight of the base model is gone: classifier has been replaced"):
        set_adapter(model, ())
    with pytest.raises(ValueError, match="is gone"), disable_adapters(model):
        pass
    assert model.lora_state.active == ("default",)
    assert all(update.requires_grad for update in model.parameters() if update is model.classifier.weight)


def test_tied_tensors_are_saved_each(tmp_path):
    def masked():
        torch.manual_seed(0)
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
        return transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=60, **sizes)).eval()

    model = inject_lora(masked())
    model.tie_weights()
    ids = torch.arange(2, 12).view(2, 5)
    with torch.no_grad():
        model.cls.predictions.bias.add_(1)
    wanted = model(ids).logits
    twin = load_adapter(masked(), save_adapter(model, tmp_path))
    assert torch.equal(twin(ids).logits, wanted)


def test_counts_leave_out_what_waits(make):
    model = make("bert")
    base = parameter_counts(model)[1]
    inject_lora(model, bias="all")
    waiting = [path for path, _ in model.named_parameters() if is_waiting(path)]
    assert "classifier._waiting_weight" in waiting
    lora = sum(p.numel() for path, p in model.named_parameters() if ".lora." in path)
    assert parameter_counts(model)[1] == base + lora
    eject_lora(model)
    assert parameter_counts(model)[1] == base
    assert not [path for path, _ in model.named_parameters() if is_waiting(path)]


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_merging_an_adapter_that_waits_takes_its_biases(bias, two, run):
    model = two(bias)
    set_adapter(model, "b")
    wanted = run(model)
    set_adapter(model, "a")
    torch.testing.assert_close(run(merge_lora(model, "b")), wanted, atol=1e-5, rtol=1e-4)


def test_a_refused_merge_leaves_what_acted(two, run):
    model = two("all")
    wanted = run(model)
    with torch.no_grad():
        next(iter(model.bert.encoder.layer[0].attention.self.query.lora["b"].parameters())).fill_(float("inf"))
    with pytest.raises(ValueError, match="NaN or infinity"):
        merge_lora(model, "b")
    assert model.lora_state.active == ("a",)
    assert torch.equal(run(model), wanted)


def test_nothing_is_changed_while_adapters_are_disabled(two, run, tmp_path):
    model = two()
    wanted = run(model)
    folder = save_adapter(model, tmp_path, "a")
    with disable_adapters(model):
        for change in (
            lambda: set_adapter(model, "b"),
            lambda: load_adapter(model, folder, "c"),
            lambda: add_adapter(model, "c"),
            lambda: merge_lora(model),
            lambda: eject_lora(model),
        ):
            with pytest.raises(ValueError, match="adapters are disabled"):
                change()
    assert torch.equal(run(model), wanted)


class Sum(nn.Module):
    """A model with a head that takes keywords and returns a tuple."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.query, self.head, self.out = nn.Linear(8, 8), head, nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.query(x)
        attends = isinstance(self.head, nn.MultiheadAttention)
        return self.out((self.head(x, key=x, value=x) if attends else self.head(input=x))[0])


@pytest.mark.parametrize("head", [nn.LSTM(8, 8, batch_first=True), nn.MultiheadAttention(8, 2, batch_first=True)])
def test_keywords_and_tuples_cross_the_bridge_of_half_precision(head):
    model = inject_lora(Sum(copy.deepcopy(head)).bfloat16(), target_modules=["query"], modules_to_save=["head"])
    out = model(torch.randn(2, 3, 8).bfloat16())
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert next(model.head.parameters()).dtype == torch.float32
    assert next(model.head.parameters()).grad is not None


@pytest.mark.parametrize("kind", ["bert", "ours"])
def test_a_compiled_model_is_its_model(kind, make, run, randomise, tmp_path):
    model = inject_lora(make(kind))
    compiled = torch.compile(model, backend="eager")
    randomise(model)
    twin = torch.compile(make(kind), backend="eager")
    load_adapter(twin, save_adapter(compiled, tmp_path))
    assert torch.equal(run(twin), run(model))
    add_adapter(twin, "other")
    set_adapter(twin, "other")
    assert torch.equal(run(eject_lora(twin)), run(make(kind)))
