import re

import pytest
import torch

from lora_core.kernels.fused import fuse, product_dtype, stacks
from lora_core.kernels.linear import Products
from lora_core.models import build_model, config_from_dict
from trainers.config import TrainConfig
from trainers.training import precision as precision_of_training
from trainers.training.precision import (
    autocast,
    bf16_speed,
    choose_kernels,
    compile_layers,
    grad_scaler,
    micro_batch_tokens,
    slow_precision,
)

CPU = torch.device("cpu")


@pytest.mark.parametrize("before", [None, torch.bfloat16])
@pytest.mark.parametrize(
    ("kernels", "precision", "device", "expected"),
    [
        ("fused", "fp32", "cpu", torch.float32),
        ("fused", "bf16", "cpu", torch.bfloat16),
        ("fused", "fp16", "cpu", None),
        ("fused", "bf16", "cuda", torch.bfloat16),
        ("fused", "fp16", "cuda", torch.float16),
        ("plain", "fp16", "cuda", None),
        ("plain", "bf16", "cpu", None),
    ],
)
def test_which_layers_a_model_gets(tiny, before, kernels, precision, device, expected):
    model = tiny.build() if before is None else fuse(tiny.build(), before)
    choose_kernels(model, TrainConfig(kernels=kernels, precision=precision), torch.device(device))
    assert product_dtype(model) is expected


def test_frozen_weights_are_computed_in_int8_beside_either_precision(tiny):
    for precision, dtype in (("fp32", None), ("bf16", torch.bfloat16)):
        model = tiny.build(lora=True)
        choose_kernels(model, TrainConfig(frozen="int8", precision=precision), CPU)
        assert [stack.products for stack in stacks(model)] == [Products(dtype, torch.int8)]
        choose_kernels(model, TrainConfig(precision=precision), CPU)
        assert [stack.products for stack in stacks(model)] == [Products(dtype)]


@pytest.mark.parametrize(("lora", "said"), [(True, 0), (False, 1)])
def test_int8_without_frozen_weights_is_said(tiny, caplog, lora, said):
    choose_kernels(tiny.build(lora=lora), TrainConfig(frozen="int8"), CPU)
    assert caplog.text.count("--frozen int8 changes nothing here") == said


@pytest.mark.parametrize("settings", [{"kernels": "plain"}, {"compile": True}, {"parallel": "fsdp"}])
def test_int8_needs_the_fused_layers(settings):
    with pytest.raises(ValueError, match="frozen int8 is for the fused layers: leave out --kernels plain"):
        TrainConfig(frozen="int8", **settings)


def test_int8_is_refused_where_there_are_no_fused_layers(tiny):
    with pytest.raises(ValueError, match=r"this model has none\. Leave out --frozen"):
        choose_kernels(torch.nn.Linear(4, 3), TrainConfig(frozen="int8"), CPU)
    with pytest.raises(ValueError, match=r"fp16 on cpu has none\. Leave out --frozen"):
        choose_kernels(tiny.build(), TrainConfig(frozen="int8", precision="fp16"), CPU)


@pytest.mark.parametrize("kernels", ["fused", "plain"])
def test_gradient_checkpointing_is_switched_on_and_off(tiny, kernels):
    model = tiny.build()
    (stack,) = stacks(model)
    for wanted in (True, False):
        choose_kernels(model, TrainConfig(kernels=kernels, gradient_checkpointing=wanted), CPU)
        assert stack.gradient_checkpointing is wanted


def test_gradient_checkpointing_needs_layers():
    with pytest.raises(ValueError, match="Leave out --gradient-checkpointing"):
        choose_kernels(torch.nn.Linear(4, 3), TrainConfig(gradient_checkpointing=True), CPU)


@pytest.fixture
def graphs():
    """A compiler that runs what it is given as it stands, and the list of what that was."""
    torch._dynamo.reset()
    found = []

    def backend(graph, example_inputs):
        found.append(graph)
        return graph

    yield backend, found
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch.compile's own, from inside
@pytest.mark.parametrize("gradient_checkpointing", [False, True])
@pytest.mark.parametrize("lora", [False, True])
def test_compiled_layers_compute_the_same_and_are_compiled_once_for_all_batches(
    tiny, graphs, lora, gradient_checkpointing
):
    backend, found = graphs
    config = TrainConfig(compile=True, gradient_checkpointing=gradient_checkpointing)
    plain, compiled = (tiny.build(lora=lora).train() for _ in range(2))
    choose_kernels(plain, TrainConfig(kernels="plain"), CPU)
    choose_kernels(compiled, config, CPU)
    assert product_dtype(compiled) is None
    compile_layers(compiled, config, backend)
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    for sentences, tokens in ((3, 7), (5, 11), (4, 20)):
        ids = torch.randint(5, 20, (sentences, tokens), generator=torch.Generator().manual_seed(tokens))
        mask = (torch.arange(tokens) < torch.arange(tokens - sentences + 1, tokens + 1)[:, None]).long()
        for model in (plain, compiled):
            model.zero_grad()
            model(input_ids=ids, attention_mask=mask).square().sum().backward()
        for (name, one), other in zip(plain.named_parameters(), compiled.parameters(), strict=True):
            if one.requires_grad:
                torch.testing.assert_close(other.grad, one.grad, rtol=1e-5, atol=1e-6, msg=name)
    assert len(found) == 1


