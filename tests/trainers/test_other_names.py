"""Names of other libraries lead to settings that there are, and whose values are what is said."""

import dataclasses

import pytest

from trainers.config import RunConfig
from trainers.other_names import OURS, meant

FIELDS = {field.name.replace("_", "-") for field in dataclasses.fields(RunConfig)}


@pytest.mark.parametrize("other", OURS)
def test_every_other_name_leads_to_a_setting(other):
    name, *value = OURS[other].split()
    assert name in FIELDS
    assert other not in FIELDS or value == []
    for text in value:
        default = RunConfig.__dataclass_fields__[name.replace("-", "_")].default
        RunConfig(**{name.replace("-", "_"): text if default is None else type(default)(text)})
    assert meant(other.replace("-", "_").upper(), FIELDS) == OURS[other]


def test_names_that_are_like_ours_or_none():
    assert meant("epoch", FIELDS) == "epochs"
    assert meant("zzz", FIELDS) is None
    assert meant("lr", {"split", "data"}) is None


@pytest.mark.parametrize(("key", "near"), [("num_train_epochs", "epochs"), ("lora_r", "r"), ("bf16", "precision")])
def test_keys_of_files_and_keywords_too(key, near):
    with pytest.raises(ValueError, match=f"unknown setting '{key}'. Did you mean '{near}'"):
        RunConfig.from_dict({key: 1}, "run.toml")
