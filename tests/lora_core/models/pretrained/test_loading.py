import json
import logging

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import lora_core
from lora_core.models import load_pretrained, resolve

FAMILIES = ("bert", "roberta", "distilbert", "deberta-v2", "modernbert")
TASKS = ("encoder", "token-classification", "text-classification")
LABELS = ("O", "B-protein", "I-protein")
AUTO_CLASSES = {
    "encoder": transformers.AutoModel,
    "token-classification": transformers.AutoModelForTokenClassification,
    "text-classification": transformers.AutoModelForSequenceClassification,
}


def predict(model, input_ids, mask):
    """Logits or hidden states of our model or transformers' one."""
    with torch.no_grad():
        output = model(input_ids, attention_mask=mask)
    if isinstance(output, torch.Tensor):
        return output
    return output.logits if "logits" in output else output.last_hidden_state


def assert_same_predictions(model, reference, batch):
    input_ids, mask = batch([5, 8, 2], model.config.pad_token_id)
    found, expected = predict(model, input_ids, mask), predict(reference, input_ids, mask)
    if found.dim() == 3:
        found, expected = found[mask.bool()], expected[mask.bool()]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def rewrite(folder, change_tensors=None, **fields):
    """Alter a saved checkpoint: map its tensors, set or (with None) drop fields of its config."""
    path = folder / "config.json"
    values = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({name: value for name, value in values.items() if value is not None}))
    if change_tensors is not None:
        tensors = change_tensors(load_file(folder / "model.safetensors"))
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("task", TASKS)
def test_checkpoints_of_transformers_load(oracle, batch, tmp_path, caplog, family, task):
    reference = oracle(family, task)
    reference.save_pretrained(tmp_path)
    model = load_pretrained(tmp_path, task)
    assert_same_predictions(model, reference, batch)
    assert model.state_dict().keys() == reference.state_dict().keys()
    assert model.labels == (() if task == "encoder" else LABELS)
    assert not model.training
    assert model.fresh_parameters == ()
    assert not caplog.records


@pytest.mark.parametrize("task", TASKS)
def test_the_embedded_model_equals_transformers(batch, task):
    model = load_pretrained("embedded", task, None if task == "encoder" else LABELS)
    reference = AUTO_CLASSES[task].from_pretrained(resolve("embedded"), num_labels=len(LABELS)).eval()
    if task != "encoder":
        reference.classifier.load_state_dict(model.classifier.state_dict())
    assert_same_predictions(model, reference, batch)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("task", TASKS)
def test_an_encoder_file_serves_every_task(oracle, tmp_path, caplog, family, task):
    """Without the prefix, as AutoModel saves it; the head is new, and said to be."""
    reference = oracle(family, "encoder")
    reference.save_pretrained(tmp_path)
    if task == "encoder":
        model = load_pretrained(tmp_path)
        encoder = model
    else:
        model = load_pretrained(tmp_path, task, LABELS)
        encoder = model.base_model
        assert {name.split(".")[0] for name in model.fresh_parameters} == set(model.head_names)
        [record] = caplog.records
        assert (record.name, record.levelno) == ("lora_core", logging.WARNING)
        assert all(name in record.getMessage() for name in model.fresh_parameters)
    expected = reference.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in encoder.state_dict().items())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_language_model_s_file_serves_text_classification(oracle, batch, tmp_path, family):
    """Prefix, another task's head, no pooler: the state of most published base models."""
    classes = {
        "bert": "BertForMaskedLM",
        "roberta": "RobertaForMaskedLM",
        "distilbert": "DistilBertForMaskedLM",
        "deberta-v2": "DebertaV2ForMaskedLM",
        "modernbert": "ModernBertForMaskedLM",
    }
    reference = getattr(transformers, classes[family])(oracle(family, "encoder").config).eval()
    reference.save_pretrained(tmp_path)
    model = load_pretrained(tmp_path, "text-classification", LABELS)
    fresh_parts = {name.rsplit(".", 1)[0] for name in model.fresh_parameters}
    assert (
        fresh_parts
        == {
            "bert": {"bert.pooler.dense", "classifier"},
            "roberta": {"classifier.dense", "classifier.out_proj"},
            "distilbert": {"pre_classifier", "classifier"},
            "deberta-v2": {"pooler.dense", "classifier"},
            "modernbert": {"classifier"},
        }[family]
    )
    assert_same_predictions(load_pretrained(tmp_path), reference.base_model, batch)


