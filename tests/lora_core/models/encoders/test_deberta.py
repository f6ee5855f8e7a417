"""DeBERTa-v2 against transformers: every kind of its attention, both heads, training, files and graphs."""

import copy
import json
import math
import warnings
from typing import Any

import peft
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

import lora_core
from lora_core.dropout import Dropout
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
from lora_core.kernels.fused import FusedStack, fuse, unfuse
from lora_core.models import DebertaV2Config, build_model, config_from_dict, load_pretrained, save_pretrained

LABELS = ("O", "B-a", "I-a")
AUTO_CLASSES = {
    "encoder": transformers.AutoModel,
    "token-classification": transformers.AutoModelForTokenClassification,
    "text-classification": transformers.AutoModelForSequenceClassification,
}
TASKS = ("token-classification", "text-classification")
V3: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 40,
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_buckets": 8,
    "max_relative_positions": 24,
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
    "position_biased_input": False,
}
"""What DeBERTa-v3's config.json says, in small: exact distances up to 4, groups up to 23, one group beyond."""
V2 = {**V3, "position_buckets": -1, "share_att_key": False, "norm_rel_ebd": "none", "position_biased_input": True,
      "type_vocab_size": 2, "embedding_size": 16}  # fmt: skip


def oracle(task: str = "token-classification", **fields: Any) -> Any:
    """A random model of transformers in eval mode, in which every weight matters."""
    values = {**V3, **fields}
    config = transformers.DebertaV2Config(**values, id2label=dict(enumerate(LABELS)))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AUTO_CLASSES[task].from_config(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0, 0.3)
    return model


def same_weights(reference: Any, task: str) -> Any:
    """Our model with the weights of transformers' one, which have the same names."""
    labels = None if task == "encoder" else LABELS
    model: Any = build_model(config_from_dict(reference.config.to_dict()), task, labels)
    model.load_state_dict(reference.state_dict())
    return model


