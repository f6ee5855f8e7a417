"""Combinations of adapters, with PEFT as oracle where nothing is random, and the sum of the updates elsewhere."""

import warnings

import pytest
import torch

import lora_core
from lora_core import add_adapter, combine_adapters, inject_lora, merge_lora, save_adapter, set_adapter
from lora_core.adapters import hosts, whole_tensors

TARGETS = ["query", "value", "word_embeddings"]


def two(make, randomise, kind="bert", **second):
    """A model with the adapters "one" and "two", all of whose numbers are random; no heads."""
    targets = ["first", "inner"] if kind == "conv" else TARGETS
    model = inject_lora(make(kind), r=4, lora_alpha=6, target_modules=targets, modules_to_save=(), adapter_name="one")
    add_adapter(model, "two", **{"r": 4, "lora_alpha": 2, "target_modules": targets, "modules_to_save": (), **second})
    for seed, name in enumerate(("one", "two")):
        set_adapter(model, name)
        randomise(model, seed=seed)
    set_adapter(model, "one")
    return model


def updates(model, name: str) -> dict[str, torch.Tensor]:
    """scaling * B A by path."""
    found = {}
    for path, host in hosts(model):
        if name in host.lora:
            a, b = host.lora[name].factors()
            found[path] = float(host.lora[name].scaling) * b @ a
    return found


def peft_twin(model, make, run, tmp_path):
    """The same two adapters in PEFT."""
    import peft

    theirs = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ("one", "two"):
            save_adapter(model, tmp_path / name, name)
            if theirs is None:
                theirs = peft.PeftModel.from_pretrained(make("bert"), tmp_path / name, adapter_name=name)
            else:
                theirs.load_adapter(tmp_path / name, name)
    return theirs.eval()


