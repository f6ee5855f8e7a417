"""Exchanging an adapter in place, against a fresh load of the same file."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter

import lora_core
from lora_core import hotswap_adapter, inject_lora, load_adapter, merge_lora, prepare_hotswap, save_adapter

OTHERS = [
    {"r": 4, "lora_alpha": 6},
    {"r": 2, "lora_alpha": 7},
    {"r": 8, "use_rslora": True},
    {"r": 3, "rank_pattern": {"layer.1.attention.self.query": 6}, "alpha_pattern": {"value": 5}},
    {"r": 2, "init_lora_weights": "pissa"},
    {"r": 2, "target_modules": ["query"]},
    {"r": 2, "modules_to_save": ()},
]


def first(make, randomise, **fields):
    return randomise(inject_lora(make("ours"), **{"r": 4, "lora_alpha": 6, **fields}))


def saved(make, randomise, folder, **fields):
    model = randomise(inject_lora(make("ours"), **fields), seed=11)
    save_adapter(model, folder)
    return folder


@pytest.mark.parametrize("prepared", [True, False])
@pytest.mark.parametrize("fields", OTHERS)
def test_equals_a_fresh_load(fields, prepared, make, run, randomise, tmp_path):
    """Property 47, with a head, other ranks and scalings, fewer layers."""
    folder = saved(make, randomise, tmp_path, **fields)
    model = first(make, randomise)
    before = run(model)
    if prepared:
        assert prepare_hotswap(model, 8) is model
        torch.testing.assert_close(run(model), before, atol=1e-6, rtol=1e-5)
    parameters = dict(model.named_parameters())
    assert hotswap_adapter(model, folder) is model
    expected = run(load_adapter(make("ours"), folder))
    torch.testing.assert_close(run(model), expected, atol=1e-6, rtol=1e-5)
    if prepared:
        assert all(p is parameters[name] for name, p in model.named_parameters())
    save_adapter(model, tmp_path / "again")
    torch.testing.assert_close(run(load_adapter(make("ours"), tmp_path / "again")), expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(run(merge_lora(model)), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dora", [False, True])
def test_a_compiled_model_is_not_compiled_again(dora, make, run, randomise, tmp_path):
    torch._dynamo.reset()
    folders = [
        saved(make, randomise, tmp_path / str(i), use_dora=dora, **fields)
        for i, fields in enumerate(OTHERS)
        if not (dora and "init_lora_weights" in fields)
    ]
    model = prepare_hotswap(first(make, randomise, use_dora=dora), 8)
    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter)
    with torch.no_grad():
        run(compiled)
        assert counter.frame_count == 1
        for folder in folders:
            hotswap_adapter(compiled, folder)
            torch.testing.assert_close(run(compiled), run(load_adapter(make("ours"), folder)), atol=1e-6, rtol=1e-5)
    assert counter.frame_count == 1
    torch._dynamo.reset()


def test_padding_stays_zero_in_training_and_off_the_disk(make, run, randomise, train, tmp_path):
    model = prepare_hotswap(first(make, randomise), 8)
    twin = first(make, randomise)
    train(model, run)
    train(twin, run)
    layer = model.bert.encoder.layer[0].attention.self.query.lora["default"]
    assert layer.lora_A.weight.shape == (8, 32)
    assert not layer.lora_A.weight[4:].any()
    assert not layer.lora_B.weight[:, 4:].any()
    torch.testing.assert_close(run(model), run(twin), atol=1e-5, rtol=1e-4)
    save_adapter(model, tmp_path)
    assert lora_core.LoRAConfig.load(tmp_path).r == 4
    torch.testing.assert_close(run(load_adapter(make("ours"), tmp_path)), run(model), atol=1e-6, rtol=1e-5)


def test_convolution_and_embedding(make, run, randomise, tmp_path):
    for kind, targets in (("conv", ["first", "inner"]), ("ours", ["word_embeddings", "query"])):
        other = randomise(inject_lora(make(kind), r=6, target_modules=targets), seed=9)
        folder = save_adapter(other, tmp_path / kind)
        model = prepare_hotswap(randomise(inject_lora(make(kind), r=2, target_modules=targets)), 6)
        hotswap_adapter(model, folder)
        torch.testing.assert_close(run(model), run(other), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"r": 16}, "rank 16, prepare_hotswap made room for 8"),
        ({"target_modules": ["query", "key"]}, "unknown: .*key.lora_A"),
        ({"use_dora": True}, "unknown: .*lora_magnitude_vector"),
        ({"bias": "all"}, "unknown: .*bias"),
    ],
)
def test_what_does_not_fit_changes_nothing(fields, message, make, randomise, tmp_path, state, same):
    folder = saved(make, randomise, tmp_path, **fields)
    model = prepare_hotswap(first(make, randomise), 8)
    before = state(model)
    with pytest.raises(ValueError, match=message):
        hotswap_adapter(model, folder)
    assert same(before, state(model))


def test_other_refusals(make, randomise, tmp_path):
    folder = saved(make, randomise, tmp_path, r=4)
    model = first(make, randomise)
    with pytest.raises(ValueError, match="max_rank is 2, but adapter 'default' has a layer of rank 4"):
        prepare_hotswap(model, 2)
    with pytest.raises(ValueError, match="no adapter 'nope'"):
        hotswap_adapter(model, folder, "nope")
    with pytest.raises(ValueError, match="is merged"):
        hotswap_adapter(merge_lora(model), folder)
    with pytest.raises(ValueError, match="Save it and load it again"):
        prepare_hotswap(first(make, randomise, init_lora_weights="pissa"), 8)