def outputs(model: nn.Module, inputs: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Logits, or hidden states, at the real tokens."""
    found: Any = model(inputs[0], attention_mask=inputs[1])
    found = found if isinstance(found, torch.Tensor) else found[0]
    return found[inputs[1].bool()] if found.ndim == 3 else found


def gradients(model: nn.Module, inputs: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, dict]:
    """`outputs`, and the gradients of a loss that reads only these."""
    model.zero_grad()
    found = outputs(model, inputs)
    (found * torch.linspace(-1, 1, found.numel()).view(found.shape)).sum().backward()
    return found.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_close(found: tuple, expected: tuple, logits: float = 1e-5, gradient: float = 1e-4) -> None:
    torch.testing.assert_close(found[0], expected[0], rtol=logits, atol=logits)
    assert found[1].keys() == expected[1].keys()
    largest = max(float(tensor.abs().max()) for tensor in expected[1].values())
    for name, tensor in expected[1].items():
        torch.testing.assert_close(found[1][name], tensor, rtol=gradient, atol=gradient * largest, msg=name)


def without_dropout(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model.train()


KINDS = st.fixed_dictionaries(
    {
        "relative_attention": st.sampled_from([True, True, True, False]),
        "pos_att_type": st.sampled_from([["c2p"], ["p2c"], ["p2c", "c2p"], "p2c|c2p", None]),
        "position_buckets": st.sampled_from([-1, 2, 5, 8]),
        "max_relative_positions": st.sampled_from([-1, 12, 24]),
        "share_att_key": st.booleans(),
        "norm_rel_ebd": st.sampled_from(["none", "layer_norm"]),
        "position_biased_input": st.booleans(),
        "type_vocab_size": st.sampled_from([0, 2]),
        "embedding_size": st.sampled_from([24, 16]),
        "num_attention_heads": st.sampled_from([1, 3]),
        "hidden_act": st.sampled_from(["gelu", "gelu_new"]),
    }
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(KINDS, st.sampled_from(list(AUTO_CLASSES)), st.lists(st.integers(1, 40), min_size=1, max_size=4))
def test_outputs_and_gradients_equal_those_of_transformers(batch, fields, task, lengths):
    reference = oracle(task, **fields)
    model, inputs = same_weights(reference, task), batch(lengths, 0, 60)
    expected, found = gradients(reference, inputs), gradients(model, inputs)
    assert_close(found, expected)
    fused = fuse(copy.deepcopy(model))
    assert_close(gradients(fused, inputs), found, gradient=1e-5)
    assert [stack.told for stack in fused.modules() if isinstance(stack, FusedStack)] == [set()], "the plain layers ran"


@pytest.mark.parametrize("tokens", [300, 512])
def test_distances_of_the_published_models(tokens, batch):
    """256 groups of distances up to 511, on texts as long as they go."""
    published = {"position_buckets": 256, "max_relative_positions": -1, "max_position_embeddings": 512}
    reference = oracle("token-classification", **published, num_hidden_layers=1)
    inputs = batch([tokens, 9], 0, 60)
    assert_close(gradients(same_weights(reference, "token-classification"), inputs), gradients(reference, inputs))


@pytest.mark.parametrize("task", TASKS)
def test_dropout_stands_where_transformers_has_it(batch, monkeypatch, task):
    """Dropout that scales by 1 - p in place of dropping shows where each rate acts."""
    rates = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.3, "pooler_dropout": 0.4, "cls_dropout": 0.5}
    reference = oracle(task, **rates)
    model, inputs = same_weights(reference, task), batch([9, 4, 7], 0, 60)
    evaluated = outputs(model, inputs)
    for kind in (nn.Dropout, Dropout):
        monkeypatch.setattr(kind, "forward", lambda self, x: x * (1 - self.p) if self.training else x)
    expected, found = gradients(reference.train(), inputs), gradients(model.train(), inputs)
    assert_close(found, expected)
    assert not torch.allclose(found[0], evaluated, atol=1e-2)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("fields", [V3, V2], ids=["v3", "v2"])
def test_files_in_both_directions(batch, tmp_path, caplog, task, fields):
    reference = oracle(task, **fields)
    reference.save_pretrained(tmp_path / "theirs")
    model = load_pretrained(tmp_path / "theirs", task)
    assert (model.labels, model.fresh_parameters, caplog.records) == (LABELS, (), [])
    save_pretrained(model, tmp_path / "ours")
    again = AUTO_CLASSES[task].from_pretrained(tmp_path / "ours")
    input_ids, mask = batch([9, 4, 7], 0, 60)
    segments = {"token_type_ids": (torch.arange(9) > 3).long().expand(3, -1)} if fields["position_biased_input"] else {}
    real = mask.bool() if task == "token-classification" else slice(None)
    with torch.no_grad():
        expected = reference(input_ids, attention_mask=mask, **segments).logits[real]
        torch.testing.assert_close(model(input_ids, mask, **segments)[real], expected, rtol=1e-5, atol=1e-5)
        back = again(input_ids, attention_mask=mask, **segments).logits[real]
    torch.testing.assert_close(back, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("task", TASKS)
def test_a_checkpoint_as_it_is_published(batch, tmp_path, caplog, task):
    """The layout of deberta-v3-base: fp16, heads of the pretraining, its config's words, a table of positions."""
    reference = oracle("encoder")
    tensors = {f"deberta.{name}": tensor.half() for name, tensor in reference.state_dict().items()}
    tensors["deberta.embeddings.position_embeddings.weight"] = torch.zeros(40, 24).half()
    for name in ("lm_predictions.lm_head.dense", "mask_predictions.dense", "mask_predictions.classifier"):
        tensors |= {f"{name}.weight": torch.zeros(24, 24).half(), f"{name}.bias": torch.zeros(24).half()}
    save_file(tensors, tmp_path / "model.safetensors")
    old = {**V3, "pos_att_type": "p2c|c2p", "type_vocab_size": 0, "hidden_act": "gelu", "layer_norm_eps": 1e-7,
           "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "initializer_range": 0.02,
           "model_type": "deberta-v2"}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(old))
    model: Any = load_pretrained(tmp_path, task, LABELS)
    parts = {"token-classification": ("classifier",), "text-classification": ("pooler.dense", "classifier")}[task]
    assert set(model.fresh_parameters) == {f"{part}.{kind}" for part in parts for kind in ("weight", "bias")}
    (record,) = caplog.records
    assert record.getMessage().startswith("drawn at random")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    inputs = batch([9, 4, 7], 0, 60)
    expected = outputs(reference.half().float(), inputs)
    torch.testing.assert_close(outputs(model.base_model, inputs), expected, rtol=1e-5, atol=1e-5)


