"""nn.MultiheadAttention and torch's TransformerEncoder, with torch itself and PEFT as oracles."""

import copy
import warnings

import pytest
import torch
from torch import nn

import lora_core
from lora_core import disable_adapters, eject_lora, inject_lora, load_adapter, merge_lora, mixed_batch, save_adapter
from lora_core.adapters import hosts

E, HEADS, B, T = 16, 4, 3, 5


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def encoder(**options) -> nn.Module:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(E, HEADS, 24, dropout=0.0, batch_first=True, **options)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=not options.get("norm_first", False))
    for parameter in model.parameters():  # the two layers start as copies, biases at zero
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    padding = torch.zeros(B, T, dtype=torch.bool)
    padding[1, 3:] = True
    return torch.randn(B, T, E, generator=generator), padding


def dense(model: nn.Module) -> nn.Module:
    """The plain model with every update inside its weights: what the adapters must compute."""
    return eject_lora(merge_lora(copy.deepcopy(model)))


def masks(kind: str) -> dict:
    generator = torch.Generator().manual_seed(2)
    causal = nn.Transformer.generate_square_subsequent_mask(T)
    return {
        "none": {},
        "padding": {"key_padding_mask": inputs()[1]},
        "causal": {"attn_mask": causal, "is_causal": True},
        "per head": {"attn_mask": torch.randn(B * HEADS, T, T, generator=generator)},
        "both": {"attn_mask": torch.triu(torch.ones(T, T, dtype=torch.bool), 1), "key_padding_mask": inputs()[1]},
        "float padding": {"key_padding_mask": torch.randn(B, T, generator=generator)},
    }[kind]


@pytest.mark.parametrize("mask", ["none", "padding", "causal", "per head", "both", "float padding"])
@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_attention_equals_torch_s(mask, need_weights, batch_first, randomise):
    model = nn.Module()
    model.attn = nn.MultiheadAttention(E, HEADS, batch_first=batch_first).eval()
    nn.init.normal_(model.attn.in_proj_bias)
    randomise(inject_lora(model, r=4, target_modules=["attn"]))
    plain = dense(model).attn
    assert type(plain) is nn.MultiheadAttention
    query, other = inputs()[0], torch.randn(B, T, E)
    for key, value in ((query, query), (other, other), (other, query)):
        arguments = [x if batch_first else x.transpose(0, 1) for x in (query, key, value)]
        if key is query:
            arguments = [arguments[0]] * 3
        out, weights = model.attn(*arguments, need_weights=need_weights, **masks(mask))
        expected, expected_weights = plain(*arguments, need_weights=need_weights, **masks(mask))
        torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-4)
        assert (weights is None) == (expected_weights is None)
        if need_weights:
            torch.testing.assert_close(weights, expected_weights, atol=1e-5, rtol=1e-4)


def test_input_without_a_batch_and_weights_of_each_head(randomise):
    model = nn.Module()
    model.attn = nn.MultiheadAttention(E, HEADS).eval()
    randomise(inject_lora(model, r=4, target_modules=["attn"]))
    x = inputs()[0][0]
    padding = torch.tensor([False, False, False, True, True])
    for average in (True, False):
        result = model.attn(x, x, x, key_padding_mask=padding, average_attn_weights=average)
        torch.testing.assert_close(result, dense(model).attn(x, x, x, padding, average_attn_weights=average))


def test_dropout_in_training_has_torch_s_distribution():
    model = nn.Module()
    model.attn = nn.MultiheadAttention(E, HEADS, dropout=0.5, batch_first=True)
    x = inputs()[0]
    torch.manual_seed(5)
    expected = model.attn(x, x, x)
    inject_lora(model, r=4, target_modules=["attn"])
    torch.manual_seed(5)
    torch.testing.assert_close(model.attn(x, x, x), expected)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("options", [{}, {"activation": "gelu"}, {"norm_first": True}])
