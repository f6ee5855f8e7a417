"""Fused layers against the plain ones, which tests/lora_core/models holds against transformers."""

import copy
import logging
import pickle
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import lora_core
from lora_core.kernels.fused import FusedStack, fuse, obstacle, unfuse
from lora_core.kernels.linear import Products
from lora_core.kernels.native.build import ops
from lora_core.kernels.packing import Layout
from lora_core.kernels.transformer_layer import run_layer
from lora_core.models import load_pretrained, save_pretrained

LORA = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.3}


def injected(model: nn.Module, **fields) -> nn.Module:
    """With adapters that already do something."""
    torch.manual_seed(5)
    lora_core.inject_lora(model, **{**LORA, **fields})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.2)
    return model.train()


@pytest.fixture
def compare(gradients, shared_dropout, assert_same):
    """The plain model and its fused copy give the same logits and gradients."""

    def run(model: nn.Module, batch: dict, tolerance: float = 2e-5) -> None:
        fused = fuse(copy.deepcopy(model))
        shared_dropout()
        expected = gradients(model, batch)
        shared_dropout()
        found = gradients(fused, batch)
        for stack in stacks(fused):
            assert not stack.told, "the plain path ran"
        assert_same(found, expected, tolerance)

    return run


def stacks(model: nn.Module) -> list[FusedStack]:
    return [module for module in model.modules() if isinstance(module, FusedStack)]


@pytest.mark.parametrize("targets", ["qv", "qkv", "attention", "all-linear"])
@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "deberta-v2", "modernbert", "vit"])
def test_lora_equals_the_plain_layers(family, targets, make, inputs, compare):
    compare(injected(make(family), target_modules=targets, bias="all"), inputs(family))


@pytest.mark.parametrize("bias", ["none", "lora_only"])
@pytest.mark.parametrize(
    "fields",
    [
        {"layers_to_transform": [1]},
        {"use_rslora": True},
        {"lora_dropout": 0.0},
        {"modules_to_save": ()},
        {"target_modules": ["dense"]},
    ],
)
def test_fields_of_lora(bias, fields, make, inputs, compare):
    compare(injected(make("bert"), bias=bias, **fields), inputs("bert"))


@pytest.mark.parametrize(
    "fields",
    [
        {"use_dora": True},
        {"init_lora_weights": "pissa"},
        {"lora_bias": True},
        {"init_lora_weights": "olora", "target_modules": "all-linear"},
    ],
)
def test_adapters_of_other_kinds_run_as_they_are(fields, make, inputs, compare):
    compare(injected(make("bert"), **{"bias": "all", **fields}), inputs("bert"))


@pytest.mark.parametrize("family", ["bert", "distilbert", "deberta-v2", "modernbert", "vit"])
def test_full_fine_tuning(family, make, inputs, compare):
    compare(make(family).train(), inputs(family))


def test_head_alone(make, inputs, compare):
    model = make("bert").requires_grad_(False).train()
    model.get_submodule("classifier").requires_grad_(True)
    compare(model, inputs("bert"))


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "deberta-v2", "modernbert"])
def test_text_classification(family, make, inputs, compare):
    model = injected(make(family, "text-classification"), target_modules="all-linear")
    compare(model, inputs(family))


@pytest.mark.parametrize("lengths", [(9, 0, 7), (1,), (5, 5, 5)])
def test_rows_of_padding_alone_and_none(lengths, make, inputs, compare):
    compare(injected(make("bert"), bias="all"), inputs("bert", lengths))


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("rows", [2, 0])
def test_batches_without_a_real_token(rows, dtype, make):
    model = fuse(injected(make("bert"), target_modules="all-linear", bias="all"), dtype)
    logits = model(torch.ones(rows, 4, dtype=torch.long), torch.zeros(rows, 4))
    logits.sum().backward()
    assert logits.shape == (rows, 4, 3)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_padding_before_and_between_the_tokens(make, inputs, compare):
    batch = inputs("distilbert")
    batch["attention_mask"] = batch["attention_mask"].flip(1)
    batch["attention_mask"][0, 3] = 0
    compare(injected(make("distilbert")), batch)