def test_the_defaults_are_those_of_transformers():
    reference = transformers.DebertaV2Config().to_dict()
    own = {"position_buckets": -1, "share_att_key": False, "norm_rel_ebd": "none", "cls_dropout": None}
    fields = DebertaV2Config().to_dict()
    assert {name: reference[name] for name in fields if name not in own} | own == fields


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"conv_kernel_size": 3}, "convolution of deberta-v2-xlarge"),
        ({"pos_att_type": ["p2p"]}, "pos_att_type is 'p2p'; implemented are c2p and p2c"),
        ({"attention_head_size": 7}, "attention_head_size is 7; only 8 is implemented"),
        ({"pooler_hidden_size": 7}, "pooler_hidden_size is 7; only 24"),
        ({"pooler_hidden_act": "tanh"}, "pooler_hidden_act is 'tanh'"),
        ({"position_buckets": 1}, "position_buckets is 1: expected at least 2"),
        ({"max_relative_positions": 5}, "half of them below the longest distance, 5"),
        ({"position_buckets": -2}, "position_buckets is -2"),
        ({"num_attention_heads": 5}, "not a multiple"),
        ({"hidden_size": "24"}, "hidden_size is '24'"),
    ],
)
def test_what_is_not_implemented_is_refused_by_its_name(fields, message):
    with pytest.raises(ValueError, match=message):
        config_from_dict({"model_type": "deberta-v2", **V3, **fields})


def test_inputs_that_do_not_fit_are_refused():
    model = build_model(config_from_dict({"model_type": "deberta-v2", **V3}))
    with pytest.raises(ValueError, match="41 tokens a sentence, the model positions for 40"):
        model(torch.ones(1, 41, dtype=torch.long))
    with pytest.raises(ValueError, match="no segments"):
        model(torch.ones(1, 4, dtype=torch.long), token_type_ids=torch.zeros(1, 4, dtype=torch.long))


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_where_bare_scores_overflow(batch, dtype):
    """Queries and keys whose product exceeds the largest float16, 65504, and a text of nothing but padding."""
    model = same_weights(oracle(hidden_size=48, intermediate_size=16), "token-classification")
    for name, parameter in model.named_parameters():
        if "query_proj" in name or "key_proj" in name:
            parameter.mul_(80)
    input_ids, mask = batch([9, 4, 7], 0, 60)
    first = model.base_model.encoder.layer[0].attention.self
    hidden = model.base_model.embeddings(input_ids, None)
    query, key = (layer(hidden).unflatten(-1, (3, -1)).transpose(1, 2) for layer in (first.query_proj, first.key_proj))
    products = (query @ key.mT)[:, :, :4, :4].abs().max()
    assert 65504 < products < 65504 * math.sqrt(16 * 3)
    halved = copy.deepcopy(model).to(dtype)
    empty = torch.zeros_like(mask[:1])
    padded = torch.cat([input_ids, input_ids[:1]]), torch.cat([mask, empty])
    found = halved(*padded)
    assert torch.isfinite(found).all()
    expected = copy.deepcopy(halved).float()(input_ids, mask)[mask.bool()]  # the same rounded weights
    assert (found[:3][mask.bool()].float() - expected).norm() < 0.2 * expected.norm()


@pytest.mark.parametrize("task", TASKS)
def test_autocast_trains_in_bf16(batch, task):
    model = same_weights(oracle(task), task)
    lora_core.inject_lora(model, r=2)
    inputs = batch([9, 4, 7], 0, 60)
    expected = gradients(without_dropout(model), inputs)
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(model, inputs)
    assert found[1].keys() == expected[1].keys()
    assert (found[0].float() - expected[0]).norm() < 0.05 * expected[0].norm()
    for name, gradient in expected[1].items():
        assert torch.isfinite(found[1][name]).all(), name
        assert found[1][name].dtype == gradient.dtype
    fused = fuse(copy.deepcopy(model), torch.bfloat16)
    assert (gradients(fused, inputs)[0] - expected[0]).norm() < 0.05 * expected[0].norm()
    assert_close(gradients(unfuse(fused), inputs), expected)


TARGETS = ("qv", "attention", "all-linear")


