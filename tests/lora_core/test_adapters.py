"""Several adapters on one base: setting, disabling, mixing in a batch, deleting."""

import pytest
import torch
from torch import nn

from lora_core import (
    add_adapter,
    delete_adapter,
    disable_adapters,
    inject_lora,
    lora_state_dict,
    merge_lora,
    mixed_batch,
    parameter_counts,
    set_adapter,
)
from lora_core.adapters import hosts, whole_tensors
from lora_core.whole import BASE


@pytest.fixture
def two(make, randomise):
    """Factory of a model with adapters "a" (acting) and "b", of other ranks and layers, with trained numbers."""

    def prepare(kind: str = "bert", **fields) -> nn.Module:
        model = inject_lora(make(kind), adapter_name="a", **fields)
        add_adapter(model, "b", **{"r": 3, "lora_alpha": 5, "target_modules": ["key", "value"], **fields})
        for seed, name in enumerate(("b", "a")):
            set_adapter(model, name)
            randomise(model, seed=seed)
        return model

    return prepare


def values(model: nn.Module, name: str) -> dict[str, torch.Tensor]:
    return {key: tensor.clone() for key, tensor in lora_state_dict(model, name).items()}


@pytest.mark.parametrize("fields", [{}, {"bias": "all"}, {"bias": "lora_only"}, {"use_dora": True}])
def test_disabled_is_the_base_and_afterwards_the_adapter(fields, make, two, run):
    """Properties 32 and 34: also with biases, for which PEFT only warns that the base does not come back."""
    base = run(make("bert"))
    model = two(**fields)
    wanted = run(model)
    assert (wanted - base).abs().max() > 0.01
    with disable_adapters(model):
        assert torch.equal(run(model), base)
        assert not model.classifier.weight.requires_grad
        assert not model.classifier.bias.requires_grad
    assert torch.equal(run(model), wanted)
    assert model.classifier.weight.requires_grad
    assert model.classifier.bias.requires_grad


def test_disabling_nests_and_ends_with_an_exception(make, two, run):
    """Property 33: an inner context restores the disabled state that it found."""
    base = run(make("bert"))
    model = two()
    wanted = run(model)

    def fail_inside() -> None:
        with disable_adapters(model):
            with disable_adapters(model):
                pass
            assert torch.equal(run(model), base)
            raise KeyError("oops")

    with pytest.raises(KeyError, match="oops"):
        fail_inside()
    assert torch.equal(run(model), wanted)


def test_training_goes_on_after_disabling(two, run, train):
    """The optimiser's parameters are still those of the model."""
    model = two()
    parameters = dict(model.named_parameters())
    with disable_adapters(model):
        run(model)
    assert all(p is parameters[name] for name, p in model.named_parameters())
    before = values(model, "a")
    train(model, run)
    assert all(not torch.equal(before[key], t) for key, t in lora_state_dict(model, "a").items())


@pytest.mark.parametrize("bias", ["none", "lora_only", "all"])
def test_each_adapter_has_its_own_head_and_biases(bias, make, two, run, train, randomise):
    """Property 35: PEFT allows biases for one adapter only."""
    model = two(bias=bias)
    set_adapter(model, "b")
    wanted, kept = run(model), values(model, "b")
    set_adapter(model, "a")
    train(model, run)
    set_adapter(model, "b")
    assert torch.equal(run(model), wanted)
    assert all(torch.equal(kept[key], t) for key, t in lora_state_dict(model, "b").items())
    alone = inject_lora(make("bert"), adapter_name="b", r=3, lora_alpha=5, target_modules=["key", "value"], bias=bias)
    for key, tensor in lora_state_dict(alone, "b").items():
        tensor.data.copy_(kept[key])
    assert torch.equal(run(alone), wanted)
    set_adapter(model, ())
    assert torch.equal(run(model), run(make("bert")))