@pytest.mark.parametrize("activation", ["relu", "silu", "gelu_new"])
def test_activations(activation, make, inputs, compare):
    compare(injected(make("bert", hidden_act=activation), target_modules="all-linear"), inputs("bert"))


def test_gradients_add_up(make, inputs, gradients, shared_dropout, assert_same):
    model = fuse(injected(make("bert"), bias="all"))
    batch = inputs("bert")
    shared_dropout()
    logits, once = gradients(model, batch)
    shared_dropout()
    logits_again = model(**batch)[batch["attention_mask"].bool()]
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(11))
    (logits_again * weights).sum().backward()
    twice = {name: parameter.grad / 2 for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert_same((logits_again, twice), (logits, once))


def test_evaluation_equals_the_plain_layers(make, inputs):
    model = injected(make("bert"), bias="all").eval()
    batch = inputs("bert")
    real = batch["attention_mask"].bool()
    for prepare in (lambda: None, lambda: lora_core.merge_lora(model), lambda: lora_core.unmerge_lora(model)):
        prepare()
        expected = model(**batch)
        fuse(model)
        for context in (torch.no_grad, torch.inference_mode):
            with context():
                torch.testing.assert_close(model(**batch)[real], expected[real], rtol=1e-4, atol=1e-5)
        unfuse(model)


def test_disabled_and_switched_adapters(make, inputs):
    model = injected(make("bert")).eval()
    lora_core.add_adapter(model, "other", r=2, init_lora_weights=False, modules_to_save=())
    batch = inputs("bert", (6, 6))
    for names in ("default", "other", ("default", "other"), ()):
        lora_core.set_adapter(model, names)
        expected = unfuse(model)(**batch)
        torch.testing.assert_close(fuse(model)(**batch), expected, rtol=1e-4, atol=1e-5)
        with lora_core.disable_adapters(model):
            base = model(**batch)
        with lora_core.disable_adapters(unfuse(model)):
            torch.testing.assert_close(base, model(**batch), rtol=1e-4, atol=1e-5)


def test_merged_adapters_refuse_training(make, inputs):
    model = injected(fuse(make("bert"))).eval()
    lora_core.merge_lora(model)
    with pytest.raises(RuntimeError, match="merged"):
        model.train()(**inputs("bert"))


def test_dropout_of_attention_weights(make, inputs):
    """The plain attention does it, so only the mean over many passes can be compared."""
    model = fuse(make("bert", attention_probs_dropout_prob=0.5, hidden_dropout_prob=0.0)).train()
    batch = inputs("bert", (5, 5))
    assert not torch.equal(model(**batch), model(**batch))
    model.get_submodule("bert.encoder.layer.0.attention.self.dropout").p = 0.0
    for layer in model.get_submodule("bert.encoder.layer").children():
        layer.get_submodule("attention.self.dropout").eval()
    assert torch.equal(model(**batch), model(**batch))


# bf16


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "deberta-v2", "modernbert", "vit"])
@pytest.mark.parametrize("targets", ["qv", "all-linear"])
def test_bf16_is_near_the_fp64_reference(family, targets, make, inputs, gradients, shared_dropout):
    """As near as autocast comes, whose products are in bf16 too."""
    model = injected(make(family), target_modules=targets, bias="all")
    batch = inputs(family, (9, 4, 7, 8, 8, 5))
    results = {}
    for name in ("fused", "autocast", "fp64"):
        runner = copy.deepcopy(model)
        shared_dropout()
        if name == "fused":
            results[name] = gradients(fuse(runner, torch.bfloat16), batch)
        elif name == "autocast":
            with torch.autocast("cpu", torch.bfloat16):
                results[name] = gradients(runner, batch)
        else:
            doubles = {key: t.double() if t.is_floating_point() else t for key, t in batch.items()}
            results[name] = gradients(runner.double(), doubles)
    expected = flat(results["fp64"])
    fused, autocast = ((flat(results[name]) - expected).norm() / expected.norm() for name in ("fused", "autocast"))
    assert 1e-4 < fused < max(1.3 * autocast, 0.01), (float(fused), float(autocast))
    assert all(gradient.dtype == torch.float32 for gradient in results["fused"][1].values())