def adapted(model: Any, **fields: Any) -> Any:
    """With an adapter that acts."""
    lora_core.inject_lora(model, **{"r": 2, "target_modules": "all-linear", **fields})
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if "lora_B" in name or model.in_head(name):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("fields", [V3, V2], ids=["v3", "v2"])
def test_adapters_train_in_fused_layers_as_in_plain_ones(batch, targets, fields):
    for task in TASKS:
        model = adapted(same_weights(oracle(task, **fields), task), target_modules=targets)
        inputs = batch([19, 4, 7], 0, 60)
        fused = fuse(copy.deepcopy(model))
        assert_close(gradients(without_dropout(fused), inputs), gradients(without_dropout(model), inputs))
        assert [stack.told for stack in fused.modules() if isinstance(stack, FusedStack)] == [set()]


@torch.no_grad()
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("targets", TARGETS)
def test_peft_reads_our_adapters(batch, peft_load, tmp_path, task, targets):
    reference = oracle(task)
    model = adapted(same_weights(reference, task), target_modules=targets)
    inputs = batch([9, 4, 7], 0, 60)
    lora_core.save_adapter(model, tmp_path)
    expected = outputs(model, inputs)
    torch.testing.assert_close(outputs(peft_load(reference, tmp_path), inputs), expected, rtol=1e-4, atol=1e-4)
    lora_core.merge_lora(model)
    torch.testing.assert_close(outputs(model, inputs), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(outputs(lora_core.unmerge_lora(model), inputs), expected)


@torch.no_grad()
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("targets", [None, "all-linear", ["query_proj", "key_proj", "dense"]])
def test_we_read_adapters_of_peft(batch, tmp_path, task, targets):
    """PEFT takes the pooler for a layer to adapt, and does not save it; a checkpoint that has it gives it here."""
    reference = oracle(task)
    model = same_weights(reference, task)
    kind = "TOKEN_CLS" if task == "token-classification" else "SEQ_CLS"
    exclude = None if targets is None else ["pooler.dense", "classifier"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft.LoraConfig(task_type=kind, r=8, target_modules=targets, exclude_modules=exclude)
        theirs = peft.get_peft_model(reference, config).eval()
        for name, parameter in theirs.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                parameter.normal_(0, 0.3)
        theirs.save_pretrained(tmp_path)
    inputs = batch([9, 4, 7], 0, 60)
    lora_core.load_adapter(model, tmp_path)
    torch.testing.assert_close(outputs(model, inputs), outputs(theirs, inputs), rtol=1e-4, atol=1e-4)
    ours = lora_core.inject_lora(same_weights(oracle(task), task), r=8, target_modules=targets)
    counts = {sum(p.numel() for name, p in each.named_parameters() if "lora_" in name) for each in (ours, theirs)}
    assert len(counts) == 1, "our presets adapt other layers"


def test_the_pooler_is_trained_and_saved_with_the_adapter(batch, tmp_path, caplog):
    oracle("encoder").save_pretrained(tmp_path / "base")
    model = adapted(load_pretrained(tmp_path / "base", "text-classification", LABELS), target_modules="qv")
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad and "lora" not in name}
    assert trained == {f"{part}.{kind}" for part in ("pooler.dense", "classifier") for kind in ("weight", "bias")}
    lora_core.save_adapter(model, tmp_path / "adapter")
    inputs = batch([9, 4, 7], 0, 60)
    other = load_pretrained(tmp_path / "base", "text-classification", LABELS, seed=9, head_follows=True)
    caplog.clear()
    lora_core.load_adapter(other, tmp_path / "adapter")
    assert not caplog.records
    torch.testing.assert_close(outputs(other, inputs), outputs(model, inputs))
    left_out = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    save_file({k: v for k, v in tensors.items() if "pooler" not in k}, tmp_path / "adapter/adapter_model.safetensors")
    left_out["modules_to_save"] = ["classifier"]
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(left_out))
    other = load_pretrained(tmp_path / "base", "text-classification", LABELS, seed=9, head_follows=True)
    lora_core.load_adapter(other, tmp_path / "adapter")
    assert "pooler.dense.weight, pooler.dense.bias" in caplog.records[-1].getMessage()