@pytest.mark.parametrize("targets", ["all-linear", "attention", ["linear1"], ["linear1", "linear2"]])
def test_encoder_is_right_in_every_mode(targets, options, randomise):
    """torch's fast path reads the children's weights without calling them when it needs no gradients."""
    base = encoder(**options)
    x, padding = inputs()
    with torch.no_grad():
        untouched = base(x, src_key_padding_mask=padding)
    model = randomise(inject_lora(base, r=4, target_modules=targets))
    expected = dense(model).train()(x, src_key_padding_mask=padding)[~padding]  # without dropout, training is plain
    assert not torch.allclose(expected, untouched[~padding], atol=1e-2)

    def outputs() -> torch.Tensor:
        return model(x, src_key_padding_mask=padding)[~padding]

    for training in (True, False):
        model.train(training)
        torch.testing.assert_close(outputs(), expected, atol=1e-5, rtol=1e-4)
        with torch.no_grad():
            torch.testing.assert_close(outputs(), expected, atol=1e-5, rtol=1e-4)
        with torch.inference_mode():
            torch.testing.assert_close(outputs(), expected, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(model.layers[0](x), model.layers[0](x.clone()))
    with torch.no_grad():
        with disable_adapters(model):
            torch.testing.assert_close(outputs(), untouched[~padding], atol=1e-5, rtol=1e-4)
        merge_lora(model)
        torch.testing.assert_close(outputs(), expected, atol=1e-5, rtol=1e-4)
        lora_core.unmerge_lora(model)
        torch.testing.assert_close(outputs(), expected, atol=1e-5, rtol=1e-4)


def test_eject_gives_the_fast_path_back():
    model = encoder()
    switches = [(layer.activation_relu_or_gelu, model.use_nested_tensor) for layer in model.layers]
    types = [type(m) for m in model.modules()]
    inject_lora(model, r=4, target_modules="attention")
    assert [(layer.activation_relu_or_gelu, model.use_nested_tensor) for layer in model.layers] != switches
    eject_lora(model)
    assert [(layer.activation_relu_or_gelu, model.use_nested_tensor) for layer in model.layers] == switches
    assert [type(m) for m in model.modules()] == types


def test_trains_every_factor(randomise):
    model = inject_lora(encoder(), r=4, target_modules="attention").train()
    randomise(model)
    model(inputs()[0]).sum().backward()
    assert {name.partition(".lora.")[2] for name, p in model.named_parameters() if p.grad is not None} == {
        "default.lora_A.weight",
        "default.lora_B.weight",
    }
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert [path for path, _ in hosts(model)][:2] == ["layers.0.self_attn", "layers.0.self_attn.out_proj"]


@pytest.mark.parametrize("bias", ["none", "lora_only", "all"])
def test_peft_reads_and_writes_the_same_file(bias, randomise, peft_model, peft_load, tmp_path):
    fields = {"r": 4, "lora_alpha": 6, "bias": bias, "rank_pattern": {"layers.1.self_attn": 2}}
    model = randomise(inject_lora(encoder(), target_modules=["self_attn", "linear1"], modules_to_save=(), **fields))
    save_adapter(model, tmp_path / "ours")
    x = inputs()[0]
    theirs = peft_load(encoder(), tmp_path / "ours").base_model.model.train()  # PEFT is not there on the fast path
    torch.testing.assert_close(theirs(x), model(x), atol=1e-5, rtol=1e-4)
    oracle = randomise(peft_model(encoder(), target_modules=["self_attn", "linear1"], **fields))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        oracle.save_pretrained(tmp_path / "theirs")
    loaded = load_adapter(encoder(), tmp_path / "theirs")
    torch.testing.assert_close(loaded(x), oracle.base_model.model.train()(x), atol=1e-5, rtol=1e-4)


def test_preset_is_written_in_words_of_peft(randomise, peft_load, tmp_path):
    model = randomise(inject_lora(encoder(), r=4, target_modules="all-linear"))
    save_adapter(model, tmp_path)
    targets = lora_core.LoRAConfig.load(tmp_path).target_modules
    assert "layers.0.self_attn" in targets
    assert not any(target.endswith("out_proj") for target in targets)
    theirs = peft_load(encoder(), tmp_path).base_model.model.train()
    torch.testing.assert_close(theirs(inputs()[0]), model(inputs()[0]), atol=1e-5, rtol=1e-4)


def test_mixed_batch(randomise):
    model = inject_lora(encoder(), r=4, target_modules="all-linear", adapter_name="one")
    lora_core.add_adapter(model, "two", r=2, target_modules="all-linear")
    x = inputs()[0]
    singles = {}
    for seed, name in enumerate(("one", "two")):
        lora_core.set_adapter(model, name)
        singles[name] = randomise(model, seed=seed)(x)
    with torch.no_grad(), mixed_batch(model, ["two", None, "one"]):
        mixed = model(x)
    torch.testing.assert_close(mixed[0], singles["two"][0])
    torch.testing.assert_close(mixed[2], singles["one"][2])


@pytest.mark.parametrize(
    ("attention", "fields", "message"),
    [
        (nn.MultiheadAttention(E, HEADS, kdim=8), {}, "kdim or vdim"),
        (nn.MultiheadAttention(E, HEADS, add_bias_kv=True), {}, "add_bias_kv"),
        (nn.MultiheadAttention(E, HEADS, add_zero_attn=True), {}, "add_zero_attn"),
        (nn.MultiheadAttention(E, HEADS), {"use_dora": True}, "use_dora"),
        (nn.MultiheadAttention(E, HEADS), {"target_modules": ["out_proj"]}, "Target attn, which adapts both"),
        (nn.MultiheadAttention(E, HEADS), {"target_modules": None}, 'target_modules="attention"'),
    ],
)
def test_refusals(attention, fields, message, state, same):
    model = nn.Module()
    model.attn = attention
    before = state(model)
    with pytest.raises(ValueError, match=message):
        inject_lora(model, **{"r": 2, "target_modules": ["attn"], **fields})
    assert same(before, state(model))


def test_hint_without_a_mask_is_refused():
    model = nn.Module()
    model.attn = nn.MultiheadAttention(E, HEADS)
    inject_lora(model, r=2, target_modules=["attn"])
    x = inputs()[0]
    with pytest.raises(ValueError, match="attn_mask must be given"):
        model.attn(x, x, x, is_causal=True)


def test_compiles_to_one_graph(randomise):
    torch._dynamo.reset()
    model = randomise(inject_lora(encoder(), r=4, target_modules="all-linear"))
    x = inputs()[0]
    for training in (True, False):
        compiled = torch.compile(model.train(training), backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), model(x))
    torch._dynamo.reset()
