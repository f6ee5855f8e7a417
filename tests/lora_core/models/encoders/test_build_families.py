"""Families against transformers and PEFT, from random small checkpoints: logits and gradients, saving, adapters, fused
layers, ONNX in fp32 and int8.
"""

import copy

import pytest
import torch
import transformers

import lora_core
from lora_core.export import (
    OnnxModel,
    export_onnx,
    export_onnx_base,
    parity_batches,
    quantize_onnx,
    save_onnx_adapter,
    verify_onnx,
    verify_onnx_adapter,
)
from lora_core.kernels.fused import FusedStack, fuse
from lora_core.models import AlbertConfig, ElectraConfig, MPNetConfig, load_pretrained, save_pretrained

LABELS = ("O", "B-a", "I-a")
AUTO_CLASSES = {
    "token-classification": transformers.AutoModelForTokenClassification,
    "text-classification": transformers.AutoModelForSequenceClassification,
}


@pytest.fixture(params=AUTO_CLASSES)
def task(request):
    return request.param


SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
FAMILIES = {
    "electra": (transformers.ElectraConfig, {**SIZES, "embedding_size": 24}),
    "electra, narrow embeddings": (transformers.ElectraConfig, {**SIZES, "embedding_size": 16}),
    "albert": (transformers.AlbertConfig, {**SIZES, "num_hidden_layers": 3, "embedding_size": 16}),
    "albert, two layers": (transformers.AlbertConfig, {**SIZES, "inner_group_num": 2, "embedding_size": 24}),
    "mpnet": (transformers.MPNetConfig, {**SIZES, "max_position_embeddings": 300}),
}
"""Configs of transformers, and what makes them small."""


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def reference(tmp_path, task, family):
    """A random model in which every weight matters, saved in `tmp_path / "theirs"`."""
    config_class, sizes = FAMILIES[family]
    config = config_class(vocab_size=60, **sizes, id2label=dict(enumerate(LABELS)))
    torch.manual_seed(0)
    model = AUTO_CLASSES[task].from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    model.save_pretrained(tmp_path / "theirs")
    return model


@pytest.fixture
def inputs(batch, reference):
    """`inputs(lengths)`: ids, mask, and segments or None."""

    def make(lengths):
        ids, mask = batch(lengths, reference.config.pad_token_id, 60)
        segments = (torch.arange(max(lengths)) > 3).long().expand(len(lengths), -1)
        return ids, mask, segments if hasattr(reference.config, "type_vocab_size") else None

    return make


def theirs(model, ids, mask, segments):
    return model(ids, attention_mask=mask, **({} if segments is None else {"token_type_ids": segments})).logits


def gradients(model, logits, mask):
    """Of a loss over the real tokens, by name, of what needs them."""
    logits = logits[mask.bool()] if logits.ndim == 3 else logits
    model.zero_grad()
    (logits * torch.linspace(-1, 1, logits.numel()).view(logits.shape)).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture
def adapted(reference, tmp_path, task):
    model = load_pretrained(tmp_path / "theirs", task)
    lora_core.inject_lora(model, r=2, target_modules="all-linear")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.3)
    return model


@pytest.mark.parametrize("lengths", [[9, 4, 7], [1], [200, 3]], ids=["padded", "one token", "long"])
def test_logits_and_gradients_equal_those_of_transformers(reference, inputs, tmp_path, task, caplog, lengths):
    model = load_pretrained(tmp_path / "theirs", task)
    assert (model.labels, model.fresh_parameters, caplog.records) == (LABELS, (), [])
    if max(lengths) > model.config.max_tokens:
        pytest.skip("the model has no positions for so many")
    ids, mask, segments = inputs(lengths)
    expected, found = theirs(reference, ids, mask, segments), model(ids, mask, segments)
    real = mask.bool() if task == "token-classification" else slice(None)
    torch.testing.assert_close(found[real], expected[real], rtol=1e-5, atol=1e-5)
    wanted, got = gradients(reference, expected, mask), gradients(model, found, mask)
    assert got.keys() == wanted.keys()
    largest = max(float(gradient.abs().max()) for gradient in wanted.values())
    for name, gradient in wanted.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-4, atol=3e-5 * largest, msg=name)


@torch.no_grad()
def test_transformers_reads_what_is_saved(reference, inputs, tmp_path, task):
    model = load_pretrained(tmp_path / "theirs", task)
    save_pretrained(model, tmp_path / "ours")
    again = AUTO_CLASSES[task].from_pretrained(tmp_path / "ours")
    values = inputs([9, 4, 7])
    torch.testing.assert_close(theirs(again, *values), theirs(reference, *values), rtol=1e-5, atol=1e-5)