def flat(result: tuple) -> torch.Tensor:
    return torch.cat([result[0].double().flatten(), *(g.double().flatten() for _, g in sorted(result[1].items()))])


def test_bf16_keeps_parameters_as_they_are(make, inputs):
    model = injected(make("bert"), bias="all")
    before = {name: t.clone() for name, t in model.state_dict().items()}
    fuse(model, torch.bfloat16)(**inputs("bert")).sum().backward()
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) and before[name].dtype == after[name].dtype for name in before)
    size = sum(t.numel() * t.element_size() for t in tensors_beside_parameters(model))
    query = model.get_submodule("bert.encoder.layer.0.attention.self.query")
    assert size == 3 * 2 * (4 * query.weight.numel() + 2 * 24 * 40)
    assert not tensors_beside_parameters(unfuse(model))


def tensors_beside_parameters(model: nn.Module) -> list[torch.Tensor]:
    return [vars(m)["frozen_copy"].copy for m in model.modules() if "frozen_copy" in vars(m)]


def test_bf16_notices_changed_weights(make, inputs):
    model = fuse(make("bert").requires_grad_(False).eval(), torch.bfloat16)
    batch = inputs("bert", (5, 5))
    first = model(**batch)
    with torch.no_grad():
        for parameter in model.get_submodule("bert.encoder").parameters():
            parameter.mul_(1.5)
    second = model(**batch)
    assert not torch.allclose(first, second, rtol=0.05)
    state = {name: t / 1.5 if "encoder" in name else t for name, t in model.state_dict().items()}
    model.load_state_dict(state)
    torch.testing.assert_close(model(**batch), first)
    weight = model.get_submodule("bert.encoder.layer.1.intermediate.dense").weight
    weight.data = weight.data * 3
    assert not torch.allclose(model(**batch), first, rtol=0.05)


def test_bf16_can_be_evaluated_before_it_is_trained(make, inputs):
    model = fuse(injected(make("bert")), torch.bfloat16)
    with torch.inference_mode():
        model.eval()(**inputs("bert"))
    model.train()(**inputs("bert")).sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_bf16_learns(make, inputs):
    torch.manual_seed(0)
    model = fuse(injected(make("bert"), bias="all", lora_dropout=0.1), torch.bfloat16)
    batch = inputs("bert", (9, 9, 9))
    labels = torch.randint(0, 3, (27,))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(**batch).flatten(0, 1), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.4 * losses[0]


# What gradients are computed and what is kept


def test_nothing_is_computed_below_the_lowest_adapter(make, inputs):
    model = injected(make("bert"), layers_to_transform=[2], bias="none")
    hidden = model.get_submodule("bert.embeddings")(inputs("bert")["input_ids"], None)
    layout = Layout.of(hidden, None)
    x = layout.pack(hidden)
    for number, layer in enumerate(model.get_submodule("bert.encoder.layer")):
        x = run_layer(layer, x, layout, Products())
        assert x.requires_grad == (number == 2)


