"""What torch does to whole models: compile, copy, pickle, checkpoint activations, distribute."""

import copy
import functools
import os
import pickle

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import lora_core
from lora_core import inject_lora, load_adapter, merge_lora, save_adapter, set_adapter

VARIANTS = [
    {},
    {"use_dora": True},
    {"init_lora_weights": "pissa"},
    {"lora_bias": True},
    {"target_modules": ["query", "word_embeddings"]},
    {"target_modules": ["query", "word_embeddings"], "use_dora": True},
    {"trainable_token_indices": (3, 5)},
]


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager", fullgraph=True)  # a graph break is an error


@pytest.mark.parametrize("fields", VARIANTS)
@pytest.mark.parametrize("training", [True, False])
def test_compiles_to_one_graph(fields, training, make, run, randomise):
    """Property 49, and DoRA, which breaks PEFT's graph in 14 places."""
    model = randomise(inject_lora(make("ours"), r=4, **fields)).train(training)
    outputs = run(compiled(model))
    torch.testing.assert_close(outputs, run(model))
    if training:
        outputs.sum().backward()
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_compiles_with_dropout_merged_disabled_and_mixed(make, run, randomise):
    model = randomise(inject_lora(make("ours"), r=4, lora_dropout=0.5, modules_to_save=()))
    run(compiled(model.train()))
    model.eval()
    adapted = run(model)
    with lora_core.mixed_batch(model, ["default", None, "default", None]):
        mixed = run(compiled(model))
    with lora_core.disable_adapters(model):
        base = run(compiled(model))
    torch.testing.assert_close(mixed[0::2], adapted[0::2])
    torch.testing.assert_close(mixed[1::2], base[1::2])
    merge_lora(model)
    torch.testing.assert_close(run(compiled(model)), adapted)


def test_conv_dora_compiles(make, run, randomise):
    model = randomise(inject_lora(make("conv"), r=4, target_modules=["first", "inner"], use_dora=True))
    image = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(compiled(model)(image), model(image))


@pytest.mark.parametrize("fields", VARIANTS)
@pytest.mark.parametrize("how", ["deepcopy", "pickle", "save"])
def test_copies_are_equal_and_independent(fields, how, make, run, randomise, tmp_path):
    model = randomise(inject_lora(make("ours"), r=4, **fields))
    before = run(model)
    if how == "deepcopy":
        twin = copy.deepcopy(model)
    elif how == "pickle":
        twin = pickle.loads(pickle.dumps(model))
    else:
        torch.save(model, tmp_path / "model.pt")
        twin = torch.load(tmp_path / "model.pt", weights_only=False)
    assert torch.equal(run(twin), before)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(1.0)
    assert torch.equal(run(model), before)
    set_adapter(twin, ())  # its own base and head came along
    lora_core.eject_lora(twin)
    assert type(twin.bert.encoder.layer[0].attention.self.query) is nn.Linear


def test_copy_of_a_merged_model_unmerges(make, run, randomise):
    model = randomise(inject_lora(make("ours"), r=4))
    weight = model.bert.encoder.layer[0].attention.self.query.weight.clone()
    twin = copy.deepcopy(merge_lora(model))
    lora_core.unmerge_lora(twin)
    assert torch.equal(twin.bert.encoder.layer[0].attention.self.query.weight, weight)


def test_state_dict_resumes_training(make, run, train):
    """A PiSSA start travels with the state dict, so training goes on from it."""
    model = inject_lora(make("ours"), r=4, init_lora_weights="pissa")
    train(model, run, learning_rate=0.05)
    torch.manual_seed(9)
    twin = inject_lora(make("ours"), r=4, init_lora_weights="pissa_niter_2")
    twin.load_state_dict(model.state_dict())
    assert torch.equal(run(twin), run(model))


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_reaches_every_parameter(reentrant, make, run, randomise):
    """Property 19: the same parameters get the same gradients."""
    grads = []
    for checkpointing in (False, True):
        model = randomise(inject_lora(make("ours"), r=4, use_dora=True)).train()
        if checkpointing:
            for layer in model.bert.encoder.layer:
                layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=reentrant)
            model.bert.embeddings.register_forward_hook(lambda module, args, out: out.requires_grad_())
        run(model).sum().backward()
        grads.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, msg=name)


@pytest.fixture
def process_group(tmp_path):
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()
    del os.environ["GLOO_SOCKET_IFNAME"]


@pytest.mark.parametrize("fields", [*VARIANTS, {"bias": "all"}, {"target_modules": "all-linear"}])
def test_distributed_finds_no_unused_parameter(fields, make, run, process_group):
    """Complaint 7. DDP raises in the second forward when the first left a parameter without a gradient."""
    model = inject_lora(make("ours"), r=4, **fields).train()
    lora_core.add_adapter(model, "waiting", r=2)
    wrapped = nn.parallel.DistributedDataParallel(model)
    for _ in range(3):
        run(wrapped).sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())


def test_saved_from_a_compiled_model_loads(make, run, randomise, tmp_path):
    model = randomise(inject_lora(make("ours"), r=4))
    outputs = run(compiled(model))
    save_adapter(model, tmp_path)
    torch.testing.assert_close(run(load_adapter(make("ours"), tmp_path)), outputs)