def test_adapters_of_all_linear_layers_load_in_peft(adapted, reference, peft_load, inputs, tmp_path, task, family):
    """ALBERT has one adapter for all runs of a layer; narrow embeddings are widened by a layer that has one, too."""
    adapters = [name for name, _ in adapted.named_parameters() if "lora_A" in name]
    widened = [name for name in adapters if "embeddings_project" in name or "mapping_in" in name]
    assert len(widened) == ("albert" in family or "narrow" in family)
    lora_core.save_adapter(adapted, tmp_path / "adapter")
    loaded = peft_load(reference, tmp_path / "adapter")
    ids, mask, segments = inputs([9, 4, 7])
    real = mask.bool() if task == "token-classification" else slice(None)
    with torch.no_grad():
        expected = theirs(loaded, ids, mask, segments)[real]
        torch.testing.assert_close(adapted(ids, mask, segments)[real], expected, rtol=1e-4, atol=1e-4)
        merged = lora_core.eject_lora(lora_core.merge_lora(adapted))
        torch.testing.assert_close(merged(ids, mask, segments)[real], expected, rtol=1e-4, atol=1e-4)


def test_the_presets_reach_the_attention(reference, tmp_path, task, family):
    names = ("q", "k", "v", "o") if family == "mpnet" else ("query", "key", "value", "dense")
    layers = 1 if family == "albert" else 2
    for preset, last in (("qv", (names[0], names[2])), ("qkv", names[:3]), ("attention", names)):
        model = lora_core.inject_lora(load_pretrained(tmp_path / "theirs", task), r=2, target_modules=preset)
        found = [name.partition(".lora_A")[0] for name, _ in model.named_parameters() if ".lora_A" in name]
        found = [path.removesuffix(".lora.default") for path in found]
        assert len(found) == layers * len(last)
        assert {name.rpartition(".")[2] for name in found} == set(last)
        assert all("attention" in name for name in found)


def test_fused_layers_equal_the_plain_ones(adapted, inputs, task):
    values = inputs([9, 4, 7])
    fused = fuse(copy.deepcopy(adapted))
    results = []
    for model in (adapted, fused):
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        model.train()
        logits = model(*values)
        results.append((logits[values[1].bool()] if logits.ndim == 3 else logits, gradients(model, logits, values[1])))
    assert [stack.told for stack in fused.modules() if isinstance(stack, FusedStack)] == [set()]
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-4, atol=1e-4)
    assert results[1][1].keys() == results[0][1].keys()
    for name, gradient in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], gradient, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("segmented", [False, True])
def test_exported_graphs_equal_the_model(adapted, reference, inputs, tmp_path, segmented):
    if segmented and adapted.base_model.segments == 1:
        pytest.skip("the family has no segments")
    longest = min(adapted.config.max_tokens, 200)
    batches = parity_batches(adapted, [torch.randint(3, 60, (n,)).tolist() for n in (3, 1, 7, 12, longest)])
    path = export_onnx(adapted, tmp_path / "model.onnx", segments=segmented)
    if segmented:
        ids, mask, segments = inputs([9, 4, 7])
        found = OnnxModel(path)(ids, mask, token_type_ids=segments)
        with torch.no_grad():
            expected = adapted(ids, mask, segments)
        real = mask.bool() if expected.ndim == 3 else slice(None)
        torch.testing.assert_close(torch.as_tensor(found)[real], expected[real], rtol=1e-4, atol=1e-4)
        return
    assert verify_onnx(adapted, path, batches) < 1e-4
    base = OnnxModel(export_onnx_base(adapted, tmp_path / "base.onnx"))
    adapter = save_onnx_adapter(adapted, "default", tmp_path / "adapter")
    assert verify_onnx_adapter(adapted, "default", base, adapter, batches) < 1e-4


@torch.no_grad()
def test_int8_stays_near(adapted, inputs, tmp_path):
    model = lora_core.eject_lora(lora_core.merge_lora(adapted))
    ids, mask, _ = inputs([9, 4, 7])
    exact = model(ids, mask)
    served = OnnxModel(quantize_onnx(export_onnx(model, tmp_path / "model.onnx"), tmp_path / "int8.onnx"))
    found = torch.as_tensor(served(ids, mask))
    real = mask.bool() if exact.ndim == 3 else slice(None)
    assert 0 < (found[real] - exact[real]).norm() < 0.2 * exact[real].norm()


@pytest.mark.parametrize("ours", [AlbertConfig, ElectraConfig, MPNetConfig], ids=lambda kind: kind.model_type)
def test_the_defaults_are_those_of_transformers(ours):
    theirs = {AlbertConfig: "AlbertConfig", ElectraConfig: "ElectraConfig", MPNetConfig: "MPNetConfig"}[ours]
    reference = getattr(transformers, theirs)().to_dict()
    fields = ours().to_dict()
    assert {name: reference[name] for name in fields} == fields
