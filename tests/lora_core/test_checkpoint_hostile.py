"""Adapters that an enemy wrote: what they ask for is bounded, and compared with what their file holds."""

import json
import math
import os
import time

import pytest
from safetensors.torch import load_file, save_file

from lora_core import inject_lora, load_adapter, save_adapter

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


@pytest.mark.fault("an adapter that asks for endless work or memory", "refused before it is done", "none")
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"r": 60_000}, r"has the rank 60000, .* but adapter_model\.safetensors holds \d+"),
        ({"r": 10**7}, "r must be a whole number of 1 to 65536, but it is 10000000"),
        ({"r": 10**400}, "r must be a whole number of 1 to 65536"),
        ({"r": math.inf}, "r is inf, but it should be a whole number"),
        ({"r": True}, "r is True, but it should be a whole number"),
        ({"rank_pattern": {"value": 60_000}}, "value has the rank 60000"),
        ({"lora_alpha": 10**400}, "lora_alpha is 1000.*, but it should be a number"),
        ({"init_lora_weights": "pissa_niter_999999999"}, "the most iterations allowed are 1000"),
        ({"target_modules": "(a*)*" * 2000}, "a regular expression of 10,000 characters"),
        ({"target_modules": r"(bert.*)\1"}, "groupref"),
        ({"target_modules": ["query"] * 30_000}, "target_modules holds 30,000 entries"),
        ({"rank_pattern": {f"query{i}": 2 for i in range(30_000)}}, "rank_pattern holds 30,000 entries"),
        ({"layers_to_transform": list(range(10**6))}, "layers_to_transform holds 1,000,000 entries"),
        ({"layers_to_transform": list(range(15_000))}, None),  # those that the model has count, as in PEFT
        ({"target_modules": "(.*a*)*(query|value)"}, None),
    ],
)
def test_an_enemys_config_ends_at_once(fields, message, make, tmp_path):
    save_adapter(inject_lora(make("ours"), r=2), tmp_path)
    content = json.loads((tmp_path / CONFIG).read_text()) | {"target_modules": ["query", "value"]} | fields
    (tmp_path / CONFIG).write_text(json.dumps(content))
    model, started = make("ours"), time.perf_counter()
    if message is None:
        load_adapter(model, tmp_path)
    else:
        with pytest.raises(ValueError, match=message) as error:
            load_adapter(model, tmp_path)
        assert str(tmp_path) in str(error.value)
        assert len(str(error.value)) < 600
        assert not hasattr(model, "lora_state")
    assert time.perf_counter() - started < 5  # it takes a tenth of a second; without the bounds, hours


@pytest.mark.fault("a pipe in the place of an adapter's file", "refused at once", "none")
@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
def test_a_pipe_is_no_file(name, make, tmp_path):
    save_adapter(inject_lora(make("ours"), r=2), tmp_path)
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    with pytest.raises(ValueError, match=f"{name} is a pipe, a socket or a device instead of a file"):
        load_adapter(make("ours"), tmp_path)


def test_every_tensor_that_holds_nan_is_named(make, tmp_path):
    save_adapter(inject_lora(make("ours"), r=2), tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    names = sorted(tensors)[:2]
    for name in names:
        tensors[name][0] = math.nan
    save_file(tensors, tmp_path / WEIGHTS)
    with pytest.raises(ValueError, match=r"was not loaded: .* hold NaN or infinity") as error:
        load_adapter(make("ours"), tmp_path)
    assert all(name in str(error.value) for name in names)
