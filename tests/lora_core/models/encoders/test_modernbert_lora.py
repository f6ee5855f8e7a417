"""LoRA on ModernBERT: presets, counts, PEFT's files both ways, merging, the fused layers."""

import copy
import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import lora_core
from lora_core.kernels.fused import FusedStack, fuse
from lora_core.models import load_pretrained
from lora_core.whole import is_waiting

LABELS = ("O", "B-a", "I-a")
TASKS = ("token-classification", "text-classification")
PEFT_TASKS = {"token-classification": "TOKEN_CLS", "text-classification": "SEQ_CLS"}
AUTO_CLASSES = {
    "token-classification": transformers.AutoModelForTokenClassification,
    "text-classification": transformers.AutoModelForSequenceClassification,
}
WHOLE = {"all-linear": "all-linear", ("Wqkv",): ["Wqkv"], ("Wqkv", "Wi", "mlp.Wo"): ["Wqkv", "Wi", "mlp.Wo"]}
"""Targets that PEFT has too, ours and theirs. It knows no thirds, and has no default for ModernBERT."""
THIRDS = {"qv": ["q", "v"], "qkv": ["q", "k", "v"], "attention": ["q", "k", "v", "Wo"]}


@pytest.fixture(params=TASKS)
def task(request):
    return request.param


@pytest.fixture
def base(oracle, tmp_path, task):
    """Folder with a random transformers checkpoint."""
    oracle("modernbert", task, classifier_pooling="mean").save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def theirs(base, task):
    return AUTO_CLASSES[task].from_pretrained(base).eval()


@pytest.fixture
def inputs(batch):
    return batch([30, 4, 11], 0)


def adapted(base, task, targets, **options):
    """Our model with an adapter that acts."""
    model = lora_core.inject_lora(load_pretrained(base, task), r=2, target_modules=targets, **options)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


def at_real_tokens(logits, mask):
    return logits[mask.bool()] if logits.ndim == 3 else logits


def paths(model):
    return [path for path, module in model.named_modules() if hasattr(module, "lora")]


