"""Adapters on disk: PEFT in both directions, exact round trips, and damage of every kind."""

import dataclasses
import json
import logging
import os
import socket
import stat
import struct
import warnings
from pathlib import Path

import peft
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from lora_core import (
    LoRAConfig,
    add_adapter,
    disable_adapters,
    eject_lora,
    inject_lora,
    load_adapter,
    lora_state_dict,
    merge_lora,
    parameter_counts,
    save_adapter,
    set_adapter,
)
from lora_core.adapters import record_of
from lora_core.models import load_pretrained
from lora_core.whole import is_waiting

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"

QUERY_VALUE = ["query", "value"]
CASES = {
    "plain, no head": ("bert", {"target_modules": QUERY_VALUE}),
    "token classification": ("bert", {"target_modules": QUERY_VALUE, "task_type": "TOKEN_CLS"}),
    "bias all": ("bert", {"target_modules": ["query", "output.dense"], "task_type": "TOKEN_CLS", "bias": "all"}),
    "bias lora_only": ("bert", {"target_modules": QUERY_VALUE, "task_type": "TOKEN_CLS", "bias": "lora_only"}),
    "saved modules": ("bert", {"target_modules": ["query"], "modules_to_save": ["classifier", "layer.1.output"]}),
    "embeddings": ("bert", {"target_modules": ["query", "word_embeddings"], "task_type": "TOKEN_CLS"}),
    "convolutions": ("conv", {"target_modules": ["first", "second"], "modules_to_save": ["head", "norm"]}),
    "convolutions, bias": ("conv", {"target_modules": ["first", "inner"], "bias": "all", "modules_to_save": ["head"]}),
    "dora": ("bert", {"target_modules": ["query", "word_embeddings"], "task_type": "TOKEN_CLS", "use_dora": True}),
    "dora convolution": ("conv", {"target_modules": ["first", "second"], "use_dora": True}),
    "lora_bias": ("bert", {"target_modules": ["query"], "task_type": "TOKEN_CLS", "lora_bias": True}),
    "rslora": ("roberta", {"target_modules": QUERY_VALUE, "task_type": "TOKEN_CLS", "use_rslora": True}),
    "patterns": (
        "bert",
        {
            "target_modules": ["query", "key", "output.dense"],
            "task_type": "TOKEN_CLS",
            "rank_pattern": {"key": 2, r"layer\.1\.output\.dense": 3},
            "alpha_pattern": {"query": 3},
        },
    ),
    "regular expression": ("bert", {"target_modules": r".*layer\.1.*(query|value)", "task_type": "TOKEN_CLS"}),
    "layers": ("bert", {"target_modules": ["query"], "layers_to_transform": [1], "task_type": "TOKEN_CLS"}),
    "exclusions": (
        "bert",
        {
            "target_modules": ["dense"],
            "modules_to_save": ["classifier"],
            "exclude_modules": ["attention.output.dense", "intermediate.dense"],
        },
    ),
    "all linear": ("bert-text", {"target_modules": "all-linear", "task_type": "SEQ_CLS"}),
    "bert text": ("bert-text", {"target_modules": QUERY_VALUE, "task_type": "SEQ_CLS", "bias": "all"}),
    "roberta text": ("roberta-text", {"target_modules": QUERY_VALUE, "task_type": "SEQ_CLS"}),
    "distilbert text": ("distilbert-text", {"target_modules": ["q_lin", "v_lin"], "task_type": "SEQ_CLS"}),
    "question answering": ("bert-question", {"target_modules": QUERY_VALUE, "task_type": "QUESTION_ANS"}),
    "feature extraction": ("bert-encoder", {"target_modules": QUERY_VALUE, "task_type": "FEATURE_EXTRACTION"}),
}
STRAY = (".modules_to_save.", ".original_module.")
"""Copies of the head that PEFT writes with bias="all"."""


