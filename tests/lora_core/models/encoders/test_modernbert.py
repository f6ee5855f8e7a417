"""The encoder and its heads against transformers; checkpoints and configs as they are published."""

import json
import math
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from lora_core.models import ModernBertConfig, build_model, config_from_dict, load_pretrained, save_pretrained

LABELS = ("O", "B-protein", "I-protein")
TASKS = ("token-classification", "text-classification")
CASES = [("token-classification", "cls"), ("text-classification", "cls"), ("text-classification", "mean")]
BASE: dict[str, Any] = {
    "model_type": "modernbert", "vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 3,
    "intermediate_size": 20, "max_position_embeddings": 32, "pad_token_id": 0, "local_attention": 6,
    "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2,
}  # fmt: skip
PUBLISHED = {"model_type": "modernbert", "global_attn_every_n_layers": 3, "global_rope_theta": 160000.0,
             "local_rope_theta": 10000.0, "position_embedding_type": "absolute", "layer_norm_eps": 1e-05,
             "reference_compile": None, "architectures": ["ModernBertForMaskedLM"]}  # fmt: skip
"""What config.json of ModernBERT-base says where other families have a field of that name, or none."""
MMBERT = {**PUBLISHED, "vocab_size": 256000, "local_rope_theta": 160000, "position_embedding_type": "sans_pos",
          "pad_token_id": 0, "classifier_pooling": "mean"}  # fmt: skip


def ours(reference, task, **fields):
    """Our model with the weights of transformers' one; strict loading proves that the names are the same."""
    model = build_model(config_from_dict({**reference.config.to_dict(), **fields}), task, LABELS)
    model.load_state_dict(reference.state_dict())
    return model


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    heads=st.integers(1, 4),
    half_head=st.integers(1, 4),
    more_kinds=st.lists(st.sampled_from(["full_attention", "sliding_attention"]), max_size=3),
    intermediate=st.integers(1, 30),
    activation=st.sampled_from(["gelu", "gelu_new", "relu", "silu"]),
    biases=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    eps=st.sampled_from([1e-5, 1e-2]),
    window=st.integers(1, 40),
    thetas=st.sampled_from([(160_000.0, 10_000.0), (50.0, 3.0)]),
    lengths=st.lists(st.integers(1, 32), min_size=1, max_size=4),
    implementation=st.sampled_from(["eager", "sdpa"]),
    data=st.data(),
)
def test_equals_transformers_at_every_real_token(
    oracle, batch, heads, half_head, more_kinds, intermediate, activation, biases, eps, window, thetas, lengths,
    implementation, data,
):  # fmt: skip
    # transformers 5.16 fails where all layers are of one kind.
    kinds = data.draw(st.permutations(["full_attention", "sliding_attention", *more_kinds]))
    norm_bias, attention_bias, mlp_bias = biases
    reference = oracle(
        "modernbert",
        "encoder",
        hidden_size=2 * heads * half_head,
        num_attention_heads=heads,
        num_hidden_layers=len(kinds),
        intermediate_size=intermediate,
        hidden_activation=activation,
        norm_bias=norm_bias,
        attention_bias=attention_bias,
        mlp_bias=mlp_bias,
        norm_eps=eps,
        local_attention=window,
        layer_types=kinds,
        global_rope_theta=thetas[0],
        local_rope_theta=thetas[1],
    )
    reference.set_attn_implementation(implementation)
    model = build_model(ModernBertConfig.from_dict(reference.config.to_dict()))
    model.load_state_dict(reference.state_dict())
    input_ids, mask = batch(lengths, pad_token_id=0)
    with torch.no_grad():
        expected = reference(input_ids, attention_mask=mask).last_hidden_state
        hidden = model(input_ids, mask)
        torch.testing.assert_close(hidden[mask.bool()], expected[mask.bool()], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model(input_ids), reference(input_ids).last_hidden_state, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("task", "pooling"), CASES)
