import copy
from typing import Any

import pytest
import torch
import transformers

import lora_core
from lora_core.export import (
    OnnxModel,
    export_onnx,
    export_onnx_base,
    parity_batches,
    save_onnx_adapter,
    verify_onnx,
    verify_onnx_adapter,
)
from lora_core.kernels.fused import FusedStack, fuse
from lora_core.models import ElectraConfig, load_pretrained, save_pretrained

LABELS = ("O", "B-a", "I-a")
AUTO_CLASSES = {
    "token-classification": transformers.AutoModelForTokenClassification,
    "text-classification": transformers.AutoModelForSequenceClassification,
}


@pytest.fixture(params=AUTO_CLASSES)
def task(request):
    return request.param


@pytest.fixture(params=[16, 24])
def embedding_size(request):
    return request.param


@pytest.fixture
def reference(tmp_path, task, embedding_size):
    """A random model in which every weight matters, saved in `tmp_path / "theirs"`."""
    sizes: dict[str, Any] = {
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    config = transformers.ElectraConfig(
        vocab_size=60, embedding_size=embedding_size, **sizes, id2label=dict(enumerate(LABELS))
    )
    torch.manual_seed(0)
    model = AUTO_CLASSES[task].from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    model.save_pretrained(tmp_path / "theirs")
    return model


@pytest.fixture
def adapted(reference, tmp_path, task):
    model = load_pretrained(tmp_path / "theirs", task)
    lora_core.inject_lora(model, r=2, target_modules="all-linear")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.3)
    return model


def test_logits_equal_those_of_transformers_in_both_directions(reference, batch, tmp_path, task, caplog):
    model = load_pretrained(tmp_path / "theirs", task)
    assert (model.labels, model.fresh_parameters, caplog.records) == (LABELS, (), [])
    input_ids, mask = batch([9, 4, 7], 0, 60)
    segments = (torch.arange(9) > 3).long().expand(3, -1)
    save_pretrained(model, tmp_path / "ours")
    again = AUTO_CLASSES[task].from_pretrained(tmp_path / "ours")
    real = mask.bool() if task == "token-classification" else slice(None)
    with torch.no_grad():
        expected = reference(input_ids, attention_mask=mask, token_type_ids=segments).logits[real]
        torch.testing.assert_close(model(input_ids, mask, segments)[real], expected, rtol=1e-5, atol=1e-5)
        back = again(input_ids, attention_mask=mask, token_type_ids=segments).logits[real]
    torch.testing.assert_close(back, expected, rtol=1e-5, atol=1e-5)


def test_adapters_reach_the_projection_and_load_in_peft(
    adapted, reference, peft_load, batch, tmp_path, task, embedding_size
):
    found = {name for name, _ in adapted.named_parameters() if "embeddings_project" in name and "lora_A" in name}
    assert len(found) == (embedding_size != 24)
    lora_core.save_adapter(adapted, tmp_path / "adapter")
    theirs = peft_load(reference, tmp_path / "adapter")
    input_ids, mask = batch([9, 4, 7], 0, 60)
    real = mask.bool() if task == "token-classification" else slice(None)
    with torch.no_grad():
        expected = theirs(input_ids, attention_mask=mask).logits[real]
        torch.testing.assert_close(adapted(input_ids, mask)[real], expected, rtol=1e-4, atol=1e-4)


def test_fused_layers_equal_the_plain_ones(adapted, batch, task):
    inputs = batch([9, 4, 7], 0, 60)
    fused = fuse(copy.deepcopy(adapted))
    losses = []
    for model in (adapted, fused):
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        model.train()
        logits = model(*inputs)
        logits = logits[inputs[1].bool()] if logits.ndim == 3 else logits
        (logits * torch.linspace(-1, 1, logits.numel()).view(logits.shape)).sum().backward()
        losses.append((logits, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
    assert [stack.told for stack in fused.modules() if isinstance(stack, FusedStack)] == [set()]
    torch.testing.assert_close(losses[1][0], losses[0][0], rtol=1e-4, atol=1e-4)
    assert losses[1][1].keys() == losses[0][1].keys()
    for name, gradient in losses[0][1].items():
        torch.testing.assert_close(losses[1][1][name], gradient, rtol=1e-3, atol=1e-4, msg=name)


def test_exported_graphs_equal_the_model(adapted, tmp_path):
    batches = parity_batches(adapted, [torch.randint(3, 60, (length,)).tolist() for length in (3, 1, 7, 12, 16)])
    path = export_onnx(adapted, tmp_path / "model.onnx")
    assert verify_onnx(adapted, path, batches) < 1e-4
    base = OnnxModel(export_onnx_base(adapted, tmp_path / "base.onnx"))
    adapter = save_onnx_adapter(adapted, "default", tmp_path / "adapter")
    assert verify_onnx_adapter(adapted, "default", base, adapter, batches) < 1e-4


def test_the_defaults_are_those_of_transformers():
    reference = transformers.ElectraConfig().to_dict()
    fields = ElectraConfig().to_dict()
    assert {name: reference[name] for name in fields} == fields


@torch.no_grad()
def test_pairs_of_texts_equal_transformers_and_are_exported(reference, tmp_path, task):
    model = load_pretrained(tmp_path / "theirs", task)
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(5, 60, (3, 9), generator=generator)
    segments = torch.tensor([[0] * 4 + [1] * 5] * 3)
    expected = reference(input_ids, token_type_ids=segments).logits
    torch.testing.assert_close(model(input_ids, token_type_ids=segments), expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(model(input_ids), expected, atol=1e-2)
    served = OnnxModel(export_onnx(model, tmp_path / "pairs.onnx", segments=True))
    found = served(input_ids, token_type_ids=segments)
    torch.testing.assert_close(torch.as_tensor(found), expected, rtol=1e-4, atol=1e-4)