@pytest.fixture
def peft_save(make, peft_model, randomise, run):
    """Factory of an adapter with trained numbers, saved by PEFT; gives its outputs."""

    def save(case: str, folder: Path, **extra) -> torch.Tensor:
        kind, fields = CASES[case]
        model = peft_model(make(kind), r=4, lora_alpha=6, **fields, **extra)
        randomise(model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.save_pretrained(folder)
        return run(model).detach()

    return save


@pytest.fixture
def saved(make, randomise, run, tmp_path):
    """The folder of an adapter with trained numbers, and its outputs."""
    model = randomise(inject_lora(make("bert"), r=4, bias="lora_only"))
    return save_adapter(model, tmp_path / "saved"), run(model).detach()


def edit(folder: Path, change) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


@pytest.mark.parametrize("case", CASES)
def test_adapters_of_peft_load_with_equal_outputs(case, peft_save, make, run, tmp_path):
    """Property 41 across libraries; everything in the file is used."""
    wanted = peft_save(case, tmp_path)
    model = make(CASES[case][0])
    base = run(model)
    load_adapter(model, tmp_path)
    torch.testing.assert_close(run(model), wanted, atol=1e-5, rtol=1e-5)
    assert (wanted - base).abs().max() > 0.01
    theirs = {key: t for key, t in load_file(tmp_path / WEIGHTS).items() if not any(part in key for part in STRAY)}
    ours = lora_state_dict(model)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], tensor) for key, tensor in theirs.items())
    with disable_adapters(model):
        assert torch.equal(run(model), base)


@pytest.mark.parametrize("case", CASES)
def test_peft_loads_what_we_save(case, make, randomise, run, peft_load, tmp_path):
    kind, fields = CASES[case]
    fields = {**fields, "init_lora_weights": True}
    if "task_type" not in fields and "modules_to_save" not in fields:
        fields["modules_to_save"] = ()
    model = randomise(inject_lora(make(kind), r=4, lora_alpha=6, **fields))
    save_adapter(model, tmp_path)
    theirs = peft_load(make(kind), tmp_path)
    torch.testing.assert_close(run(theirs), run(model), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_files_agree_key_for_key(case, make, peft_save, peft_load, tmp_path):
    """An adapter of PEFT, loaded and saved here, gives PEFT's file but for its stray copies of the head."""
    wanted = peft_save(case, tmp_path / "theirs")
    model = load_adapter(make(CASES[case][0]), tmp_path / "theirs")
    save_adapter(model, tmp_path / "ours")
    theirs, ours = (load_file(tmp_path / name / WEIGHTS) for name in ("theirs", "ours"))
    theirs = {key: tensor for key, tensor in theirs.items() if not any(part in key for part in STRAY)}
    assert {key: t.shape for key, t in ours.items()} == {key: t.shape for key, t in theirs.items()}
    assert all(torch.equal(ours[key], tensor) for key, tensor in theirs.items())
    theirs, ours = (json.loads((tmp_path / name / CONFIG).read_text()) for name in ("theirs", "ours"))
    for name in (
        "r",
        "lora_alpha",
        "bias",
        "use_dora",
        "use_rslora",
        "lora_bias",
        "task_type",
        "peft_type",
        "rank_pattern",
        "alpha_pattern",
        "inference_mode",
    ):
        assert ours[name] == theirs[name], name
    again = peft_load(make(CASES[case][0]), tmp_path / "ours")
    assert wanted.shape
    assert {p for p, m in again.named_modules() if hasattr(m, "lora_A")}


@pytest.mark.parametrize("kind", ["bert", "bert-text", "roberta-text", "distilbert-text", "conv", "ours", "ours-text"])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"target_modules": "all-linear", "bias": "all"},
        {"use_rslora": True, "rank_pattern": {r".*0\..*": 2}, "use_dora": True},
        {"modules_to_save": ()},
    ],
)
def test_saved_and_loaded_outputs_are_equal(kind, fields, make, randomise, run, tmp_path):
    """Property 41: to the bit, whatever the random state."""
    if kind == "conv":
        fields = {key: value for key, value in fields.items() if key != "rank_pattern"}
        fields = {**fields, "target_modules": ["first", "inner"]}
    model = randomise(inject_lora(make(kind), **fields))
    save_adapter(model, tmp_path)
    torch.manual_seed(99)
    random_state = torch.get_rng_state()
    twin = make(kind)
    assert load_adapter(twin, tmp_path) is twin
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.equal(run(twin), run(model))
    assert not any(tensor.is_meta for tensor in twin.state_dict().values())  # property 44


def test_alpha_that_follows_the_rank_survives(make, randomise, run, peft_load, tmp_path):
    """Without lora_alpha the scaling is 1 at every rank, in the file too."""
    model = randomise(inject_lora(make("bert"), r=8, rank_pattern={"query": 2}))
    save_adapter(model, tmp_path)
    assert torch.equal(run(load_adapter(make("bert"), tmp_path)), run(model))
    torch.testing.assert_close(run(peft_load(make("bert"), tmp_path)), run(model), atol=1e-5, rtol=1e-5)