def test_less_memory_than_the_plain_layers_waits_for_the_backward_pass(make, inputs):
    model = injected(make("bert"), target_modules="all-linear", bias="all")
    batch = {name: values.repeat(8, 1) for name, values in inputs("bert").items()}  # what fills the rows hardly counts

    def kept_bytes(runner: nn.Module) -> int:
        weights = [*runner.parameters(), *tensors_beside_parameters(runner)]
        parameters = {weight.untyped_storage().data_ptr() for weight in weights}
        kept = {}

        def note(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in parameters:
                kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that no address comes twice
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            out = runner(**batch)
        del out
        return sum(size for size, _ in kept.values())

    plain = kept_bytes(model)
    fp32 = kept_bytes(fuse(model))
    assert fp32 < 0.75 * plain
    fuse(model, torch.bfloat16)(**batch)  # makes the copies of the weights
    assert kept_bytes(model) < 0.8 * fp32


# What a fused model is to the rest of the library


def test_saving_loading_merging_ejecting(make, inputs, tmp_path):
    model, twin = injected(make("bert"), bias="all"), injected(fuse(make("bert"), torch.bfloat16), bias="all")
    twin(**inputs("bert")).sum().backward()
    assert model.state_dict().keys() == twin.state_dict().keys()
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in twin.named_parameters()]
    for name, runner in {"plain": model, "fused": twin}.items():
        lora_core.save_adapter(runner.eval(), tmp_path / name)
        lora_core.merge_lora(runner)
        lora_core.eject_lora(runner)
        save_pretrained(runner, tmp_path / f"{name}-merged")
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "plain" / file).read_bytes() == (tmp_path / "fused" / file).read_bytes()
    merged = [(tmp_path / f"{name}-merged" / "model.safetensors").read_bytes() for name in ("plain", "fused")]
    assert merged[0] == merged[1]
    again = fuse(lora_core.load_adapter(make("bert"), tmp_path / "fused").eval())
    real = inputs("bert")["attention_mask"].bool()
    expected = unfuse(twin)(**inputs("bert"))[real]
    torch.testing.assert_close(again(**inputs("bert"))[real], expected, rtol=1e-4, atol=1e-5)
    loaded = load_pretrained(str(tmp_path / "fused-merged"), "token-classification")
    torch.testing.assert_close(loaded(**inputs("bert"))[real], expected)


def test_twice_is_once_and_back_is_as_before(make):
    model = make("bert")
    classes = [type(module) for module in model.modules()]
    attributes = [set(vars(module)) for module in model.modules()]
    fuse(fuse(model), torch.bfloat16)
    assert [stack.products.dtype for stack in stacks(model)] == [torch.bfloat16]
    assert unfuse(unfuse(model)) is model
    assert [type(module) for module in model.modules()] == classes
    assert [set(vars(module)) for module in model.modules()] == attributes


@pytest.mark.parametrize("transfer", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_fused_too(transfer, make, inputs):
    model = fuse(injected(make("bert")).eval(), torch.bfloat16)
    expected = model(**inputs("bert"))
    other = transfer(model)
    assert len(stacks(other)) == 1
    assert torch.equal(other(**inputs("bert")), expected)


@pytest.mark.parametrize(
    ("obstruct", "message"),
    [
        (lambda model: model.bert.encoder.layer[1].output.register_forward_hook(change_nothing), "hook on output"),
        (lambda m: m.double(), "torch.float64"),
        (lambda m: m.bfloat16(), "torch.bfloat16"),
    ],
)
def test_obstacles_are_told_once(obstruct, message, make, inputs, caplog):
    model = make("bert").eval()
    obstruct(model)
    batch = inputs("bert")
    expected = model(**batch)
    fuse(model)
    with caplog.at_level(logging.WARNING, "lora_core"):
        assert torch.equal(model(**batch), expected)
        model(**batch)
    assert [message in record.message for record in caplog.records] == [True]


def change_nothing(module, args, output):
    return None


def test_autocast_and_mixed_batches_take_the_plain_layers(make, inputs, caplog):
    model = injected(make("bert")).eval()
    batch = inputs("bert")
    with torch.autocast("cpu", torch.bfloat16):
        expected = model(**batch)
        assert torch.equal(fuse(model)(**batch), expected)
    lora_core.inject_lora(other := make("bert"), modules_to_save=(), init_lora_weights=False)
    with lora_core.mixed_batch(other, ["default", None, "default"]):
        expected = other(**batch)
        assert torch.equal(fuse(other)(**batch), expected)
    reasons = [record.message.rpartition(": ")[2] for record in caplog.records]
    assert ["autocast is on" in reasons[0], reasons[1:]] == [True, ["the batch mixes adapters."]]


def test_biases_that_differ_by_row_take_the_plain_layers(make, inputs, caplog):
    """Also in a stack without an adapted layer, which could not tell that the batch mixes adapters."""
    model = lora_core.inject_lora(make("bert").eval(), target_modules=["word_embeddings"], bias="all")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape) * 0.1)
    batch = inputs("bert")
    with lora_core.mixed_batch(model, ["default", None, "default"]):
        expected = model(**batch)
        assert torch.equal(fuse(model)(**batch), expected)
    assert "has a forward of its own" in caplog.text