def test_the_oldest_names_load(oracle, batch, tmp_path):
    """gamma and beta, and counters saved as tensors."""
    reference = oracle("bert", "token-classification")
    reference.save_pretrained(tmp_path)

    def age(tensors):
        old = {
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
            for name, tensor in tensors.items()
        }
        return {**old, "bert.embeddings.position_ids": torch.arange(16)[None]}

    rewrite(tmp_path, age)
    assert_same_predictions(load_pretrained(tmp_path, "token-classification"), reference, batch)


def test_half_precision_files_become_float32(oracle, tmp_path):
    reference = oracle("bert", "token-classification").half()
    reference.save_pretrained(tmp_path)
    model = load_pretrained(tmp_path, "token-classification")
    expected = reference.state_dict()
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, expected[name].float())


def test_the_model_does_not_depend_on_the_file_afterwards(oracle, tmp_path):
    oracle("bert", "token-classification").save_pretrained(tmp_path)
    model = load_pretrained(tmp_path, "token-classification")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    path = tmp_path / "model.safetensors"
    with path.open("r+b") as file:
        file.write(b"\xff" * path.stat().st_size)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("task", TASKS[1:])
def test_rows_of_the_head_follow_the_labels_asked_for(oracle, batch, tmp_path, family, task):
    reference = oracle(family, task)
    reference.save_pretrained(tmp_path)
    order = [2, 0, 1]
    model = load_pretrained(tmp_path, task, [LABELS[row] for row in order])
    assert model.labels == ("I-protein", "O", "B-protein")
    input_ids, mask = batch([6, 6], model.config.pad_token_id)
    expected = predict(reference, input_ids, mask)[..., order]
    torch.testing.assert_close(predict(model, input_ids, mask), expected, rtol=1e-5, atol=1e-5)


def test_placeholder_names_yield_to_those_given_which_is_said(oracle, batch, tmp_path, caplog):
    reference = oracle("bert", "text-classification", labels=("LABEL_0", "LABEL_1"))
    reference.save_pretrained(tmp_path)
    assert load_pretrained(tmp_path, "text-classification").labels == ("LABEL_0", "LABEL_1")
    assert not caplog.messages
    model = load_pretrained(tmp_path, "text-classification", ["bad", "good"])
    assert model.labels == ("bad", "good")
    assert_same_predictions(model, reference, batch)
    assert "the rows of its head are taken for bad, good, in this order" in caplog.text


def test_what_the_rows_of_placeholders_stand_for_can_be_given(oracle, batch, tmp_path, caplog):
    reference = oracle("bert", "text-classification", labels=("LABEL_0", "LABEL_1"))
    reference.save_pretrained(tmp_path)
    order = ["good", "bad"]
    model = load_pretrained(tmp_path, "text-classification", ["bad", "good"], checkpoint_labels=order)
    assert not caplog.messages
    input_ids, mask = batch([6, 6], model.config.pad_token_id)
    expected = predict(reference, input_ids, mask)[..., [1, 0]]
    torch.testing.assert_close(predict(model, input_ids, mask), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"names 3 labels, but the head in .* has 2 rows"):
        load_pretrained(tmp_path, "text-classification", checkpoint_labels=["a", "b", "c"])


def test_names_of_the_checkpoint_s_own_are_not_overruled(oracle, tmp_path):
    oracle("bert", "text-classification", labels=("bad", "good")).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"names of its own, \['bad', 'good'\]: leave out checkpoint_labels"):
        load_pretrained(tmp_path, "text-classification", checkpoint_labels=["good", "bad"])


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_the_names_that_a_wrapper_saves_are_read_and_said(oracle, batch, tmp_path, caplog, prefix):
    reference = oracle("bert", "token-classification")
    reference.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({f"{prefix}{name}": tensor for name, tensor in tensors.items()}, tmp_path / "model.safetensors")
    assert_same_predictions(load_pretrained(tmp_path, "token-classification"), reference, batch)
    assert f"names begin with {prefix[: prefix.index('.') + 1]!r}, as a wrapper saves them" in caplog.text