def test_the_state_dict_holds_one_adapter_without_its_name(make):
    """Property 42."""
    model = inject_lora(make("bert"), adapter_name="medical")
    add_adapter(model, "other")
    keys = list(lora_state_dict(model, "medical"))
    layer = "base_model.model.bert.encoder.layer.0.attention.self"
    assert {key for key in keys if "layer.0" in key} == {
        f"{layer}.{module}.lora_{factor}.weight" for module in ("query", "value") for factor in "AB"
    }
    assert {key for key in keys if "lora" not in key} == {
        "base_model.model.classifier.weight",
        "base_model.model.classifier.bias",
    }
    assert not [key for key in keys if "medical" in key or "other" in key or "base_layer.weight" in key]


@pytest.mark.parametrize("name", ["medical", "query", "lora_A"])
def test_adapters_with_names_of_their_own(name, make, peft_save, peft_load, randomise, run, tmp_path):
    """PEFT saves them in a subfolder; ours lie where they were told to. Names in files never matter."""
    kind, fields = CASES["token classification"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.get_peft_model(make(kind), peft.LoraConfig(r=4, **fields), adapter_name=name).eval()
        randomise(theirs)
        theirs.save_pretrained(tmp_path / "theirs")
    with pytest.raises(ValueError, match=name):
        load_adapter(make(kind), tmp_path / "theirs")
    model = load_adapter(make(kind), tmp_path / "theirs" / name, name)
    torch.testing.assert_close(run(model), run(theirs), atol=1e-5, rtol=1e-5)
    save_adapter(model, tmp_path / "ours", name)
    torch.testing.assert_close(run(peft_load(make(kind), tmp_path / "ours")), run(theirs), atol=1e-5, rtol=1e-5)
    other = load_adapter(make(kind), tmp_path / "ours", "renamed")
    assert torch.equal(run(other), run(model))


def test_merged_and_unmerged_models_save_the_same_file(saved, make, tmp_path):
    """Property 48."""
    model = load_adapter(make("bert"), saved[0])
    save_adapter(merge_lora(model), tmp_path / "merged")
    assert (tmp_path / "merged" / WEIGHTS).read_bytes() == (saved[0] / WEIGHTS).read_bytes()


def test_batch_norm_statistics_are_saved(make, run, train, tmp_path):
    """Property 50."""
    model = inject_lora(make("conv"), target_modules=["inner"], modules_to_save=["norm", "head"])
    before = {name: b.clone() for name, b in model.named_buffers() if not is_waiting(name)}
    train(model, run, learning_rate=0.1)
    after = dict(model.named_buffers())
    assert all(not torch.equal(before[name], after[name]) for name in before)
    save_adapter(model, tmp_path)
    twin = load_adapter(make("conv"), tmp_path)
    assert torch.equal(run(twin), run(model))
    for name, buffer in twin.named_buffers():
        assert torch.equal(buffer, after[name]), name
        assert buffer.dtype == after[name].dtype
    with disable_adapters(twin):
        assert all(torch.equal(twin.get_buffer(name), buffer) for name, buffer in before.items())


def test_a_loaded_adapter_can_be_trained_further(saved, make, run, train):
    """Property 20 and complaint 8: PEFT's default gives 0 trainable parameters, without a word."""
    model = load_adapter(make("bert"), saved[0])
    own = sum(t.numel() for t in load_file(saved[0] / WEIGHTS).values())
    assert parameter_counts(model)[0] == own
    train(model, run)
    assert not torch.equal(run(model), saved[1])
    frozen = load_adapter(make("bert"), saved[0], trainable=False)
    assert parameter_counts(frozen)[0] == 0
    assert torch.equal(run(frozen), saved[1])


def test_loading_beside_others(saved, make, run):
    model = inject_lora(make("bert"), adapter_name="first")
    wanted = run(model)
    load_adapter(model, saved[0], "second", active=False)
    assert torch.equal(run(model), wanted)
    load_adapter(model, saved[0], "third")
    assert torch.equal(run(model), saved[1])
    set_adapter(model, "first")
    assert torch.equal(run(model), wanted)
    with pytest.raises(ValueError, match="adapter 'third' already"):
        load_adapter(model, saved[0], "third")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_base_gets_an_fp32_adapter(dtype, saved, make, run):
    """Property 21, for loading."""
    model = load_adapter(make("bert").to(dtype), saved[0])
    own = (".lora.", "classifier.weight", "classifier.bias")
    assert {p.dtype for name, p in model.named_parameters() if any(part in name for part in own)} == {torch.float32}
    assert run(model).dtype == dtype
    half = load_adapter(make("bert").to(dtype), saved[0], adapter_dtype=dtype)
    assert {p.dtype for p in half.parameters()} == {dtype}
    run(half)


def test_no_network_is_touched(saved, make, monkeypatch, tmp_path):
    """Complaint 13: PEFT asks the hub about the vocabulary when it saves."""

    def refuse(*args, **kwargs):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    config = LoRAConfig(target_modules=["word_embeddings"], base_model_name_or_path="google-bert/bert-base-uncased")
    save_adapter(inject_lora(make("bert"), config=config), tmp_path)
    load_adapter(make("bert"), tmp_path)


def test_a_task_model_writes_its_task(make, peft_load, run, randomise, tmp_path):
    """PEFT then knows what the adapter is for, and it finds the head."""
    model = randomise(inject_lora(make("ours", num_labels=5)))
    save_adapter(model, tmp_path)
    assert json.loads((tmp_path / CONFIG).read_text())["task_type"] == "TOKEN_CLS"
    theirs = make("bert")
    theirs.load_state_dict(eject_copy(model))
    torch.testing.assert_close(run(peft_load(theirs, tmp_path)), run(model), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("theirs", [True, False])
def test_a_saved_adapter_names_what_the_model_was_loaded_from(theirs, make, tmp_path):
    make("bert").save_pretrained(tmp_path / "base")
    source = str(tmp_path / "base")
    model = transformers.AutoModelForTokenClassification.from_pretrained(source) if theirs else load_pretrained(source)
    save_adapter(inject_lora(model), tmp_path / "adapter")
    assert LoRAConfig.load(tmp_path / "adapter").base_model_name_or_path == source
    save_adapter(inject_lora(make("ours")), tmp_path / "built")
    assert LoRAConfig.load(tmp_path / "built").base_model_name_or_path is None


@pytest.mark.parametrize("task_type", ["TOKEN_CLS", "SEQ_CLS"])
def test_the_head_of_an_adapter_of_the_oldest_peft_is_found(task_type, make, peft_load, run, randomise, tmp_path):
    """PEFT before 0.11 saved the head of these tasks and left modules_to_save empty."""
    model = randomise(inject_lora(make("ours", num_labels=5)))
    save_adapter(model, tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps(config | {"modules_to_save": None, "task_type": task_type}))
    again = make("ours", num_labels=5)
    again.task = {"TOKEN_CLS": "token-classification", "SEQ_CLS": "text-classification"}[task_type]
    load_adapter(again, tmp_path)
    torch.testing.assert_close(run(again), run(model))
    assert record_of(again, "default").config.modules_to_save == ("classifier",)


def test_a_head_of_another_task_is_refused(make, state, same, tmp_path):
    """It would fit, if there are as many labels, and mean something else."""
    save_adapter(inject_lora(make("ours", num_labels=5)), tmp_path)
    other = make("ours", num_labels=5)
    other.task = "text-classification"
    before = state(other)
    with pytest.raises(ValueError, match=r"holds a head for token-classification, but the model is for text-class"):
        load_adapter(other, tmp_path)
    assert same(state(other), before)


def test_an_adapter_without_a_head_takes_that_of_the_model(make, run, randomise, tmp_path):
    model = randomise(inject_lora(make("ours", num_labels=5), modules_to_save=()))
    save_adapter(model, tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps(config | {"modules_to_save": None, "task_type": "TOKEN_CLS"}))
    again = load_adapter(make("ours", num_labels=5), tmp_path)
    assert record_of(again, "default").config.modules_to_save == ()


def eject_copy(model: nn.Module) -> dict[str, torch.Tensor]:
    """The base model's tensors."""
    with disable_adapters(model):
        return {
            name: t.clone() for name, t in model.state_dict().items() if ".lora." not in name and not is_waiting(name)
        }


def test_a_save_replaces_an_older_one_and_leaves_nothing_else(make, saved):
    model = load_adapter(make("bert"), saved[0])
    with torch.no_grad():
        model.classifier.bias.add_(1)
    save_adapter(model, saved[0])
    assert sorted(path.name for path in saved[0].iterdir()) == [CONFIG, WEIGHTS]
    assert torch.equal(load_file(saved[0] / WEIGHTS)["base_model.model.classifier.bias"], model.classifier.bias)


def test_saving_a_bad_number_is_refused(make, tmp_path):
    model = inject_lora(make("bert"))
    with torch.no_grad():
        model.classifier.weight[1, 2] = torch.nan
    with pytest.raises(ValueError, match=r"classifier\.weight holds NaN"):
        save_adapter(model, tmp_path / "new")
    assert not (tmp_path / "new").exists()


# Damage: every case raises a ValueError that says what is wrong, and leaves the model as it was.

HEAD = "base_model.model.classifier"
EDITS = {
    "missing": (lambda t: t.pop(f"{HEAD}.weight"), r"missing: base_model\.model\.classifier\.weight \(5, 32\)"),
    "several missing": (lambda t: [t.pop(k) for k in list(t) if "layer.1" in k], r"(missing: .*\n.*){4}"),
    "unknown": (lambda t: t.update({f"{HEAD}.lora_A.weight": torch.ones(4, 32)}), r"unknown: .*classifier\.lora_A"),
    "unknown head": (lambda t: t.update({"base_model.model.score.weight": torch.ones(2)}), r"unknown: .*score\.weight"),
    "misshapen": (
        lambda t: t.update({f"{HEAD}.bias": torch.ones(7)}),
        r"misshapen: .*classifier\.bias is \(7,\), the model needs \(5,\)",
    ),
    "renamed": (
        lambda t: [t.update({k.replace("bert.", ""): t.pop(k)}) for k in list(t) if "bert." in k],
        r"missing: .*bert.*[\s\S]*unknown: ",
    ),
    "nan": (lambda t: t[f"{HEAD}.weight"].fill_(torch.nan), r"classifier\.weight holds NaN"),
    "inf": (lambda t: t[f"{HEAD}.bias"].fill_(torch.inf), r"classifier\.bias holds NaN or inf"),
    "integers": (lambda t: retype(t, torch.int64), "of the wrong kind: .*int64"),
    "complex": (lambda t: retype(t, torch.complex64), "of the wrong kind: .*complex64"),
    "float8": (lambda t: retype(t, torch.float8_e4m3fn), "of the wrong kind: .*float8"),
    "nothing": (lambda t: t.clear(), "missing"),
}


def retype(tensors: dict[str, torch.Tensor], dtype: torch.dtype) -> None:
    tensors[f"{HEAD}.bias"] = torch.ones(5).to(dtype)


@pytest.mark.parametrize("injected", [False, True])
@pytest.mark.parametrize("change", EDITS)
def test_a_file_that_does_not_fit_is_an_error_that_lists_why(change, injected, saved, make, state, same):
    """Property 43 and complaint 9: PEFT warns, ignores, or raises a bare KeyError."""
    edit(saved[0], EDITS[change][0])
    model = make("bert")
    model.bert.embeddings.requires_grad_(False)
    if injected:
        inject_lora(model, bias="all", adapter_name="first")
    before = state(model)
    with pytest.raises(ValueError, match=EDITS[change][1]) as error:
        load_adapter(model, saved[0])
    assert str(saved[0]) in str(error.value)
    assert same(before, state(model))
    assert hasattr(model, "lora_state") == injected


@pytest.mark.parametrize(
    ("kind", "why"), [("bert-encoder", "missing|matches nothing|unknown"), ("distilbert-text", "matches nothing")]
)
def test_an_adapter_of_another_model_is_refused(kind, why, saved, make, state, same):
    """Complaint 9: PEFT loads a token classifier's adapter into a bare encoder with a warning and no weights."""
    model = make(kind)
    before = state(model)
    with pytest.raises(ValueError, match=why):
        load_adapter(model, saved[0])
    assert same(before, state(model))


def test_other_label_counts_are_refused(saved, make, state, same):
    model = make("bert", num_labels=3)
    before = state(model)
    with pytest.raises(ValueError, match=r"classifier\.weight is \(5, 32\), the model needs \(3, 32\)"):
        load_adapter(model, saved[0])
    assert same(before, state(model))


def test_missing_files_are_named(saved, make, tmp_path):
    with pytest.raises(ValueError, match=r"adapter_config\.json does not exist"):
        load_adapter(make("bert"), tmp_path / "nowhere")
    (saved[0] / WEIGHTS).unlink()
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors does not exist"):
        load_adapter(make("bert"), saved[0])


def huge_header(data: bytes) -> bytes:
    return struct.pack("<Q", 2**62) + data[8:]


DAMAGE = {
    "empty": lambda data: b"",
    "one byte": lambda data: data[:1],
    "header only": lambda data: data[:100],
    "truncated": lambda data: data[:-5],
    "grown": lambda data: data + b"\0" * 64,
    "huge header": huge_header,
    "header of 90 MB": lambda data: struct.pack("<Q", 90_000_000) + data[8:],
    "not safetensors": lambda data: b"PK\x03\x04" + data,
    "zeros": lambda data: bytes(len(data)),
    "flipped header": lambda data: data[:8] + bytes(b ^ 0x55 for b in data[8:60]) + data[60:],
    "offsets": lambda data: data.replace(b'"data_offsets":[0,', b'"data_offsets":[9,', 1),
    "dtype": lambda data: data.replace(b'"F32"', b'"F99"', 1),
    "shape": lambda data: data.replace(b'"shape":[5', b'"shape":[6', 1),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_an_error_that_names_it(damage, saved, make, state, same):
    file = saved[0] / WEIGHTS
    data = DAMAGE[damage](file.read_bytes())
    assert data != file.read_bytes()
    file.write_bytes(data)
    model = make("bert")
    before = state(model)
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors is damaged"):
        load_adapter(model, saved[0])
    assert same(before, state(model))
    assert not hasattr(model, "lora_state")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(file=st.sampled_from([WEIGHTS, CONFIG]), where=st.floats(0, 1), bits=st.integers(1, 255), cut=st.booleans())
def test_any_damage_loads_sound_or_raises_value_error(
    file, where, bits, cut, saved, make, state, same, tmp_path_factory
):
    """A flipped byte or a cut anywhere: an adapter of finite numbers, or a ValueError and the model untouched."""
    folder = tmp_path_factory.mktemp("damaged")
    for name in (WEIGHTS, CONFIG):
        (folder / name).write_bytes((saved[0] / name).read_bytes())
    data = bytearray((folder / file).read_bytes())
    span = len(data) if file == CONFIG else 4000  # where the header of the weights lies
    place = int(where * (span - 1))
    data[place] ^= bits
    (folder / file).write_bytes(data[:place] if cut else data)
    model = make("bert")
    before = state(model)
    logging.disable(logging.WARNING)  # a damaged name of a field is an unknown field
    try:
        load_adapter(model, folder)
    except ValueError:
        assert same(before, state(model))
        return
    finally:
        logging.disable(logging.NOTSET)
    assert all(torch.isfinite(tensor).all() for tensor in lora_state_dict(model).values())
    assert not any(tensor.is_meta for tensor in model.state_dict().values())
    eject_lora(model)
    assert same(before, state(model))


@pytest.mark.parametrize(
    "idle",
    [
        {"target_modules": ["query", "value", "q_lin"]},
        {"exclude_modules": ["pooler.dense"]},
        {"exclude_modules": r".*pooler.*"},
        {"rank_pattern": {"key": 2}, "alpha_pattern": {"q_lin": 2, "value": 9}},
        {"layers_to_transform": [0, 1, 9], "target_modules": ["query", "value"]},
    ],
)
def test_names_in_a_file_of_peft_that_match_nothing_do_not_stop_it(idle, make, peft_model, randomise, run, tmp_path):
    """PEFT trains with such names, mostly silently; whether the file fits is told by its tensors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fields = {"target_modules": ["query", "value"], "task_type": "TOKEN_CLS", **idle}
        theirs = randomise(peft_model(make("bert"), r=4, **fields))
        theirs.save_pretrained(tmp_path)
    model = load_adapter(make("bert"), tmp_path)
    torch.testing.assert_close(run(model), run(theirs), atol=1e-5, rtol=1e-5)
    save_adapter(model, tmp_path / "again")
    assert torch.equal(run(load_adapter(make("bert"), tmp_path / "again")), run(model))


def test_a_config_that_contradicts_the_weights_is_refused(saved, make, state, same):
    config = LoRAConfig.load(saved[0])
    for fields in (
        {"r": 8},
        {"target_modules": ("query",)},
        {"bias": "none"},
        {"use_dora": True},
        {"modules_to_save": ()},
    ):
        dataclasses.replace(config, **fields).save(saved[0])
        model = make("bert")
        before = state(model)
        with pytest.raises(ValueError, match="does not fit"):
            load_adapter(model, saved[0])
        assert same(before, state(model))


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_files_have_the_permissions_that_the_users_umask_gives(umask, make, tmp_path):
    """Others may read an adapter in a shared folder, where the user lets them."""
    before = os.umask(umask)
    try:
        folder = save_adapter(inject_lora(make("bert")), tmp_path / "saved")
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert modes == {CONFIG: 0o666 & ~umask, WEIGHTS: 0o666 & ~umask}


def test_a_save_is_on_disk_before_it_replaces_the_old_one(make, tmp_path, monkeypatch):
    """Content first, then the name: a power cut leaves the old adapter or the new one."""
    model = inject_lora(make("bert"))
    save_adapter(model, tmp_path)
    events = []
    for name in ("fsync", "replace"):
        original = getattr(os, name)

        def note(*args, name=name, original=original):
            events.append(name)
            return original(*args)

        monkeypatch.setattr(os, name, note)
    save_adapter(model, tmp_path)
    assert events == ["fsync", "replace", "fsync"] * 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [CONFIG, WEIGHTS]


def test_a_failed_save_leaves_the_older_adapter(make, run, randomise, tmp_path, monkeypatch):
    """Never the weights of the one beside the config of the other."""
    older = randomise(inject_lora(make("bert"), lora_alpha=8))
    save_adapter(older, tmp_path)
    newer = randomise(inject_lora(make("bert"), lora_alpha=64), seed=9)
    monkeypatch.setattr(LoRAConfig, "to_json", lambda _: (_ for _ in ()).throw(OSError(28, "no room")))
    with pytest.raises(OSError, match="Make room there"):
        save_adapter(newer, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [CONFIG, WEIGHTS]
    assert torch.equal(run(load_adapter(make("bert"), tmp_path)), run(older))


def test_a_pickle_of_older_peft_is_read_and_runs_nothing(make, run, saved, tmp_path):
    wanted = run(load_adapter(make("bert"), saved[0]))
    torch.save(load_file(saved[0] / WEIGHTS), saved[0] / "adapter_model.bin")
    (saved[0] / WEIGHTS).unlink()
    assert torch.equal(run(load_adapter(make("bert"), saved[0])), wanted)

    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    torch.save({"key": Evil()}, saved[0] / "adapter_model.bin")
    with pytest.raises(ValueError, match="could run code"):
        load_adapter(make("bert"), saved[0])
    assert not (tmp_path / "ran").exists()


def test_embeddings_of_an_extended_vocabulary_come_with_the_adapter(make, peft_model, peft_load, randomise, tmp_path):
    """PEFT adds them to the file by itself, and says so nowhere in it."""

    def extended(seed):
        model = make("bert")
        torch.manual_seed(seed)
        model.resize_token_embeddings(64)  # new rows at random
        return model

    theirs = randomise(peft_model(extended(1), r=2, target_modules=["query"], modules_to_save=["classifier"]))
    theirs.save_pretrained(tmp_path / "theirs", save_embedding_layers=True)
    ids = torch.full((1, 4), 63)
    model = load_adapter(extended(2), tmp_path / "theirs")
    assert torch.equal(model(ids).logits, theirs(ids).logits)
    again = peft_load(extended(3), save_adapter(model, tmp_path / "ours"))
    assert torch.equal(again(ids).logits, theirs(ids).logits)


class Ends(nn.Module):
    """Where the path of one layer is the end of another's."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.proj, self.head = nn.Linear(8, 8), nn.ModuleDict({"proj": nn.Linear(8, 8)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head["proj"](self.proj(x))


def test_a_path_that_ends_another_means_itself_alone(randomise, peft_load, tmp_path):
    model = inject_lora(Ends(), target_modules="all-linear", exclude_modules=["head.proj"], modules_to_save=())
    randomise(model)
    save_adapter(model, tmp_path)
    x = torch.randn(2, 8)
    assert torch.equal(load_adapter(Ends(), tmp_path)(x), model(x))
    torch.testing.assert_close(peft_load(Ends(), tmp_path)(x), model(x))
