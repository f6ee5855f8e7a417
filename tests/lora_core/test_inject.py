"""Injection and ejection: what changes, what is trained, how adapters start, what is counted."""

import copy
import dataclasses
import io
import math
import pickle

import pytest
import torch
from torch import nn

import lora_core
from lora_core import (
    LoRAConfig,
    add_adapter,
    disable_adapters,
    eject_lora,
    inject_lora,
    merge_lora,
    parameter_counts,
    set_adapter,
)
from lora_core.adapters import hosts
from lora_core.models import build_model, config_from_dict
from lora_core.whole import is_waiting

KINDS = ["bert", "bert-text", "roberta-text", "distilbert-text", "ours", "ours-text"]


@pytest.mark.parametrize("kind", [*KINDS, "conv"])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"init_lora_weights": True},
        {"bias": "all"},
        {"use_dora": True},
        {"lora_bias": True, "init_lora_weights": True},
        {"use_rslora": True, "lora_alpha": 32},
    ],
)
def test_a_fresh_adapter_leaves_outputs_identical(kind, fields, make, run):
    """Property 1: to the bit for plain LoRA, within rounding for DoRA."""
    model = make(kind)
    wanted = run(model)
    targets = ["first", "second", "inner"] if kind == "conv" else "all-linear"
    assert inject_lora(model, target_modules=targets, **fields) is model
    if fields.get("use_dora"):
        torch.testing.assert_close(run(model), wanted, atol=1e-6, rtol=1e-5)
    else:
        assert torch.equal(run(model), wanted)


def big_layer(**fields) -> nn.Module:
    torch.manual_seed(0)
    return inject_lora(nn.ModuleDict({"layer": nn.Linear(1000, 900)}), target_modules=["layer"], **fields).layer


def distance(sample: torch.Tensor, cdf) -> float:
    """Largest distance between a sample's distribution and ``cdf`` (Kolmogorov and Smirnov)."""
    values = cdf(sample.flatten().double().sort().values)
    steps = torch.arange(1, len(values) + 1, dtype=torch.float64) / len(values)
    return (values - steps).abs().max().item()


@pytest.mark.parametrize("r", [16, 64])
def test_gaussian_start(r):
    """Property 3: A ~ N(0, 1/r) by its standard deviation, B = 0."""
    adapter = big_layer(r=r).lora["default"]
    count = adapter.lora_A.weight.numel()
    normal = torch.distributions.Normal(0, 1 / r)
    assert distance(adapter.lora_A.weight, normal.cdf) < 1.95 / math.sqrt(count)  # p = 0.001
    assert not adapter.lora_B.weight.any()


@pytest.mark.parametrize("init", ["kaiming", True])
def test_kaiming_start(init):
    """Property 2: A uniform as kaiming_uniform_(a=sqrt(5)) draws it, B = 0."""
    adapter = big_layer(r=16, init_lora_weights=init).lora["default"]
    bound = 1 / math.sqrt(1000)
    assert adapter.lora_A.weight.abs().max() <= bound
    uniform = torch.distributions.Uniform(-bound, bound, validate_args=False)
    assert distance(adapter.lora_A.weight, uniform.cdf) < 1.95 / math.sqrt(16_000)
    assert not adapter.lora_B.weight.any()


@pytest.mark.parametrize("kind", ["bert", "conv"])
def test_random_start_changes_the_outputs(kind, make, run):
    """Property 4."""
    model = make(kind)
    wanted = run(model)
    inject_lora(model, target_modules=["inner", "first"] if kind == "conv" else None, init_lora_weights=False)
    assert (run(model) - wanted).abs().max() > 1e-4


def test_embedding_start():
    """Property 5: A = 0, B ~ N(0, 1)."""
    torch.manual_seed(0)
    model = inject_lora(nn.ModuleDict({"layer": nn.Embedding(50, 1000)}), r=16, target_modules=["layer"])
    adapter = model.layer.lora["default"]
    assert not adapter.lora_embedding_A.any()
    normal = torch.distributions.Normal(0, 1)
    assert distance(adapter.lora_embedding_B, normal.cdf) < 1.95 / math.sqrt(16_000)