@pytest.mark.filterwarnings("ignore:.torch.jit.trace", "ignore::torch.jit.TracerWarning")
def test_compiling_and_tracing_see_the_plain_layers(make, inputs, caplog):
    model = fuse(make("bert").eval())
    batch = inputs("bert", (5, 5))
    arguments = (batch["input_ids"], batch["attention_mask"])
    expected = unfuse(copy.deepcopy(model))(**batch)
    traced = torch.jit.trace(model, arguments, check_trace=False)
    torch.testing.assert_close(traced(*arguments), expected)
    exported = torch.export.export(model, arguments).module()
    torch.testing.assert_close(exported(*arguments), expected)
    assert not [record for record in caplog.records if record.name == "lora_core"]


def test_checkpointing_repeats_the_same_dropout(make, inputs, gradients, assert_same):
    from torch.utils.checkpoint import checkpoint

    model = fuse(injected(make("bert"), bias="all"))
    batch = inputs("bert")
    torch.manual_seed(1)
    expected = gradients(model, batch)
    layers = model.get_submodule("bert.encoder.layer")
    forward = layers.forward
    layers.forward = lambda hidden, mask: checkpoint(forward, hidden, mask, use_reentrant=False)
    torch.manual_seed(1)
    assert_same(gradients(model, batch), expected)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float64])
def test_other_dtypes_are_refused(dtype, make):
    with pytest.raises(ValueError, match=r"dtype is torch..*torch.bfloat16, torch.float16 or torch.float32"):
        fuse(make("bert"), dtype)


def test_models_without_such_layers_are_refused():
    with pytest.raises(ValueError, match="This Linear has no stack of layers that can be fused: no LayerStack"):
        fuse(nn.Linear(2, 2))


def test_products_in_fp16_are_for_a_gpu(make, inputs, caplog):
    """A CPU takes the plain layers, and says so once."""
    model, batch = fuse(make("bert").eval(), torch.float16), inputs("bert")
    expected = unfuse(make("bert").eval())(**batch)
    for _ in range(2):
        torch.testing.assert_close(model(**batch), expected)
    assert caplog.text.count("products in torch.float16 are for a GPU") == 1


def test_devices_without_fused_layers_are_named(make):
    stack = stacks(fuse(make("bert")))[0]
    assert "on xpu" in (obstacle(stack, SimpleNamespace(device=torch.device("xpu"), dtype=torch.float32)) or "")


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "vit"])
def test_the_cpp_kernels_change_nothing_but_rounding(
    family, precision, make, inputs, gradients, assert_same, monkeypatch
):
    if ops() is None:
        pytest.skip("no C++ kernels here: no compiler, or LORA_CORE_NATIVE=0")
    model = injected(make(family), bias="all", lora_dropout=0.0).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    fuse(model, precision)
    found = gradients(model, inputs(family))
    asked = []
    monkeypatch.setattr("lora_core.kernels.transformer_layer.ops", lambda: asked.append(1))
    expected = gradients(model, inputs(family))
    assert len(asked) == 3
    assert_same(found, expected, 1e-5 if precision is None else 0.05)


def test_who_does_not_train_builds_nothing(make, inputs, monkeypatch):
    def refuse() -> None:
        raise AssertionError("the C++ kernels are not for inference")

    monkeypatch.setattr("lora_core.kernels.transformer_layer.ops", refuse)
    monkeypatch.setattr("lora_core.kernels.dropout.ops", refuse)
    model = fuse(injected(make("bert")), torch.bfloat16)
    model.eval()(**inputs("bert"))
    with torch.no_grad(), pytest.raises(AssertionError):
        model.train()(**inputs("bert"))  # dropout asks: the test would notice
