"""Merging: the same outputs, the very same base afterwards, all or nothing."""

import copy
import warnings

import pytest
import torch
from peft import get_peft_model_state_dict
from torch import nn

from lora_core import (
    add_adapter,
    disable_adapters,
    eject_lora,
    inject_lora,
    lora_state_dict,
    merge_lora,
    set_adapter,
    unmerge_lora,
)
from lora_core.adapters import hosts

VARIANTS = {
    "linear": ("bert", {"target_modules": "all-linear", "bias": "all"}),
    "ours": ("ours", {"target_modules": "all-linear", "bias": "lora_only"}),
    "rslora": ("distilbert-text", {"use_rslora": True, "lora_alpha": 16}),
    "embedding": ("bert", {"target_modules": ["word_embeddings", "query"]}),
    "conv": ("conv", {"target_modules": ["first", "second", "inner"], "bias": "lora_only"}),
    "dora": ("bert", {"target_modules": ["word_embeddings", "query", "output.dense"], "use_dora": True}),
    "dora conv": ("conv", {"target_modules": ["first", "second"], "use_dora": True}),
    "lora_bias": ("bert", {"target_modules": ["query"], "lora_bias": True, "init_lora_weights": True, "bias": "all"}),
}
EXACT = {"atol": 2e-5, "rtol": 1e-4}
"""Rounding of fp32 in another order; PEFT's tests allow 1e-4, for convolutions 0.3."""


@pytest.fixture
def trained(make, randomise):
    """Factory of a model with an adapter whose every tensor counts."""

    def prepare(variant: str, dtype: torch.dtype = torch.float32) -> nn.Module:
        kind, fields = VARIANTS[variant]
        return randomise(inject_lora(make(kind).to(dtype), r=4, **fields))

    return prepare