@pytest.mark.parametrize("lengths", [[1], [4, 4], [7, 7], [12, 3, 1, 8], [30, 5, 13]], ids=str)
@pytest.mark.parametrize("masked", [True, False], ids=["mask", "no mask"])
def test_logits_and_gradients_equal_transformers(oracle, batch, task, pooling, lengths, masked):
    reference = oracle("modernbert", task, classifier_pooling=pooling, classifier_bias=True)
    model = ours(reference, task)
    input_ids, mask = batch(lengths, 0)
    if not masked:
        mask = torch.ones_like(mask)
    expected = reference(input_ids, attention_mask=mask if masked else None).logits
    logits = model(input_ids, mask if masked else None)
    if task == "token-classification":
        expected, logits = expected[mask.bool()], logits[mask.bool()]
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)

    gold = torch.arange(len(logits)) % len(LABELS)
    F.cross_entropy(logits, gold, reduction="sum").backward()
    F.cross_entropy(expected, gold, reduction="sum").backward()
    gradients = {name: parameter.grad for name, parameter in reference.named_parameters()}
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-4, msg=name)


class Halve(nn.Module):
    """Stands in for dropout where random numbers would make two models differ."""

    p = 0.0

    def forward(self, x):
        return x / 2


RATES = {"embedding_dropout": 0.11, "attention_dropout": 0.22, "mlp_dropout": 0.33, "classifier_dropout": 0.44}
PLACES = ("drop", "out_drop")
"""Ends of the names of transformers' dropouts; our gate has its own inside."""