def test_ranks_and_alphas_by_module_are_those_of_peft(make, peft_model):
    """Property 9, with rslora too."""
    fields = {
        "r": 8,
        "lora_alpha": 12,
        "target_modules": ["query", "value", "output.dense"],
        "use_rslora": True,
        "rank_pattern": {"query": 2, r"layer\.1\.output\.dense": 5},
        "alpha_pattern": {"layer.0.attention.self.query": 3, "value": 7},
    }
    theirs = {
        path.removeprefix("base_model.model."): (m.r["default"], m.scaling["default"])
        for path, m in peft_model(make("bert"), **fields).named_modules()
        if hasattr(m, "lora_A")
    }
    model = inject_lora(make("bert"), **fields)
    ours = {path: host.lora["default"] for path, host in hosts(model)}
    assert {path: (a.r, a.scaling) for path, a in ours.items()} == theirs
    assert all(len(a.lora_A.weight) == a.r for a in ours.values())
    assert len({r for r, _ in theirs.values()}) == 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bias", ["none", "lora_only", "all"])
def test_only_what_is_owned_is_trained(kind, bias, make, run, train):
    """Properties 17 and 18: everything trainable gets a gradient and moves, all else keeps its bits."""
    model = inject_lora(make(kind), bias=bias)
    before = {name: (p, p.detach().clone()) for name, p in model.named_parameters()}
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    train(model, run)
    for name, parameter in model.named_parameters():
        assert parameter is before[name][0]
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            key_bias = name.endswith(("key.bias", "k_lin.bias"))  # softmax is blind to a constant on the keys
            assert key_bias or not torch.equal(parameter, before[name][1]), name
        else:
            assert parameter.grad is None, name
            assert torch.equal(parameter, before[name][1]), name
    assert all(torch.equal(buffers[name], b) for name, b in model.named_buffers())
    head = "classifier.out_proj.weight" if kind == "roberta-text" else "classifier.weight"
    assert model.get_parameter(head).requires_grad


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_trains_the_same_parameters(reentrant, make, run):
    """Property 19, and the gradients are the same."""

    def gradients(checkpointing: bool) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = inject_lora(make("bert"), init_lora_weights=False, bias="lora_only").train()
        if checkpointing:
            # transformers renamed it in 5.23
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        run(model).square().sum().backward()
        return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}

    plain, checkpointed = gradients(False), gradients(True)
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        assert gradient.any() or "key" in name, name
        torch.testing.assert_close(checkpointed[name], gradient, atol=1e-5, rtol=1e-4)


def test_requires_grad_follows_what_acts(make):
    """Property 20."""
    model = inject_lora(make("bert"), adapter_name="a")

    def trainable() -> set[str]:
        return {name for name, p in model.named_parameters() if p.requires_grad}

    def of(name: str) -> set[str]:
        return {"classifier.weight", "classifier.bias"} | {
            path for path, _ in model.named_parameters() if f".lora.{name}." in path
        }

    assert trainable() == of("a")
    add_adapter(model, "b", r=4)
    assert trainable() == of("a")
    set_adapter(model, "b")
    assert trainable() == of("b")
    add_adapter(model, "frozen", trainable=False)
    set_adapter(model, "frozen")
    assert trainable() == set()
    set_adapter(model, [])
    assert trainable() == set()
    eject_lora(model)
    assert trainable() == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bias", ["none", "all"])