def test_several_acting_adapters_add_up(two, run):
    """The sum of the updates, in any order; only adapters that act are trained."""
    model = two(modules_to_save=())
    layer = model.bert.encoder.layer[0].attention.self.value
    x = torch.randn(2, 3, 32)
    outputs = {}
    for names in ((), "a", "b", ["a", "b"], ["b", "a"]):
        set_adapter(model, names)
        outputs[str(names)] = layer(x)
        trainable = {name.split(".lora.")[1].split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
        assert trainable == set(names)
    base = outputs["()"]
    wanted = outputs["a"] + outputs["b"] - base
    torch.testing.assert_close(outputs["['a', 'b']"], wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(outputs["['b', 'a']"], wanted, atol=1e-5, rtol=1e-5)


def test_adapters_that_cannot_act_together_are_refused(two, state, same):
    model = two()
    before = state(model)
    with pytest.raises(ValueError, match=r"both own 'classifier\.weight'"):
        set_adapter(model, ["a", "b"])
    assert same(before, state(model))
    model = two(use_dora=True, modules_to_save=())
    with pytest.raises(ValueError, match="use DoRA"):
        set_adapter(model, ["a", "b"])


@pytest.mark.parametrize("verb", [set_adapter, delete_adapter])
def test_an_unknown_adapter_is_an_error_that_lists_the_known(verb, two, state, same):
    """Properties 20 and 37."""
    model = two()
    before = state(model)
    with pytest.raises(ValueError, match=r"no adapter 'c'.*\['a', 'b'\]"):
        verb(model, "c")
    assert same(before, state(model))


def test_another_adapter_cannot_be_set_while_one_is_merged(two, state, same):
    model = merge_lora(two())
    before = state(model)
    with pytest.raises(ValueError, match="unmerge_lora"):
        set_adapter(model, "b")
    assert same(before, state(model))


@pytest.mark.parametrize(
    "name", ["query", "classifier", "lora", "lora_A", "base_layer", "weight", "a-b", "default", "0"]
)
def test_the_adapters_name_never_matters(name, make, run, randomise):
    """Property 40."""
    plain = randomise(inject_lora(make("bert"), target_modules=["query"], bias="all"))
    model = inject_lora(make("bert"), target_modules=["query"], bias="all", adapter_name=name)
    wanted = lora_state_dict(plain)
    mine = lora_state_dict(model, name)
    assert list(mine) == list(wanted)
    for key, tensor in mine.items():
        tensor.data.copy_(wanted[key])
    assert torch.equal(run(model), run(plain))
    assert {p for p, _ in hosts(model)} == {p for p, _ in hosts(plain)}


def test_a_name_in_use_is_refused_without_change(two, state, same):
    """Property 36."""
    model = two()
    before = state(model)
    with pytest.raises(ValueError, match="adapter 'b' already"):
        add_adapter(model, "b", target_modules=["query"])
    assert same(before, state(model))


@pytest.mark.parametrize("bias", ["none", "all"])
def test_deleting_leaves_no_trace(bias, make, two, run, state, same):
    """Property 37."""
    model = two(bias=bias)
    wanted = run(model)
    delete_adapter(model, "b")
    assert torch.equal(run(model), wanted)
    assert not [name for name in model.state_dict() if ".lora.b." in name]
    assert {path.rpartition(".")[2] for path, _ in hosts(model)} == {"query", "value"}  # key was b's alone
    assert list(model.lora_state.adapters) == ["a"]
    delete_adapter(model, "a")
    plain = make("bert")
    assert torch.equal(run(model), run(plain))
    assert state(model)["modules"] == state(plain)["modules"]
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert parameter_counts(model) == (0, parameter_counts(plain)[1])
    assert not model.lora_state.places


def test_deleting_a_merged_adapter_is_refused_without_change(two, state, same):
    """Property 37."""
    model = merge_lora(two())
    before = state(model)
    with pytest.raises(ValueError, match="'a' is merged"):
        delete_adapter(model, "a")
    assert same(before, state(model))


def test_deleting_the_acting_adapter_leaves_the_base(make, two, run):
    model = two()
    delete_adapter(model, "a")
    assert torch.equal(run(model), run(make("bert")))
    set_adapter(model, "b")


@pytest.mark.parametrize("fields", [{}, {"use_dora": True}, {"target_modules": ["word_embeddings", "dense"]}])
@pytest.mark.parametrize("training", [True, False])
def test_rows_of_a_mixed_batch_equal_those_of_single_adapters(fields, training, make, two, run):
    """Property 38; PEFT mixes neither in training nor with DoRA."""
    model = two(modules_to_save=(), **fields).train(training)
    single = {}
    for name in ("a", "b", None):
        set_adapter(model, () if name is None else name)
        single[name] = run(model)
    assert (single["a"] - single["b"]).abs().max() > 0.01
    set_adapter(model, "a")
    for names in (["a", "b", None, "a"], ["b"] * 4, [None] * 4, [None, "b", "b", None]):
        with mixed_batch(model, names):
            mixed = run(model)
        for row, name in enumerate(names):
            torch.testing.assert_close(mixed[row], single[name][row], atol=1e-5, rtol=1e-4)
    assert torch.equal(run(model), single["a"])


def test_a_mixed_batch_trains_each_adapter_by_its_own_rows(two, run):
    model = two(modules_to_save=(), target_modules=["query", "value"])
    weights = torch.randn(4, 9, 5)
    wanted = {}
    for name, rows in (("a", [0, 3]), ("b", [1])):
        set_adapter(model, name)
        (run(model) * weights)[rows].sum().backward()
        wanted |= {path: p.grad.clone() for path, p in model.named_parameters() if p.requires_grad}
        model.zero_grad()
    set_adapter(model, "a")
    flags = {path: p.requires_grad for path, p in model.named_parameters()}
    with mixed_batch(model, ["a", "b", None, "a"]):
        (run(model) * weights).sum().backward()
    assert {path: p.requires_grad for path, p in model.named_parameters()} == flags
    for path, gradient in wanted.items():
        torch.testing.assert_close(model.get_parameter(path).grad, gradient, atol=1e-4, rtol=1e-4)


def test_a_mixed_batch_brings_the_right_head(make, two, run):
    """The head in place is that of the adapter named, or the base's, whatever acts outside."""
    model = two()
    with disable_adapters(model):
        base = run(model)
    set_adapter(model, "b")
    wanted = run(model)
    set_adapter(model, "a")
    outside = run(model)
    with mixed_batch(model, ["b"] * 4):
        torch.testing.assert_close(run(model), wanted)
    with mixed_batch(model, [None] * 4):
        torch.testing.assert_close(run(model), base)
    assert torch.equal(run(model), outside)
    assert model.classifier.weight.requires_grad


@pytest.mark.parametrize("count", [3, 5])
def test_a_wrong_number_of_names_is_an_error(count, two, run):
    """Property 38."""
    model = two(modules_to_save=())
    wanted = run(model)
    with (
        pytest.raises(ValueError, match=f"given {count} adapter names.*sees 4 rows"),
        mixed_batch(model, ["a"] * count),
    ):
        run(model)
    assert torch.equal(run(model), wanted)  # in PEFT every later forward fails


def test_mixed_batches_that_cannot_be_computed_are_refused(two, state, same):
    """Property 38: unknown names and merged adapters."""
    model = two()
    before = state(model)
    with pytest.raises(ValueError, match="no adapter 'c'"), mixed_batch(model, ["c"]):
        pass
    assert same(before, state(model))
    merge_lora(model)
    with pytest.raises(ValueError, match="merged"), mixed_batch(model, ["a"]):
        pass


OWNERS = {
    "head": ("bert", {}),
    "head of several modules": ("roberta-text", {}),
    "two heads": ("distilbert-text", {"target_modules": ["q_lin", "v_lin"]}),
    "our own": ("ours", {}),
    "our own, dora": ("ours-text", {"use_dora": True}),
    "all biases": ("bert", {"bias": "all", "target_modules": ["query", "word_embeddings", "dense"]}),
    "biases of targets": ("ours", {"bias": "lora_only"}),
    "biases without a head": ("bert", {"bias": "all", "modules_to_save": ()}),
    "a whole layer": ("bert", {"modules_to_save": ["layer.1", "classifier"]}),
    "convolutions and batch norm": (
        "conv",
        {"bias": "all", "target_modules": ["first", "inner"], "modules_to_save": ["norm"]},
    ),
}
"""What adapters own in full, by name: a kind of model and the fields of the config."""


@pytest.mark.parametrize("owner", OWNERS)
@pytest.mark.parametrize("seed", range(3))
def test_heads_and_biases_differ_by_row(owner, seed, two, run, state):
    """Property 38: every row is computed as in a run with its adapter alone."""
    kind, fields = OWNERS[owner]
    model = two(kind, **{"target_modules": ["query", "value"], **fields})
    generator = torch.Generator().manual_seed(seed)
    names = [("a", "b", None)[i] for i in torch.randint(3, (4,), generator=generator)]
    single = {}
    for name in ("a", "b", None):
        set_adapter(model, () if name is None else name)
        single[name] = run(model)
    assert min((single["a"] - single["b"]).abs().max(), (single["a"] - single[None]).abs().max()) > 0.01
    set_adapter(model, "a")
    before = state(model)
    with mixed_batch(model, names):
        mixed = run(model)
        with disable_adapters(model):
            assert torch.equal(run(model), single[None])
        assert torch.equal(run(model), mixed)
    for row, name in enumerate(names):
        torch.testing.assert_close(mixed[row], single[name][row], atol=1e-4, rtol=1e-4)
    after = state(model)
    assert after["flags"] == before["flags"]
    assert after["modules"] == before["modules"]
    assert all(after["tensors"][key][0] == before["tensors"][key][0] for key in before["tensors"])
    assert not any("forward" in vars(module) for module in model.modules())
    assert torch.equal(run(model), single["a"])


@pytest.mark.parametrize("owner", [owner for owner in OWNERS if "norm" not in owner])
@pytest.mark.parametrize("names", [("a", "b", None, "a"), ("b", "b", "a", "b"), (None, "a", None, None)])
def test_a_mixed_batch_trains_each_adapters_own_head_and_biases(owner, names, two, run):
    """Gradients reach the tensors of the adapter that computed the row, and no others."""
    kind, fields = OWNERS[owner]
    model = two(kind, **{"target_modules": ["query", "value"], **fields}).train()
    weights = torch.randn(run(model).shape)
    wanted = {}
    for name in {"a", "b"} & set(names):
        set_adapter(model, name)
        rows = [row for row, wanted_name in enumerate(names) if wanted_name == name]
        (run(model) * weights)[rows].sum().backward()
        wanted |= {id(p): p.grad.clone() for p in model.parameters() if p.requires_grad and p.grad is not None}
        model.zero_grad()
    everything = {id(p): p for p in model.parameters()}
    for parameter in everything.values():
        parameter.grad = None
    set_adapter(model, "a")
    with mixed_batch(model, names):
        (run(model) * weights).sum().backward()
    for key, parameter in everything.items():
        if key in wanted:
            torch.testing.assert_close(parameter.grad, wanted[key], atol=1e-3, rtol=1e-3)
        else:
            assert parameter.grad is None or not parameter.grad.any()


def test_a_mixed_batch_does_not_train_an_adapter_that_is_not_to_be_trained(make, run):
    model = inject_lora(make("ours"), adapter_name="a", bias="all")
    add_adapter(model, "b", bias="all", trainable=False)
    with mixed_batch(model, ["a", "b", None, "b"]):
        run(model).sum().backward()
    assert whole_tensors(model, "a")["classifier.weight"].grad is not None
    assert all(tensor.grad is None for tensor in whole_tensors(model, "b").values())


def test_batch_norm_keeps_each_adapters_statistics(two, run):
    """Owned buffers change by the rows of their own adapter, as in a run with it alone."""
    settings = {"target_modules": ["inner"], "modules_to_save": ["norm", "head"]}
    mixed, alone = (two("conv", **settings).train() for _ in range(2))
    with mixed_batch(mixed, ["a", "b", "b", "a"]):
        run(mixed)
    for name, rows in (("a", [0, 3]), ("b", [1, 2])):
        set_adapter(alone, name)
        run(alone, rows)
        for key, tensor in lora_state_dict(alone, name).items():
            torch.testing.assert_close(lora_state_dict(mixed, name)[key], tensor)
    assert torch.equal(whole_tensors(mixed, BASE)["norm.running_mean"], torch.zeros(8))


def test_heads_in_fp32_differ_by_row_in_a_half_precision_model(make, run, randomise):
    model = inject_lora(make("bert").bfloat16(), adapter_name="a")
    add_adapter(model, "b", r=3)
    single = {}
    for seed, name in enumerate(("a", "b")):
        set_adapter(model, name)
        single[name] = run(randomise(model, seed=seed))
    with disable_adapters(model):
        single[None] = run(model)
    names = [None, "b", "a", "b"]
    with mixed_batch(model, names):
        mixed = run(model)
    assert mixed.dtype == torch.bfloat16
    for row, name in enumerate(names):
        torch.testing.assert_close(mixed[row], single[name][row], atol=0.05, rtol=0.05)


@pytest.mark.parametrize("count", [3, 5])
def test_a_wrong_number_of_names_is_an_error_for_heads_too(count, two, run):
    model = two(bias="all")
    wanted = run(model)
    names = (["a", "b", None] * 2)[:count]
    with pytest.raises(ValueError, match=f"given {count} adapter names.*sees 4 rows"), mixed_batch(model, names):
        run(model)
    assert torch.equal(run(model), wanted)


class Transposed(nn.Module):
    """A model whose head sees tokens before the batch, and whose norm is in an encoder that torch may fuse."""

    def __init__(self, batch_first: bool = True) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=batch_first)
        self.inner = nn.Linear(8, 8)
        self.batch_first = batch_first
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.inner(self.encoder(x))
        return self.head(x) if self.batch_first else self.head(x.transpose(0, 1)).transpose(0, 1)


def test_a_module_that_does_not_see_the_batch_first_is_refused(randomise):
    model = randomise(inject_lora(Transposed(batch_first=False), adapter_name="a", target_modules=["inner"]))
    x = torch.randn(3, 5, 8)
    with mixed_batch(model, ["a"] * 3):
        model(x)
    with pytest.raises(ValueError, match=r"head.*sees 5 rows.*in its own batch"), mixed_batch(model, ["a", None, "a"]):
        model(x)


def test_biases_that_torchs_attention_reads_by_itself_are_refused(randomise):
    """nn.MultiheadAttention never calls its out_proj; where it is adapted, its host does."""
    plain = inject_lora(Transposed(), adapter_name="a", target_modules=["inner"], bias="all")
    message = r"self_attn\.out_proj, which encoder\.layers\.0\.self_attn never calls"
    with pytest.raises(ValueError, match=message), mixed_batch(plain, ["a", None]):
        pass
    model = inject_lora(Transposed(), adapter_name="a", target_modules="attention", bias="all")
    randomise(model).eval()
    x = torch.randn(3, 5, 8)
    with torch.no_grad():
        wanted = model(x)
        with disable_adapters(model):
            base = model(x)
        with mixed_batch(model, ["a", None, "a"]):
            mixed = model(x)
    torch.testing.assert_close(mixed[::2], wanted[::2])
    torch.testing.assert_close(mixed[1], base[1])


def test_norms_in_torchs_fast_path_differ_by_row(randomise):
    """Without an adapted layer torch's encoder reads its children's weights, unless a mixed batch needs the calls."""
    fields = {"target_modules": ["inner"], "modules_to_save": ["layers.0.norm1", "layers.1.norm2"]}
    model = randomise(inject_lora(Transposed(), adapter_name="a", **fields)).eval()
    x = torch.randn(3, 5, 8)
    with torch.no_grad():
        wanted = model(x)
        with disable_adapters(model):
            base = model(x)
        with mixed_batch(model, ["a", None, "a"]):
            mixed = model(x)
        assert (wanted - base).abs().max() > 0.01
        torch.testing.assert_close(mixed[::2], wanted[::2], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(mixed[1], base[1], atol=1e-5, rtol=1e-4)
        assert torch.equal(model(x), wanted)


def test_disabling_inside_a_mixed_batch(make, two, run):
    model = two(modules_to_save=())
    base = run(make("bert"))
    with mixed_batch(model, ["a", "b", "a", "b"]):
        mixed = run(model)
        with disable_adapters(model):
            assert torch.equal(run(model), base)
        assert torch.equal(run(model), mixed)
    assert not torch.equal(mixed, base)


def test_deleting_takes_the_hooks_of_half_precision_away(make, run, state):
    """A head in fp32 in a half-precision model needs hooks (whole.py), and only as long as it is there."""
    model = make("bert").bfloat16()
    before = state(model)["modules"]
    inject_lora(model, adapter_name="a")
    add_adapter(model, "b")
    delete_adapter(model, "a")
    set_adapter(model, "b")
    assert run(model).dtype == torch.bfloat16
    delete_adapter(model, "b")
    assert state(model)["modules"] == before