@pytest.mark.parametrize("task", TASKS)
def test_dropout_stands_where_transformers_has_it(oracle, batch, task):
    reference, model = oracle("modernbert", task, **RATES), None
    model = ours(reference, task)
    theirs = {name: module.p for name, module in reference.named_modules() if isinstance(module, nn.Dropout)}
    found = {name.replace("mlp.act.dropout", "mlp.drop"): module.p for name, module in model.named_modules()
             if isinstance(module, nn.Dropout)}  # fmt: skip
    weights = {name: found.pop(name) for name in [*found] if name.endswith("attn.dropout")}
    assert found == theirs
    assert weights == {f"model.layers.{n}.attn.dropout": reference.model.layers[n].attn.attention_dropout
                       for n in range(4)}  # fmt: skip
    for each in (model, reference):
        names = [name for name, module in each.named_modules() if isinstance(module, nn.Dropout)]
        for name in names:
            each.set_submodule(name, Halve())
    input_ids, mask = batch([30, 4], 0)
    with torch.no_grad():
        expected, logits = reference(input_ids, attention_mask=mask).logits, model(input_ids, mask)
    real = mask.bool() if task == "token-classification" else slice(None)
    torch.testing.assert_close(logits[real], expected[real], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("lengths", [[5, 3], [30, 13]], ids=["short", "in blocks"])
def test_every_dropout_acts_and_in_training_only(oracle, batch, lengths):
    model = ours(oracle("modernbert", "text-classification"), "text-classification")
    dropouts = {name: module for name, module in model.named_modules() if isinstance(module, nn.Dropout)}
    assert len(dropouts) == 1 + 3 * 4 + 1
    input_ids, mask = batch(lengths, 0)
    for acting in dropouts:
        for name, module in dropouts.items():
            module.p = 0.5 if name == acting else 0.0
        model.eval()
        expected = model(input_ids, mask)
        assert torch.equal(model(input_ids, mask), expected)
        model.train()
        assert not torch.allclose(model(input_ids, mask), expected), acting


def test_the_dropout_of_a_run_reaches_embeddings_and_layers():
    config = config_from_dict(BASE).with_dropout(attention=0.1, hidden=0.2)
    assert (config.attention_dropout, config.embedding_dropout, config.mlp_dropout) == (0.1, 0.2, 0.2)
    assert config_from_dict(BASE).with_dropout(attention=None, hidden=None) == config_from_dict(BASE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("lengths", [[4, 6], [5, 30]], ids=["short", "in blocks"])
@pytest.mark.parametrize("whole", [True, False], ids=["weights", "autocast"])
def test_rows_and_windows_of_padding_are_finite_in_every_precision(batch, dtype, lengths, whole):
    """Windows that hold nothing but padding gave NaN elsewhere."""
    model = build_model(config_from_dict({**BASE, "initializer_range": 0.3}), "text-classification", LABELS).train()
    input_ids, mask = batch(lengths, 0)
    expected = model(input_ids, mask)
    model = model.to(dtype if whole else torch.float32)
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32 and not whole):
        logits = model(input_ids, mask)
        assert (logits - expected).norm() < 0.05 * expected.norm()
        mask[0] = 0
        logits = model(input_ids, mask)
    logits.float().square().sum().backward()
    assert logits.isfinite().all()
    gradients = [parameter.grad for parameter in model.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


def test_the_defaults_are_those_of_transformers():
    reference = transformers.ModernBertConfig()
    values, fields = reference.to_dict(), ModernBertConfig().to_dict()
    assert fields.pop("layer_types") == tuple(values["layer_types"])
    for kind, field in (("full_attention", "global_rope_theta"), ("sliding_attention", "local_rope_theta")):
        assert fields.pop(field) == values["rope_parameters"][kind]["rope_theta"]
    assert {name: values[name] for name in fields} == fields


@pytest.mark.parametrize("values", [PUBLISHED, MMBERT, {**PUBLISHED, "global_attn_every_n_layers": 2}], ids=str)
def test_old_and_new_fields_of_config_json_are_read_alike(values):
    theirs = transformers.ModernBertConfig(**{name: value for name, value in values.items() if name != "model_type"})
    old, new = config_from_dict(values), config_from_dict(theirs.to_dict())
    assert old == new
    assert (old.local_rope_theta, old.global_rope_theta) == (values["local_rope_theta"], 160_000)
    assert old.kinds == tuple(theirs.layer_types)
    assert config_from_dict(json.loads(json.dumps(old.to_dict()))) == old


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling is .*yarn.*only the rope_type"),
        ({"rope_parameters": {"full_attention": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}},
         r"rope_parameters\['full_attention'\] is .*only the rope_type 'default'"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, "rope_parameters is .*expected those of"),
        ({"rope_parameters": [1]}, r"rope_parameters is \[1\]; expected those of full_attention"),
        ({"rope_parameters": {"full_attention": 3}}, r"rope_parameters\['full_attention'\] is 3"),
        ({"rope_scaling": "yarn"}, "rope_scaling is yarn"),
        ({"global_attn_every_n_layers": 0}, "global_attn_every_n_layers is 0; expected a whole number of at least 1"),
        ({"global_attn_every_n_layers": "3"}, "global_attn_every_n_layers is '3'"),
        ({"pad_token_id": None}, "pad_token_id is None, but it should be a whole number"),
        ({"layer_types": 3}, "layer_types is 3, but it should be a list of strings"),
        ({"num_hidden_layers": "4", "global_attn_every_n_layers": 3}, "num_hidden_layers is '4', but it should be"),
        ({"local_rope_theta": "1e4"}, "local_rope_theta is '1e4', but it should be a number"),
        ({"layer_types": ["full_attention"]}, "expected full_attention or sliding_attention for each of the 4 layers"),
        ({"layer_types": ["causal"] * 4}, r"layer_types is \['causal'"),
        ({"num_attention_heads": 8}, "hidden_size 24 is not an even multiple of num_attention_heads 8"),
        ({"global_rope_theta": 0.0}, "global_rope_theta is 0.0; expected a number above 0"),
        ({"attention_dropout": 1.0}, "attention_dropout is 1.0; expected at least 0 and below 1"),
        ({"classifier_pooling": "max"}, "classifier_pooling is 'max', but it should be one of cls, mean"),
        ({"classifier_activation": "tanh"}, "classifier_activation is 'tanh'; implemented are gelu"),
        ({"is_decoder": True}, "is_decoder is True"),
    ],
    ids=str,
)  # fmt: skip
def test_configs_that_would_not_be_honoured_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        config_from_dict({**BASE, **fields})


def test_segments_are_refused():
    model = build_model(config_from_dict(BASE))
    input_ids = torch.ones(1, 4, dtype=torch.long)
    with pytest.raises(ValueError, match="ModernBERT has no segments"):
        model(input_ids, token_type_ids=input_ids)


@pytest.mark.parametrize(
    ("fields", "task", "total"),
    [({}, "encoder", 149_014_272), ({}, "token-classification", 149_607_171), (MMBERT, "encoder", 306_939_648)],
    ids=str,
)
def test_parameter_totals_of_published_models(fields, task, total):
    with torch.device("meta"):
        model = build_model(config_from_dict({**PUBLISHED, **fields}), task, None if task == "encoder" else LABELS)
    assert sum(parameter.numel() for parameter in model.parameters()) == total