def test_adapters_and_head_are_fp32_on_a_half_base(dtype, bias, make, run, randomise):
    """Properties 21 and 22, complaint 10: PEFT trains the head in half precision."""
    model = make("bert").to(dtype)
    base = run(model)
    inject_lora(model, bias=bias)
    torch.testing.assert_close(run(model), base)  # the head now computes in fp32
    head = ("classifier.weight", "classifier.bias")
    owned = {name: p for name, p in model.named_parameters() if ".lora." in name or name in head}
    assert {p.dtype for p in owned.values()} == {torch.float32}
    assert {p.dtype for name, p in model.named_parameters() if name not in owned} == {dtype}
    randomise(model)
    out = run(model.train())
    assert out.dtype == dtype
    out.float().square().sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    model.eval()
    with disable_adapters(model):
        assert torch.equal(run(model), base)
    with torch.autocast("cpu", dtype):
        assert run(model).shape == base.shape
    wanted = run(copy.deepcopy(model))
    eject_lora(merge_lora(model))
    assert {p.dtype for p in model.parameters()} == {dtype}
    torch.testing.assert_close(run(model), wanted, atol=0.1, rtol=0.1)


def test_the_adapters_dtype_can_be_chosen(make, run):
    """Property 21: PEFT's autocast_adapter_dtype=False."""
    model = inject_lora(make("bert").bfloat16(), adapter_dtype=torch.bfloat16)
    add_adapter(model, "second", adapter_dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert run(model).dtype == torch.bfloat16


def test_the_base_models_keys_never_move(make):
    """A checkpoint of the base loads into the injected model, and the adapters' keys are all new."""
    model = make("bert")
    before = dict(model.state_dict())
    inject_lora(model, bias="all")
    after = model.state_dict()
    assert before.keys() <= after.keys()
    assert all(".lora." in name or is_waiting(name) for name in after.keys() - before.keys())
    assert model.load_state_dict(before, strict=False).unexpected_keys == []


def test_ejection_gives_back_the_very_model(make, run, state, same, train):
    model = make("bert")
    model.bert.embeddings.requires_grad_(False)
    before, wanted = state(model), run(model)
    inject_lora(model, bias="all", target_modules="all-linear")
    add_adapter(model, "second")
    train(model, run)
    assert eject_lora(model) is model
    assert same(before, state(model))
    assert torch.equal(run(model), wanted)
    assert not hasattr(model, "lora_state")
    inject_lora(model, adapter_name="second")


def test_requires_grad_comes_back_after_the_last_adapter_was_replaced(make, state):
    model = make("bert")
    model.bert.embeddings.requires_grad_(False)
    before = state(model)["flags"]
    inject_lora(model)
    lora_core.delete_adapter(model, "default")
    inject_lora(model)
    eject_lora(model)
    assert state(model)["flags"] == before


@pytest.mark.parametrize(
    "fields",
    [
        {"r": 0},
        {"bias": "every"},
        {"target_modules": ["nothing"]},
        {"adapter_name": "default"},
        {"adapter_name": "has.dot"},
        {"adapter_name": "training"},
        {"adapter_name": "keys"},
        {"adapter_name": ""},
        {"target_modules": ["word_embeddings"], "lora_bias": True, "init_lora_weights": True},
        {"config": LoRAConfig(), "r": 4},
    ],
)
def test_a_refused_injection_changes_nothing(fields, make, state, same):
    """Properties 10, 11 and 36."""
    for prepared in (make("bert"), inject_lora(make("bert"), bias="all")):
        if fields == {"adapter_name": "default"} and not hasattr(prepared, "lora_state"):
            continue
        before = state(prepared)
        with pytest.raises(ValueError, match=r"."):
            inject_lora(prepared, **{"adapter_name": "new", **fields})
        assert same(before, state(prepared))
        assert set(getattr(prepared, "lora_state", None).adapters if hasattr(prepared, "lora_state") else ()) <= {
            "default"
        }


def test_an_unknown_field_is_refused(make):
    for name, meant in {"lora_rank": "r", "alpha": "lora_alpha", "use_rs_lora": "use_rslora"}.items():
        with pytest.raises(TypeError, match=rf"'{name}' is no field of LoRAConfig: did you mean {meant}\?"):
            inject_lora(make("bert"), **{name: 4})
    with pytest.raises(TypeError, match=r"'zzz' is no field of LoRAConfig; there are r, lora_alpha, "):
        inject_lora(make("bert"), zzz=4)


def test_adding_to_a_merged_model_is_refused(make, state, same):
    """The merged weight would be taken for the base's by DoRA's magnitudes, PiSSA and owned biases."""
    model = merge_lora(inject_lora(make("bert")))
    before = state(model)
    with pytest.raises(ValueError, match="unmerge_lora"):
        add_adapter(model, "second", use_dora=True)
    assert same(before, state(model))


def test_a_config_serves_any_number_of_models(make):
    """Complaint 5: PEFT adds names to the config that it is given."""
    config = LoRAConfig(target_modules="all-linear", bias="all", rank_pattern={"query": 2})
    before = dataclasses.asdict(config)
    first, second = (inject_lora(make("bert"), config=config) for _ in range(2))
    assert dataclasses.asdict(config) == before
    assert first.lora_state.adapters["default"].config == second.lora_state.adapters["default"].config
    assert [path for path, _ in hosts(first)] == [path for path, _ in hosts(second)]


def test_saved_modules_are_not_duplicated(make, peft_model):
    """Complaint 4: PEFT counts the head twice."""
    model = make("bert")
    base = parameter_counts(model)[1]
    inject_lora(model, r=8, target_modules=["query", "value"])
    lora = sum(p.numel() for name, p in model.named_parameters() if ".lora." in name)
    head = model.classifier.weight.numel() + model.classifier.bias.numel()
    assert parameter_counts(model) == (lora + head, base + lora)
    theirs = peft_model(make("bert"), r=8, target_modules=["query", "value"], modules_to_save=["classifier"])
    assert theirs.get_nb_trainable_parameters() == (lora + head, base + lora + head)


ROBERTA = {
    "model_type": "roberta",
    "vocab_size": 50265,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "pad_token_id": 1,
    "layer_norm_eps": 1e-5,
}
BERT = {"model_type": "bert", "vocab_size": 30522, "max_position_embeddings": 512, "type_vocab_size": 2}
FULL = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}