@pytest.mark.parametrize("weights", [[0.7, 0.4], [1.0, -0.5]])
@pytest.mark.parametrize(
    ("combination", "density"),
    [("linear", None), ("cat", None), ("svd", None), ("ties", 0.4), ("ties", 1.0), ("magnitude_prune", 0.5)],
)
def test_equals_peft(combination, density, weights, make, run, randomise, tmp_path):
    """Property 39."""
    model = two(make, randomise)
    theirs = peft_twin(model, make, run, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of density 1
        theirs.add_weighted_adapter(["one", "two"], weights, "both", combination, density=density)
    theirs.set_adapter("both")
    combine_adapters(model, ["one", "two"], weights, "both", combination, density=density)
    set_adapter(model, "both")
    torch.testing.assert_close(run(model), run(theirs), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["bert", "conv"])
@pytest.mark.parametrize(
    "second", [{}, {"r": 2}, {"r": 3, "use_rslora": True, "rank_pattern": {"query": 6}}, {"init_lora_weights": "olora"}]
)
def test_cat_and_full_svd_are_exact_sums(kind, second, make, randomise):
    if kind == "conv":
        second = {key: value for key, value in second.items() if key not in ("rank_pattern", "init_lora_weights")}
    if second.get("init_lora_weights"):
        second = {**second, "target_modules": ["query", "dense"], "exclude_modules": ["output.dense"]}
    model = two(make, randomise, kind, **second)
    combine_adapters(model, ["one", "two"], [0.7, -0.4], "cat", "cat")
    combine_adapters(model, ["one", "two"], [0.7, -0.4], "svd", "svd", rank=12)
    one, other = updates(model, "one"), updates(model, "two")
    for name in ("cat", "svd"):
        both = updates(model, name)
        assert both.keys() == one.keys() | other.keys()
        for path, update in both.items():
            expected = 0.7 * one.get(path, torch.zeros_like(update)) - 0.4 * other.get(path, torch.zeros_like(update))
            torch.testing.assert_close(update, expected, atol=1e-5, rtol=1e-4, msg=f"{name} {path}")


def test_svd_is_the_best_approximation(make, randomise):
    model = two(make, randomise)
    combine_adapters(model, ["one", "two"], [1.0, 1.0], "svd", "svd", rank=3)
    one, other = updates(model, "one"), updates(model, "two")
    for path, update in updates(model, "svd").items():
        u, s, vh = torch.linalg.svd(one[path] + other[path], full_matrices=False)
        torch.testing.assert_close(update, u[:, :3] * s[:3] @ vh[:3], atol=1e-5, rtol=1e-3)


def test_result_is_an_adapter_like_any_other(make, run, randomise, tmp_path):
    model = two(make, randomise, r=2)
    before = run(model)
    assert combine_adapters(model, ["one", "two"], [1.0, 0.5], "both", "cat") is model
    assert torch.equal(run(model), before)
    set_adapter(model, "both")
    combined = run(model)
    save_adapter(model, tmp_path, "both")
    torch.testing.assert_close(run(lora_core.load_adapter(make("bert"), tmp_path)), combined, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(run(merge_lora(model)), combined, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("combination", ["dare_linear", "dare_ties"])
def test_dare_is_random_by_its_seed_only(combination, make, randomise):
    model = two(make, randomise)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        torch.manual_seed(hash(name) % 100)
        combine_adapters(model, ["one", "two"], [1, 1], name, combination, density=0.5, seed=seed)
    a, b, c = (updates(model, name) for name in "abc")
    path = "bert.encoder.layer.0.attention.self.query"
    assert torch.equal(a[path], b[path])
    assert not torch.equal(a[path], c[path])


def test_dare_keeps_the_share_and_the_mean(make, randomise):
    """density of the entries stay, divided by it, so the expectation is the linear sum."""
    model = two(make, randomise)
    factor = model.bert.encoder.layer[0].attention.self.query.lora["one"].lora_A.weight.detach()
    totals, kept = torch.zeros_like(factor), 0
    for seed in range(300):
        combine_adapters(model, ["one"], [1 / 1.5], "new", "dare_linear", density=0.25, seed=seed)
        new = model.bert.encoder.layer[0].attention.self.query.lora["new"].lora_A.weight
        totals += new.detach()
        kept += (new != 0).float().mean().item()
        lora_core.delete_adapter(model, "new")
    assert kept / 300 == pytest.approx(0.25, abs=0.01)
    torch.testing.assert_close(totals / 300, factor, atol=0.3, rtol=0.3)


def test_a_head_goes_along_when_one_adapter_owns_it(make, run, randomise):
    model = inject_lora(make("bert"), r=4, modules_to_save=["classifier"], adapter_name="one")
    add_adapter(model, "two", r=4, modules_to_save=())
    randomise(model)
    head = model.classifier.weight.detach().clone()
    combine_adapters(model, ["one", "two"], [1, 1], "both")
    set_adapter(model, "both")
    assert torch.equal(model.classifier.weight, head)
    assert model.classifier.weight is not whole_tensors(model, "one")["classifier.weight"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"combination": "mean"}, "combination must be one of linear, cat, svd"),
        ({"weights": [1.0]}, "one weight for each"),
        ({"adapter_names": ["one", "nope"]}, "no adapter 'nope'"),
        ({"adapter_names": ["one", "one"]}, "different adapters"),
        ({"new_name": "one"}, "adapter 'one' already"),
        ({"combination": "ties"}, "needs a density"),
        ({"combination": "ties", "density": 1.5}, "needs a density"),
        ({"density": 0.5}, "keeps every entry"),
        ({"rank": 3}, 'rank is for "svd"'),
        ({"adapter_names": ["one", "small"]}, r"must have one rank, but they have \[4, 2\]"),
        ({"adapter_names": ["one", "pissa"]}, "PiSSA or OLoRA started"),
        ({"adapter_names": ["one", "dora"]}, "cannot be combined"),
        ({"adapter_names": ["head", "head2"]}, "both own 'classifier.bias'"),
    ],
)
def test_refusals_change_nothing(changes, message, make, randomise, state, same):
    model = two(make, randomise)
    add_adapter(model, "small", r=2, modules_to_save=())
    add_adapter(model, "pissa", r=2, init_lora_weights="pissa", modules_to_save=())
    add_adapter(model, "dora", r=4, use_dora=True, modules_to_save=())
    for name in ("head", "head2"):
        add_adapter(model, name, r=4, modules_to_save=["classifier"])
    before = state(model)
    arguments = {"adapter_names": ["one", "two"], "weights": [1.0, 1.0], "new_name": "new", **changes}
    with pytest.raises(ValueError, match=message):
        combine_adapters(model, **arguments)
    assert same(before, state(model))
    assert "new" not in model.lora_state.adapters