def test_new_weights_are_distributed_as_in_transformers():
    fields = {**BASE, "hidden_size": 240, "intermediate_size": 200, "vocab_size": 900, "initializer_range": 0.05}
    model = build_model(config_from_dict(fields), "token-classification", [f"label {row}" for row in range(50)])
    theirs = {name: value for name, value in fields.items() if name != "model_type"}
    torch.manual_seed(0)
    reference = transformers.ModernBertForTokenClassification(transformers.ModernBertConfig(**theirs, num_labels=50))
    for name, expected in reference.named_parameters():
        found = model.get_parameter(name)
        if expected.ndim == 1:
            assert torch.equal(found, expected), name
        else:
            torch.testing.assert_close(found.std(), expected.std(), rtol=0.05, atol=0, msg=name)
            assert found.abs().max() <= 2.02 * expected.std() / 0.8796, name  # of a normal that is cut off there


def write_masked_lm(folder):
    """A checkpoint as it is published: the encoder, the pretrained head, the decoder's bias."""
    torch.manual_seed(0)
    config = transformers.ModernBertConfig(**{name: value for name, value in BASE.items() if name != "model_type"})
    reference = transformers.ModernBertForMaskedLM(config)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.normal_(0, 0.3)
    reference.save_pretrained(folder)
    return reference


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("fresh_head", [False, True])
def test_the_pretrained_head_is_loaded_and_only_the_classifier_is_new(tmp_path, caplog, task, fresh_head):
    reference = write_masked_lm(tmp_path)
    model = load_pretrained(tmp_path, task, LABELS, fresh_head=fresh_head)
    assert model.fresh_parameters == ("classifier.weight", "classifier.bias")
    assert [record.message.split(" (")[0] for record in caplog.records] == ["drawn at random, train before use"]
    assert model.head_names == ("classifier",)
    state = model.state_dict()
    for name, tensor in reference.state_dict().items():
        if not name.startswith("decoder"):
            assert torch.equal(state[name], tensor), name


def test_a_bare_encoder_of_a_checkpoint_for_masked_words_is_loaded_in_silence(tmp_path, caplog):
    reference = write_masked_lm(tmp_path)
    model = load_pretrained(tmp_path)
    input_ids = torch.randint(3, 50, (2, 20))
    with torch.no_grad():
        expected = reference.model(input_ids).last_hidden_state
        torch.testing.assert_close(model(input_ids), expected, rtol=1e-5, atol=1e-5)
    assert not caplog.records


def test_a_head_that_the_checkpoint_lacks_is_trained_and_saved_with_an_adapter(tmp_path):
    """gte-modernbert has the encoder alone, without its prefix."""
    write_masked_lm(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    bare = {name.removeprefix("model."): tensor for name, tensor in tensors.items() if name.startswith("model.")}
    save_file(bare, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model = load_pretrained(tmp_path, "text-classification", LABELS)
    expected = {"head.dense.weight", "head.norm.weight", "classifier.weight", "classifier.bias"}
    assert {*model.fresh_parameters} == expected
    assert model.head_names == ("classifier", "head")
    torch.testing.assert_close(
        model.head.dense.weight.std(), torch.tensor(0.8796 * 0.02 / math.sqrt(8)), rtol=0.1, atol=0
    )


@pytest.mark.parametrize(("task", "pooling"), CASES)
def test_saved_models_are_read_by_transformers(oracle, batch, tmp_path, task, pooling):
    reference = oracle("modernbert", task, classifier_pooling=pooling, local_rope_theta=77.0)
    save_pretrained(ours(reference, task), tmp_path)
    auto = {"token-classification": transformers.AutoModelForTokenClassification,
            "text-classification": transformers.AutoModelForSequenceClassification}[task]  # fmt: skip
    again = auto.from_pretrained(tmp_path)
    input_ids, mask = batch([30, 4], 0)
    with torch.no_grad():
        assert torch.equal(
            again(input_ids, attention_mask=mask).logits, reference(input_ids, attention_mask=mask).logits
        )
    model = load_pretrained(tmp_path, task)
    assert (model.labels, model.fresh_parameters) == (LABELS, ())