def test_compile_needs_layers():
    compile_layers(torch.nn.Linear(4, 3), TrainConfig(), "eager")
    with pytest.raises(ValueError, match="Leave out --compile"):
        compile_layers(torch.nn.Linear(4, 3), TrainConfig(compile=True), "eager")


@pytest.mark.parametrize(("threads", "tokens", "images"), [(1, 768, 4), (2, 768, 4), (16, 6144, 31)])
def test_how_much_fused_layers_take_at_a_time(tiny, monkeypatch, threads, tokens, images):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    vit = build_model(config_from_dict({"model_type": "vit", **sizes}), "image-classification", ("a", "b"))
    assert vit.get_parameter("vit.embeddings.position_embeddings").shape[1] == 197
    for model, most in ((tiny.build(), tokens), (vit, images)):
        assert micro_batch_tokens(model, TrainConfig()) is None
        assert micro_batch_tokens(fuse(model), TrainConfig()) == most
        assert micro_batch_tokens(model, TrainConfig(micro_batch_size=3)) is None
        assert micro_batch_tokens(model, TrainConfig(micro_batch_tokens=9)) == 9


def test_a_model_without_layers_that_can_be_fused_stays_as_it_is():
    layer = torch.nn.Linear(4, 3)
    choose_kernels(layer, TrainConfig(), CPU)
    assert type(layer) is torch.nn.Linear


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_fused_layers_need_no_autocast(tiny, precision, dtype):
    with autocast(fuse(tiny.build(), dtype), precision, CPU):
        assert not torch.is_autocast_enabled("cpu")
    with autocast(fuse(tiny.build()), "fp16", CPU):
        assert torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_matrix_products_have_the_dtype_and_weights_keep_theirs(precision, dtype):
    layer = torch.nn.Linear(4, 3)
    with autocast(layer, precision, CPU):
        product = layer(torch.ones(2, 4))
    assert product.dtype == dtype
    assert layer.weight.dtype == torch.float32
    assert layer(torch.ones(2, 4)).dtype == torch.float32


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_no_scaling_where_none_is_needed(precision):
    scaler = grad_scaler(precision, CPU)
    loss = torch.tensor(3.0)
    assert not scaler.is_enabled()
    assert scaler.scale(loss) is loss
    assert scaler.get_scale() == 1.0


def test_fp16_gradients_below_its_range_survive():
    weight = torch.tensor(1.0, requires_grad=True)
    tiny = 1e-9  # the smallest fp16 number is 6e-8

    def gradient(scaler):
        weight.grad = None
        loss = weight.half().float() * tiny
        scaler.scale(loss).backward()
        return weight.grad / scaler.get_scale()

    assert gradient(grad_scaler("fp32", CPU)) == 0
    assert gradient(grad_scaler("fp16", CPU)).item() == pytest.approx(tiny, rel=1e-3)


@pytest.mark.parametrize(
    ("precision", "device", "capability", "said"),
    [
        ("fp32", "cpu", None, None),
        ("fp16", "cpu", None, "15 times as long as fp32"),
        ("fp16", "cuda", (7, 0), None),
        ("bf16", "cuda", (7, 0), r"capability 7\.0\) .* Use --precision fp16"),
        ("bf16", "cuda", (7, 5), "Use --precision fp16"),
        ("bf16", "cuda", (8, 0), None),
        ("fp32", "cuda", (7, 0), None),
    ],
)
def test_a_precision_that_is_slower_than_another_is_said(precision, device, capability, said):
    found = slow_precision(precision, device, capability)
    assert found is None if said is None else re.search(said, found or "")


@pytest.mark.parametrize(("speed", "said"), [(1.9, False), (0.95, False), (0.5, True)])
def test_bf16_that_is_slower_than_fp32_on_this_cpu_is_said(monkeypatch, speed, said):
    monkeypatch.setattr(precision_of_training, "bf16_speed", lambda: speed)
    found = slow_precision("bf16", "cpu")
    assert (found is not None and f"{speed:.2f} times its speed in fp32. Use --precision fp32" in found) == said


def test_the_speed_of_bf16_is_measured_and_draws_no_random_number():
    before = torch.random.get_rng_state()
    assert 0.001 < bf16_speed() < 100
    assert torch.equal(before, torch.random.get_rng_state())