def bits(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("variant", VARIANTS)
def test_merged_unmerged_and_ejected_models_agree(variant, trained, run, make):
    """Properties 23, 25, 27, 28, 30 and complaint 6: the base comes back bit for bit."""
    model = trained(variant)
    with disable_adapters(model):
        base = run(model)
    wanted = run(model)
    assert (wanted - base).abs().max() > 0.01
    before = bits(model)
    assert merge_lora(model) is model
    torch.testing.assert_close(run(model), wanted, **EXACT)
    assert all(tensor.is_contiguous() for tensor in model.state_dict().values())
    assert any(not torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert unmerge_lora(model) is model
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert torch.equal(run(model), wanted)

    eject_lora(merge_lora(model))
    torch.testing.assert_close(run(model), wanted, **EXACT)
    assert not list(hosts(model))
    assert not hasattr(model, "lora_state")
    plain = make(VARIANTS[variant][0])
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
    plain.load_state_dict(model.state_dict())
    assert torch.equal(run(plain), run(model))


@pytest.mark.parametrize("fields", [{}, {"use_dora": True}, {"lora_bias": True, "init_lora_weights": True}])
def test_merged_weights_are_those_of_peft(fields, make, peft_model, randomise):
    """PEFT's merge_and_unload is the oracle for the merged tensors themselves."""
    fields = {"r": 4, "lora_alpha": 6, "target_modules": ["query", "output.dense"], **fields}
    theirs = peft_model(make("bert"), modules_to_save=["classifier"], **fields)
    randomise(theirs)
    ours = inject_lora(make("bert"), **fields)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a false alarm about the shape of lora_B.bias
        wanted = get_peft_model_state_dict(theirs)
    for key, tensor in lora_state_dict(ours).items():
        tensor.data.copy_(wanted[key])
    merged = theirs.merge_and_unload().state_dict()
    for name, tensor in eject_lora(merge_lora(ours)).state_dict().items():
        torch.testing.assert_close(tensor, merged[name], atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("variant", ["linear", "dora"])
def test_no_number_of_cycles_moves_the_base(dtype, variant, trained):
    """Complaint 6: after 100 cycles PEFT's bfloat16 weights have drifted by 0.05."""
    model = trained(variant, dtype)
    before = bits(model)
    merge_lora(model)
    merged = bits(model)
    unmerge_lora(model)
    for _ in range(30):
        merge_lora(model)
        unmerge_lora(model)
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    merge_lora(model)
    assert all(torch.equal(merged[name], t) for name, t in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_merging_in_half_precision_rounds_once(dtype, trained, run):
    """Property 29 and complaint 6: each merged element is the half-precision number nearest to the exact sum."""
    model = trained("linear", dtype)
    wanted = run(model)
    exact = {
        path: host.weight.double()
        + host.lora["default"].scaling
        * host.lora["default"].lora_B.weight.double()
        @ host.lora["default"].lora_A.weight.double()
        for path, host in hosts(model)
    }
    merge_lora(model)
    for path, host in hosts(model):
        assert host.weight.dtype == dtype
        wrong = (host.weight != exact[path].to(dtype)).double().mean()
        assert wrong < 1e-3, path  # fp32 sums that fall on the other side of a tie
    assert run(model).dtype == dtype
    assert (run(model) - wanted).abs().float().mean() < 0.05 * wanted.abs().float().mean()


def test_merging_twice_warns_and_changes_nothing(trained, state, same):
    """Property 24."""
    model = merge_lora(trained("linear"))
    before = state(model)
    with pytest.warns(UserWarning, match="merged already"):
        merge_lora(model)
    assert same(before, state(model))


def test_unmerging_what_is_not_merged_warns_and_changes_nothing(trained, state, same):
    model = trained("linear")
    before = state(model)
    with pytest.warns(UserWarning, match="No adapter is merged"):
        unmerge_lora(model)
    assert same(before, state(model))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bad_number_in_any_layer_stops_the_whole_merge(value, trained, state, same):
    """Property 26: PEFT's safe_merge leaves the layers before it merged."""
    model = trained("linear")
    path, last = list(hosts(model))[-1]
    with torch.no_grad():
        last.lora["default"].lora_B.weight[0, 0] = value
    before = state(model)
    with pytest.raises(ValueError, match=f"NaN or infinity into {path}.weight"):
        merge_lora(model)
    assert same(before, state(model))
    assert not any(host.merged_adapters for _, host in hosts(model))


def test_a_sum_beyond_half_precision_is_refused(trained, state, same):
    model = trained("linear", torch.float16)
    with torch.no_grad():
        for _, host in hosts(model):
            host.lora["default"].lora_B.weight.fill_(1e5)
    before = state(model)
    with pytest.raises(ValueError, match="infinity"):
        merge_lora(model)
    assert same(before, state(model))


def test_several_adapters_merge_into_the_sum_of_their_updates(make, run, randomise):
    """Property 27: all at once equals the unmerged sum."""
    model = inject_lora(make("bert"), modules_to_save=(), adapter_name="a")
    add_adapter(model, "b", r=2, lora_alpha=5, target_modules=["key", "value"], modules_to_save=())
    set_adapter(model, ["a", "b"])
    randomise(model)
    wanted = run(model)
    before = bits(model)
    merge_lora(model)
    torch.testing.assert_close(run(model), wanted, **EXACT)
    with pytest.warns(UserWarning, match="merged already"):
        merge_lora(model, ["b", "a"])
    unmerge_lora(model)
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    set_adapter(model, "b")
    only = run(model)
    merge_lora(model, "b")
    torch.testing.assert_close(run(model), only, **EXACT)
    with pytest.raises(ValueError, match="unmerge_lora"):
        merge_lora(model, "a")
    torch.testing.assert_close(run(model), only, **EXACT)


def test_named_adapters_are_made_to_act(make, run, randomise):
    model = inject_lora(make("bert"), adapter_name="a")
    add_adapter(model, "b")
    set_adapter(model, "b")
    randomise(model)
    wanted = run(model)
    set_adapter(model, "a")
    merge_lora(model, "b")
    torch.testing.assert_close(run(model), wanted, **EXACT)


@pytest.mark.parametrize(
    ("names", "message"),
    [(["nope"], "no adapter 'nope'"), (["default", "nope"], "nope"), ([], "nothing to merge")],
)
def test_merging_what_is_not_there_is_an_error(names, message, trained, state, same):
    """PEFT merges an unknown name silently."""
    model = trained("linear")
    before = state(model)
    with pytest.raises(ValueError, match=message):
        merge_lora(model, names)
    assert same(before, state(model))


def test_a_model_without_adapters_is_an_error(make):
    for verb in (merge_lora, unmerge_lora, eject_lora):
        with pytest.raises(ValueError, match="has no adapters"):
            verb(make("bert"))


def test_a_bias_that_has_no_place_to_go_is_refused(state, same):
    """Property 31."""
    model = nn.ModuleDict({"first": nn.Linear(4, 4), "second": nn.Linear(4, 4, bias=False)})
    inject_lora(model, target_modules=["first", "second"], lora_bias=True, init_lora_weights=True)
    before = state(model)
    with pytest.raises(ValueError, match=r"second.*lora_bias"):
        merge_lora(model)
    assert same(before, state(model))


def test_a_grouped_convolution_keeps_its_adapter(state, same):
    model = nn.ModuleDict({"first": nn.Conv2d(4, 4, 3), "second": nn.Conv2d(4, 4, 3, groups=2)})
    inject_lora(model, r=4, target_modules=["first", "second"])
    before = state(model)
    with pytest.raises(ValueError, match=r"second.*grouped"):
        merge_lora(model)
    assert same(before, state(model))


def test_training_while_merged_is_refused(trained, run):
    """In PEFT the adapters then get no gradients, silently."""
    model = merge_lora(trained("linear"))
    with pytest.raises(RuntimeError, match="unmerge_lora"):
        run(model.train())
    unmerge_lora(model)
    run(model)


@pytest.mark.parametrize("variant", ["linear", "lora_bias", "dora"])
def test_merging_survives_disabling_and_setting_again(variant, trained, run):
    """Property 32 while merged, with trained biases in the adapted layers."""
    model = trained(variant)
    before, wanted = bits(model), run(model)
    with disable_adapters(model):
        base = run(model)
    merge_lora(model)
    for _ in range(2):
        with disable_adapters(model):
            assert torch.equal(run(model), base)
        torch.testing.assert_close(run(model), wanted, **EXACT)
        set_adapter(model, "default")
        torch.testing.assert_close(run(model), wanted, **EXACT)
    unmerge_lora(model)
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert torch.equal(run(model), wanted)


def test_the_adapter_itself_is_the_same_merged_or_not(trained):
    """Property 48."""
    model = trained("lora_bias")
    wanted = {key: t.clone() for key, t in lora_state_dict(model).items()}
    merged = lora_state_dict(merge_lora(model))
    assert merged.keys() == wanted.keys()
    assert all(torch.equal(wanted[key], t) for key, t in merged.items())


def test_what_waits_moves_and_casts_with_the_model(trained, run):
    model = merge_lora(trained("linear"))
    twin = copy.deepcopy(model)
    model.double()
    unmerge_lora(model)
    assert {host.weight.dtype for _, host in hosts(model)} == {torch.float64}
    torch.testing.assert_close(run(model).float(), run(unmerge_lora(twin)), **EXACT)


def test_what_was_merged_in_inference_mode_can_be_ejected_and_trained(make, run, randomise):
    model = randomise(inject_lora(make("bert")))
    wanted = run(model)
    with torch.inference_mode():
        merge_lora(model)
    eject_lora(model)
    torch.testing.assert_close(run(model), wanted, atol=1e-5, rtol=1e-4)
    run(model).sum().backward()