@pytest.mark.parametrize(
    ("values", "task", "labels", "fields", "counts"),
    [
        (ROBERTA, "token-classification", 11, {"r": 16, "bias": "all"}, (700_427, 124_653_323)),
        (BERT, "text-classification", 4, {"r": 4, "modules_to_save": ()}, (147_456, 109_632_772)),
        (
            BERT,
            "text-classification",
            4,
            {"r": 8, "target_modules": ["query"], "modules_to_save": ()},
            (147_456, 109_632_772),
        ),
    ],
)
def test_parameter_counts_of_full_size_models(values, task, labels, fields, counts):
    with torch.device("meta"):
        config = config_from_dict({**FULL, **values})
        model = build_model(config, task, [f"label {i}" for i in range(labels)])
    inject_lora(model, **fields)
    assert parameter_counts(model) == counts


@pytest.mark.parametrize(("r", "counts"), [(8, (443_906, 86_244_100)), (24, (1_328_642, 87_128_836))])
def test_parameter_counts_of_a_full_size_vision_transformer(r, counts):
    """PEFT's total counts the head of 1,538 numbers twice."""
    import transformers

    with torch.device("meta"):
        model = transformers.ViTForImageClassification(transformers.ViTConfig(num_labels=2))
    inject_lora(model, r=r, lora_alpha=2 * r, target_modules="qkv")
    trainable, total = parameter_counts(model)
    assert (trainable, total + 1_538) == counts


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_injected_models_can_be_copied(how, make, run, randomise):
    model = inject_lora(make("bert").bfloat16(), bias="all", lora_dropout=0.1)
    randomise(model)
    wanted = run(model)
    with disable_adapters(model):
        base = run(model)
    merge_lora(model)
    if how == "deepcopy":
        twin = copy.deepcopy(model)
    elif how == "pickle":
        twin = pickle.loads(pickle.dumps(model))
    else:
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    assert torch.equal(run(twin), run(model))
    lora_core.unmerge_lora(twin)
    assert torch.equal(run(twin), wanted)
    randomise(twin, seed=9)
    assert not torch.equal(run(twin), wanted)
    eject_lora(twin)
    assert torch.equal(run(twin), base)
    lora_core.unmerge_lora(model)
    assert torch.equal(run(model), wanted)