@pytest.mark.parametrize("targets", WHOLE, ids=str)
def test_peft_s_adapters_load(targets, base, task, theirs, inputs, tmp_path, peft_model):
    reference = peft_model(theirs, r=2, lora_alpha=8, target_modules=WHOLE[targets], init_lora_weights=False,
                           task_type=PEFT_TASKS[task], modules_to_save=["classifier"])  # fmt: skip
    reference.save_pretrained(tmp_path / "adapter")
    model = lora_core.load_adapter(load_pretrained(base, task), tmp_path / "adapter")
    with torch.no_grad():
        expected = reference(inputs[0], attention_mask=inputs[1]).logits
        found = model(*inputs)
    torch.testing.assert_close(
        at_real_tokens(found, inputs[1]), at_real_tokens(expected, inputs[1]), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("targets", WHOLE, ids=str)
def test_as_many_parameters_are_trained_as_in_peft(targets, base, task, theirs, peft_model):
    chosen = targets if isinstance(targets, str) else list(targets)
    model = lora_core.inject_lora(load_pretrained(base, task), r=2, target_modules=chosen)
    classifier = model.classifier.weight.numel() + model.classifier.bias.numel()
    if targets == "all-linear" and task == "token-classification":  # PEFT would adapt the classifier as well
        names = {name.rpartition(".")[0] for name, _ in theirs.named_parameters() if "norm" not in name}
        theirs_targets = sorted(names - {"classifier", "model.embeddings.tok_embeddings"})
    else:
        theirs_targets = WHOLE[targets]
    options = {"target_modules": theirs_targets, "modules_to_save": ["classifier"], "task_type": PEFT_TASKS[task]}
    reference = peft_model(theirs, r=2, **options)
    trained = sum(parameter.numel() for parameter in reference.parameters() if parameter.requires_grad)
    assert lora_core.parameter_counts(model)[0] == trained > classifier
    assert {path for path in paths(model) if not path.startswith("model.")} == (
        {"head.dense"} if targets == "all-linear" else set()
    )


@pytest.mark.parametrize("targets", [*THIRDS, *WHOLE], ids=str)
def test_adapters_load_in_peft(targets, base, task, theirs, inputs, tmp_path, peft_load):
    model = adapted(base, task, targets if isinstance(targets, str) else list(targets))
    lora_core.save_adapter(model, tmp_path / "adapter")
    reference = peft_load(theirs, tmp_path / "adapter")
    with torch.no_grad():
        expected = reference(inputs[0], attention_mask=inputs[1]).logits
        found, plain = model(*inputs), load_pretrained(base, task)(*inputs)
    torch.testing.assert_close(
        at_real_tokens(found, inputs[1]), at_real_tokens(expected, inputs[1]), rtol=1e-4, atol=1e-4
    )
    assert not torch.allclose(found, plain, atol=1e-2)


@pytest.mark.parametrize("preset", THIRDS)
def test_presets_adapt_thirds_of_the_projection(preset, base, task):
    model = adapted(base, task, preset)
    expected = {f"model.layers.{number}.attn.Wqkv" for number in range(4)}
    expected |= {f"model.layers.{number}.attn.Wo" for number in range(4) if "Wo" in THIRDS[preset]}
    assert set(paths(model)) == expected
    rank = sum(2 * (24 + 24) for _ in THIRDS[preset]) * 4
    assert (
        lora_core.parameter_counts(model)[0] == rank + model.classifier.weight.numel() + model.classifier.bias.numel()
    )


@pytest.mark.parametrize("targets", ["qv", "all-linear"])
def test_merged_adapters_act_alike_and_are_taken_out_bit_for_bit(targets, base, task, inputs):
    model = adapted(base, task, targets)
    before = {name: tensor.clone() for name, tensor in load_pretrained(base, task).named_parameters()}
    with torch.no_grad():
        expected = model(*inputs)
        merged = lora_core.merge_lora(model)(*inputs)
        torch.testing.assert_close(merged, expected, rtol=1e-4, atol=1e-4)
        lora_core.eject_lora(lora_core.unmerge_lora(model))
    assert all(torch.equal(model.get_parameter(name), tensor) for name, tensor in before.items())


def test_a_fresh_pretrained_head_goes_into_the_adapter(base, task, inputs, tmp_path):
    """A checkpoint of the encoder alone: what is trained beside it is saved with the adapter."""
    tensors = load_file(base / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if name.startswith("model.")}
    save_file(kept, base / "model.safetensors", metadata={"format": "pt"})
    model = lora_core.inject_lora(load_pretrained(base, task, LABELS, seed=1), r=2, target_modules="all-linear")
    assert not any(path.startswith("head") for path in paths(model))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 0.3)
            assert parameter.requires_grad or not name.startswith("head") or is_waiting(name), name
    lora_core.save_adapter(model, tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["modules_to_save"] == [
        "classifier",
        "head",
    ]
    again = lora_core.load_adapter(load_pretrained(base, task, LABELS, seed=2), tmp_path / "adapter")
    with torch.no_grad():
        torch.testing.assert_close(again(*inputs), model(*inputs))


@pytest.mark.parametrize("targets", ["qv", "all-linear", None], ids=str)
@pytest.mark.parametrize("lengths", [(1,), (3, 5), (9, 2, 7), (30, 30), (30, 4, 19)], ids=str)
def test_fused_training_equals_the_plain_layers(base, task, batch, targets, lengths):
    """Short texts, windows by a mask, and windows in blocks; with padding and without."""
    model = load_pretrained(base, task) if targets is None else adapted(base, task, targets)
    fused, found = fuse(copy.deepcopy(model)), []
    input_ids, mask = batch(list(lengths), 0)
    for each in (model, fused):
        logits = at_real_tokens(each.train()(input_ids, mask), mask)
        (logits * torch.linspace(-1, 1, logits.numel()).view(logits.shape)).sum().backward()
        gradients = {name: parameter.grad for name, parameter in each.named_parameters() if parameter.grad is not None}
        found.append((logits, gradients))
    assert [stack.told for stack in fused.modules() if isinstance(stack, FusedStack)] == [set()]
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-5, atol=1e-5)
    assert found[1][1].keys() == found[0][1].keys()
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], gradient, rtol=1e-4, atol=1e-5, msg=name)