def test_other_labels_need_a_fresh_head(oracle, tmp_path):
    reference = oracle("bert", "token-classification")
    reference.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"\['O', 'B-DNA'\], .*'I-protein'\]; .*fresh_head=True"):
        load_pretrained(tmp_path, "token-classification", ["O", "B-DNA"])
    model = load_pretrained(tmp_path, "token-classification", ["O", "B-DNA"], fresh_head=True)
    assert model.fresh_parameters == ("classifier.weight", "classifier.bias")
    same_labels = load_pretrained(tmp_path, "token-classification", fresh_head=True)
    assert same_labels.labels == LABELS
    assert not torch.equal(same_labels.classifier.weight, reference.classifier.weight)


def test_a_head_of_another_task_is_not_taken_for_this_one(oracle, tmp_path):
    """Both BERT heads are called classifier and can have the same shape."""
    oracle("bert", "text-classification").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"no head for token-classification .*BertForSequence.*pass labels"):
        load_pretrained(tmp_path, "token-classification")
    model = load_pretrained(tmp_path, "token-classification", LABELS)
    assert model.fresh_parameters == ("classifier.weight", "classifier.bias")


def test_a_config_without_architectures_leaves_the_decision_to_the_tensors(oracle, batch, tmp_path):
    reference = oracle("distilbert", "text-classification")
    reference.save_pretrained(tmp_path)
    rewrite(tmp_path, architectures=None)
    assert_same_predictions(load_pretrained(tmp_path, "text-classification"), reference, batch)


def test_the_seed_decides_the_fresh_head(oracle, tmp_path):
    oracle("bert", "encoder").save_pretrained(tmp_path)
    first, again, other = (load_pretrained(tmp_path, "token-classification", LABELS, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.classifier.weight, again.classifier.weight)
    assert not torch.equal(first.classifier.weight, other.classifier.weight)
    assert not first.classifier.bias.any()


def test_dropout_can_be_replaced(oracle, tmp_path):
    oracle("bert", "token-classification").save_pretrained(tmp_path)
    model = load_pretrained(tmp_path, "token-classification", attention_dropout=0.0, hidden_dropout=0.25)
    layer = model.bert.encoder.layer[1]
    assert layer.attention.self.dropout.p == 0
    assert layer.output.dropout.p == model.bert.embeddings.dropout.p == model.dropout.p == 0.25
    with pytest.raises(ValueError, match=r"hidden_dropout_prob is 1\.5"):
        load_pretrained(tmp_path, "token-classification", hidden_dropout=1.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda tensors: {n: t for n, t in tensors.items() if "layer.1.output.dense.bias" not in n},
            r"1 missing: bert\.encoder\.layer\.1\.output\.dense\.bias",
        ),
        (
            lambda tensors: {**tensors, "bert.encoder.layer.2.output.dense.bias": torch.ones(24)},
            r"1 extra: bert\.encoder\.layer\.2\.output\.dense\.bias",
        ),
        (
            lambda tensors: {**tensors, "bert.embeddings.LayerNorm.bias": torch.ones(5)},
            r"1 of another shape: bert\.embeddings\.LayerNorm\.bias \(5,\) instead of \(24,\)",
        ),
        (
            lambda tensors: {
                **tensors,
                "bert.embeddings.LayerNorm.bias": torch.ones(24, dtype=torch.int8),
            },
            r"1 not floating point: bert\.embeddings\.LayerNorm\.bias",
        ),
        (
            lambda tensors: {n: t for n, t in tensors.items() if n != "classifier.bias"},
            r"1 missing: classifier\.bias",
        ),
        (
            lambda tensors: {f"model.{n}": t for n, t in tensors.items()},
            r"37 missing: .*, \.\.\.\. Check that both files",
        ),
    ],
    ids=["missing", "extra", "misshapen", "quantised", "half a head", "another prefix"],
)
def test_a_file_that_does_not_fit_is_listed(oracle, tmp_path, change, message):
    oracle("bert", "token-classification").save_pretrained(tmp_path)
    rewrite(tmp_path, change)
    with pytest.raises(ValueError, match=message):
        load_pretrained(tmp_path, "token-classification", LABELS)


