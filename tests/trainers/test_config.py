import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import tomli
from hypothesis import given
from hypothesis import strategies as st

from trainers.config import RESUME_MAY_CHANGE, RunConfig, TrainConfig


@pytest.mark.parametrize(
    "name", ["batch_size", "micro_batch_size", "group_by_length", "keep_checkpoints", "checkpoint_steps", "patience"]
)
def test_counts_start_at_one(name):
    TrainConfig(**{name: 1})
    with pytest.raises(ValueError, match=f"{name} must be at least 1, but it is 0"):
        TrainConfig(**{name: 0})


@pytest.mark.parametrize(
    ("settings", "tokens"),
    [
        ({"batch_size": 8}, 4 * 8 * 27),  # of the mean length, 26.5 tokens, rounded up
        ({"batch_size": 8, "micro_batch_size": 2}, 4 * 2 * 27),
        ({"batch_tokens": 500}, 2000),
        ({"batch_tokens": 500, "micro_batch_tokens": 100}, 400),
    ],
)
def test_an_evaluation_batch_takes_the_tokens_of_four_training_passes(settings, tokens):
    assert TrainConfig(**settings).evaluation_tokens(np.array([3, 50])) == tokens


def test_an_evaluation_of_nothing_has_room():
    assert TrainConfig(batch_size=8).evaluation_tokens(np.array([], dtype=np.int64)) == 4 * 8


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("learning_rate", value) for value in (0, -1e-3, float("nan"))],
        *[("warmup", value) for value in (-0.1, 1.0)],
        *[("weight_decay", value) for value in (-0.1, float("nan"))],
        ("max_grad_norm", -1.0),
        ("epochs", -1),
    ],
)
def test_numbers_out_of_range(name, value):
    with pytest.raises(ValueError, match=f"{name} .* but it is {value}"):
        TrainConfig(**{name: value})


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("epochs", "three", "a whole number"),
        ("epochs", 2.5, "a whole number"),
        ("epochs", True, "a whole number"),
        ("patience", "none", "a whole number"),
        ("learning_rate", "1e-3", "a number"),
        ("use_dora", 1, "true or false"),
        ("schedule", "exponential", "one of linear, cosine, constant"),
        ("precision", "fp8", "one of fp32, bf16, fp16"),
        ("method", "lore", "one of lora, full, head"),
        ("target_modules", "qv", "a list of strings"),
        ("target_modules", (1, 2), "a list of strings"),
        ("output_dir", 5, "a path"),
        ("model", 5, "a string"),
    ],
)
def test_a_value_of_another_type(name, value, expected):
    with pytest.raises(ValueError, match=rf"^{name} is .*, but it should be {expected}\.$"):
        RunConfig(**{name: value})
    if not isinstance(value, tuple):
        with pytest.raises(ValueError, match=rf"^run\.toml: {name} is .*, but it should be {expected}\.$"):
            RunConfig.from_dict({name: value}, "run.toml")


def test_an_integer_does_for_a_number():
    assert RunConfig.from_dict({"learning_rate": 1, "lora_alpha": 16}, "run.toml").lora_alpha == 16


def test_every_setting_survives_json():
    config = RunConfig(data="x", output_dir=Path("a/b"), target_modules=("query", "key"), patience=2, lora_alpha=8.0)
    values = json.loads(json.dumps(config.to_dict()))
    assert values.keys() == {field.name for field in dataclasses.fields(RunConfig)}
    assert RunConfig.from_dict(values, "config.json") == config


def test_an_unknown_setting_names_the_nearest():
    with pytest.raises(ValueError, match=r"run\.toml: unknown setting 'learn_rate'\. Did you mean 'learning_rate'\?"):
        RunConfig.from_dict({"learn_rate": 1e-3}, "run.toml")


def test_a_subclass_keeps_its_own_settings():
    @dataclasses.dataclass(frozen=True)
    class Longer(RunConfig):
        other_rate: float = 0.5

    assert Longer.from_dict({"other_rate": 0.25, "epochs": 2}, "x") == Longer(other_rate=0.25, epochs=2)
    with pytest.raises(ValueError, match="other_rate is 'a'"):
        Longer(other_rate="a")


def test_what_may_change_on_resume_are_settings():
    assert set(RESUME_MAY_CHANGE) < {field.name for field in dataclasses.fields(RunConfig)}


def test_parts_of_the_data_have_an_example():
    RunConfig(train_examples=1)
    with pytest.raises(ValueError, match="test_examples must be at least 1, but it is 0"):
        RunConfig(test_examples=0)


@given(st.text(max_size=20), st.lists(st.text(max_size=5), max_size=3), st.floats(0, 1, exclude_max=True))
def test_settings_return_from_toml(text, targets, share):
    config = RunConfig(data=text, target_modules=tuple(targets), warmup=share, micro_batch_size=3, use_dora=True)
    values = tomli.loads(config.to_toml())
    assert RunConfig.from_dict(values, "run.toml") == config
    assert values.keys().isdisjoint({"output_dir", "resume", "overwrite", "max_length"})