def test_texts_of_a_batch_may_have_adapters_of_their_own(batch):
    """Adapters change the projections of positions too, here of each text differently."""
    model = same_weights(oracle(), "token-classification")
    for name in ("one", "two"):
        lora_core.inject_lora(model, r=2, target_modules="all-linear", adapter_name=name)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.3, generator=torch.Generator().manual_seed(len(name)))
        names = ["one", "two", None, "two"]
        input_ids, mask = batch([9, 9, 9, 9], 0, 60)
        with lora_core.mixed_batch(model, names):
            found = model(input_ids, mask)
        for row, name in enumerate(names):
            lora_core.set_adapter(model, name if name else [])
            torch.testing.assert_close(found[row], model(input_ids[row : row + 1], mask[row : row + 1])[0])


@torch.no_grad()
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    "fields",
    [V3, V2, {**V3, "pos_att_type": ["c2p"]}, {**V3, "pos_att_type": ["p2c"]}, {**V3, "relative_attention": False}],
    ids=["v3", "v2", "c2p", "p2c", "absolute"],
)
def test_exported_graphs_equal_the_model(tmp_path, task, fields):
    model = adapted(same_weights(oracle(task, **fields), task))
    generator = torch.Generator().manual_seed(2)
    lengths = (3, 1, 2, 7, 12, 16, 40)
    texts = [torch.randint(3, 60, (length,), generator=generator).tolist() for length in lengths]
    batches = parity_batches(model, texts)  # T = 1, T = 40, and rows of nothing but padding are among them
    path = export_onnx(model, tmp_path / "model.onnx")
    assert verify_onnx(model, path, batches) < 1e-5
    base = OnnxModel(export_onnx_base(model, tmp_path / "base.onnx"))
    adapter = save_onnx_adapter(model, "default", tmp_path / "adapter")
    assert verify_onnx_adapter(model, "default", base, adapter, batches) < 1e-5
    rounded = OnnxModel(quantize_onnx(path, tmp_path / "model.int8.onnx"))
    for batch in batches:
        found, expected = rounded(**batch), model(**batch)
        assert torch.isfinite(found).all()
        real = batch["attention_mask"].bool() if expected.ndim == 3 else batch["attention_mask"].any(1)
        assert (found[real] - expected[real]).norm() < 0.1 * expected[real].norm()


@torch.no_grad()
@pytest.mark.parametrize(
    ("buckets", "most", "share", "terms"),
    [
        (256, -1, True, ["p2c", "c2p"]),  # as published
        (8, 24, False, ["c2p"]),
        (320, 650, False, ["p2c"]),
        (-1, 20, True, ["p2c", "c2p"]),
        (-1, -1, False, ["p2c", "c2p"]),
    ],
)
def test_graphs_at_every_length_equal_transformers(tmp_path, buckets, most, share, terms):
    fields = {"position_buckets": buckets, "max_relative_positions": most, "share_att_key": share}
    reference = oracle(max_position_embeddings=600, pos_att_type=terms, **fields)
    source = export_onnx(same_weights(reference, "token-classification"), tmp_path / "model.onnx")
    fp32, int8 = OnnxModel(source), OnnxModel(quantize_onnx(source, tmp_path / "int8.onnx"))
    generator = torch.Generator().manual_seed(0)
    for tokens in (1, 2, 3, 31, 64, 257, 600):
        input_ids = torch.randint(5, 60, (3, tokens), generator=generator)
        mask = (torch.arange(tokens) < torch.tensor([[tokens], [tokens // 2 + 1], [max(1, tokens - 1)]])).long()
        expected = reference(input_ids, mask).logits[mask.bool()]
        found = fp32(input_ids, mask)[mask.bool()]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
        assert (int8(input_ids, mask)[mask.bool()] - expected).norm() < 0.05 * expected.norm()


@torch.no_grad()
@pytest.mark.parametrize("task", TASKS)
def test_pairs_of_texts_are_exported_with_their_segments(tmp_path, task):
    reference = oracle(task, **V2)
    model = same_weights(reference, task)
    input_ids = torch.randint(5, 60, (3, 9), generator=torch.Generator().manual_seed(0))
    segments = torch.tensor([[0] * 4 + [1] * 5] * 3)
    expected = reference(input_ids, token_type_ids=segments).logits
    assert not torch.allclose(model(input_ids), expected, atol=1e-2)
    path = export_onnx(model, tmp_path / "pairs.onnx", segments=True)
    found = OnnxModel(path)(input_ids, token_type_ids=segments)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    rounded = OnnxModel(quantize_onnx(path, tmp_path / "int8.onnx"))(input_ids, token_type_ids=segments)
    assert (rounded - expected).norm() < 0.1 * expected.norm()