def test_tensors_of_no_known_part_are_reported(oracle, tmp_path, caplog):
    oracle("bert", "token-classification").save_pretrained(tmp_path)
    rewrite(tmp_path, lambda tensors: {**tensors, "crf.transitions": torch.ones(3, 3)})
    load_pretrained(tmp_path, "token-classification")
    assert [record.args[-1] for record in caplog.records] == ["crf"]


def test_errors_name_the_config_file(oracle, tmp_path):
    oracle("bert", "encoder").save_pretrained(tmp_path)
    rewrite(tmp_path, position_embedding_type="relative_key")
    with pytest.raises(ValueError, match=r"config\.json: position_embedding_type is 'relative_key'"):
        load_pretrained(tmp_path)


def test_an_encoder_takes_no_labels(oracle, tmp_path):
    oracle("bert", "encoder").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="a bare encoder has no head"):
        load_pretrained(tmp_path, labels=LABELS)
    with pytest.raises(ValueError, match="bert models do not do image-classification"):
        load_pretrained(tmp_path, "image-classification", LABELS)


@pytest.mark.parametrize("modules_to_save", [None, (), ("classifier",)])
def test_an_adapter_carries_the_pooler_that_the_checkpoint_lacked(oracle, batch, tmp_path, modules_to_save):
    """Drawn from another seed it would be another one. PEFT reads it from the same file."""
    oracle("bert", "token-classification").save_pretrained(tmp_path / "base")

    def base(seed):
        return load_pretrained(tmp_path / "base", "text-classification", LABELS, seed=seed)

    model = lora_core.inject_lora(base(seed=1), r=2, modules_to_save=modules_to_save)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad and "lora_" not in name}
    head = {"classifier.weight", "classifier.bias", "bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    assert trained == (set() if modules_to_save == () else head)
    if modules_to_save == ():
        return
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape) * 0.2)
    expected = predict(model, *batch([5, 8, 2], 0))
    lora_core.save_adapter(model, tmp_path / "adapter")
    again = lora_core.load_adapter(base(seed=2), tmp_path / "adapter")
    assert torch.equal(predict(again, *batch([5, 8, 2], 0)), expected)
    reference = peft.PeftModel.from_pretrained(base(seed=3), tmp_path / "adapter").base_model.model.eval()
    torch.testing.assert_close(predict(reference, *batch([5, 8, 2], 0)), expected, rtol=1e-4, atol=1e-5)


def test_a_pooler_of_the_checkpoint_is_no_part_of_the_head(oracle, tmp_path):
    oracle("bert", "encoder").save_pretrained(tmp_path)
    model = lora_core.inject_lora(load_pretrained(tmp_path, "text-classification", LABELS))
    assert model.head_names == ("classifier",)
    assert not any(parameter.requires_grad for parameter in model.bert.pooler.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_dtype_that_is_asked_for_is_that_of_all_parameters(oracle, batch, tmp_path, family, dtype):
    reference = oracle(family, "token-classification")
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.mul_(0.3)  # as small as trained weights: the sums keep within half precision
    reference.save_pretrained(tmp_path)
    model = load_pretrained(tmp_path, "token-classification", dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    input_ids, mask = batch([5, 8, 2], model.config.pad_token_id)
    found, expected = (predict(each, input_ids, mask)[mask.bool()] for each in (model, reference))
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=16 * torch.finfo(dtype).eps)
    lora_core.inject_lora(model, r=2)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    model(input_ids, attention_mask=mask).float().sum().backward()
    fresh = load_pretrained(tmp_path, "token-classification", ["O", "X"], fresh_head=True, dtype=dtype)
    assert fresh.classifier.weight.dtype == dtype
    assert fresh.classifier.weight.float().std() > 0
