"""LoRAConfig: its values, and adapter_config.json in both directions, with PEFT as the oracle."""

import dataclasses
import json
import logging
import math
import warnings
from pathlib import Path

import peft
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_core import LoRAConfig
from lora_core.config import CONFIG_FILE
from lora_core.patterns import Pattern

QUERY = "bert.encoder.layer.0.attention.self.query"


def peft_file(folder: Path, **fields) -> dict:
    """Write adapter_config.json by PEFT and return its content."""
    peft.LoraConfig(**fields).save_pretrained(str(folder))
    return json.loads((folder / CONFIG_FILE).read_text())


def test_scaling_is_alpha_over_r_or_over_root_r():
    """Property 8."""
    assert LoRAConfig(r=16, lora_alpha=24).scaling_of(QUERY) == 1.5
    assert LoRAConfig(r=16, lora_alpha=24, use_rslora=True).scaling_of(QUERY) == 6.0
    assert LoRAConfig(r=16).scaling_of(QUERY) == 1.0


@pytest.mark.parametrize(
    ("ranks", "alphas", "rank", "alpha"),
    [
        ({"query": 4}, {}, 4, 12),
        ({"query": 4}, {"query": 6.0}, 4, 6.0),
        ({"uery": 4}, {}, 8, 12),  # only whole names after a dot
        ({r"layer\.\d+\.attention\.self\.query": 2}, {r"layer\.1\..*": 5}, 2, 12),
        ({"^bert.*query": 2}, {".*": 3}, 2, 3),
        ({"value": 2, "query": 3}, {"value": 1}, 3, 12),
    ],
)
def test_rank_and_alpha_patterns_match_as_in_peft(ranks, alphas, rank, alpha):
    """Property 9."""
    from peft.utils.other import get_pattern_key

    config = LoRAConfig(r=8, lora_alpha=12, rank_pattern=ranks, alpha_pattern=alphas)
    assert (config.rank_of(QUERY), config.alpha_of(QUERY)) == (rank, alpha)
    assert ranks.get(get_pattern_key(ranks.keys(), QUERY), 8) == rank
    assert alphas.get(get_pattern_key(alphas.keys(), QUERY), 12) == alpha


@pytest.mark.parametrize("r", [0, -1, 2.0, True, "8", None])
def test_rank_must_be_a_positive_whole_number(r):
    """Property 10, for r and for rank_pattern."""
    with pytest.raises(ValueError, match=r"r (must|is .* should) be a whole number"):
        LoRAConfig(r=r)
    with pytest.raises(ValueError, match=r"rank_pattern.*(must be a whole number|should be whole numbers)"):
        LoRAConfig(rank_pattern={"query": r})


@pytest.mark.parametrize(
    ("names", "matched", "unmatched"),
    [
        (("query", "output.dense"), ["query", "a.query", "a.0.output.dense"], ["a.xquery", "query.a", "dense", ""]),
        (("a.b",), ["a.b", "x.a.b"], ["axb", "x.axb"]),  # a dot is a dot
        (r".*\.query", ["a.query"], ["query", "a.query.b"]),
        ((), [], ["", "a"]),
        (None, [], ["", "a", "None"]),
    ],
)
def test_a_pattern_is_a_regular_expression_or_ends_of_paths(names, matched, unmatched):
    pattern = Pattern(names)
    assert [path for path in (*matched, *unmatched) if pattern.matches(path)] == matched
    assert pattern.matches_any([*unmatched, *matched]) == bool(matched)
    assert all(pattern.contains(f"{path}.weight") for path in matched)
    assert not any(pattern.contains(f"{path}.weight") for path in unmatched if "query" not in path)


def test_orthogonal_start_refuses_an_odd_rank():
    """Property 7."""
    LoRAConfig(r=6, init_lora_weights="orthogonal")
    for fields in ({"r": 5}, {"r": 6, "rank_pattern": {"query": 3}}):
        with pytest.raises(ValueError, match="even rank"):
            LoRAConfig(init_lora_weights="orthogonal", **fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"lora_alpha": "16"},
        {"lora_alpha": math.nan},
        {"lora_dropout": 1.0},
        {"lora_dropout": -0.1},
        {"lora_dropout": "0.1"},
        {"bias": "some"},
        {"init_lora_weights": "gausian"},
        {"init_lora_weights": 3},
        {"use_dora": "yes"},
        {"target_modules": ["query", 3]},
        {"target_modules": "layer.(query"},
        {"rank_pattern": {"(": 2}},
        {"alpha_pattern": {"query": None}},
        {"layers_to_transform": ["0"]},
        {"layers_to_transform": [-1]},
        {"lora_bias": True, "use_dora": True},
        {"task_type": 3},
        {"layers_pattern": [1]},
        {"rank_pattern": ["query"]},
    ],
)
def test_a_wrong_value_is_refused_by_the_name_of_its_field(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        LoRAConfig(**fields)


def test_the_config_cannot_change_and_keeps_no_reference_to_what_it_was_given():
    """Complaint 5: PEFT alters the config that it is given."""
    names, ranks = ["query"], {"query": 2}
    config = LoRAConfig(target_modules=names, rank_pattern=ranks)
    names.append("value")
    ranks["value"] = 3
    assert config.target_modules == ("query",)
    assert config.rank_pattern == {"query": 2}
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.r = 4


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"r": 4, "lora_alpha": 2.5, "lora_dropout": 0.1, "target_modules": ["value", "query"], "bias": "all"},
        {"target_modules": r".*\.query", "exclude_modules": ["layer.1.query"], "modules_to_save": ["classifier"]},
        {"use_rslora": True, "rank_pattern": {"query": 2}, "alpha_pattern": {"query": 3}, "use_dora": True},
        {"layers_to_transform": [0, 2], "layers_pattern": "layer", "init_lora_weights": False},
        {"init_lora_weights": "pissa_niter_4", "base_model_name_or_path": "some/model", "revision": "main"},
        {"lora_bias": True, "init_lora_weights": True, "task_type": "TOKEN_CLS"},
    ],
)
def test_config_round_trips_through_its_file(fields, tmp_path):
    """Property 45."""
    config = LoRAConfig(**fields)
    config.save(tmp_path)
    read = LoRAConfig.load(tmp_path)
    filled = config.with_alphas()
    for field in dataclasses.fields(config):
        wanted, got = getattr(filled, field.name), getattr(read, field.name)
        if field.name == "init_lora_weights":
            wanted, got = filled.initialisation, read.initialisation
        assert (sorted(got) == sorted(wanted)) if isinstance(wanted, tuple) else got == wanted, field.name


def test_equal_configs_give_equal_files(tmp_path):
    """PEFT's order of target_modules changes with the hash seed."""
    for folder, names in (("a", ["value", "query", "key"]), ("b", ["key", "query", "value"])):
        (tmp_path / folder).mkdir()
        LoRAConfig(target_modules=names).save(tmp_path / folder)
    assert (tmp_path / "a" / CONFIG_FILE).read_bytes() == (tmp_path / "b" / CONFIG_FILE).read_bytes()


def test_peft_reads_our_file_without_a_warning(tmp_path):
    config = LoRAConfig(
        r=4,
        lora_alpha=6,
        lora_dropout=0.1,
        target_modules=["query", "value"],
        bias="lora_only",
        modules_to_save=["classifier"],
        rank_pattern={"value": 2},
        use_rslora=True,
        exclude_modules=["layer.0.query"],
        layers_to_transform=[1],
        use_dora=True,
    )
    config.save(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        theirs = peft.LoraConfig.from_pretrained(str(tmp_path))
    for name in ("r", "lora_alpha", "lora_dropout", "bias", "rank_pattern", "use_rslora", "use_dora"):
        assert getattr(theirs, name) == getattr(config, name), name
    for name in ("target_modules", "exclude_modules", "modules_to_save", "layers_to_transform"):
        assert set(getattr(theirs, name)) == set(getattr(config, name)), name


@pytest.mark.parametrize("lora_bias", [True, False])
def test_peft_accepts_every_start_that_we_write(lora_bias, tmp_path):
    """PEFT refuses lora_bias with a start that has a name, such as our default."""
    LoRAConfig(target_modules=["query"], lora_bias=lora_bias).save(tmp_path)
    assert peft.LoraConfig.from_pretrained(str(tmp_path)).lora_bias == lora_bias


def test_alpha_that_follows_the_rank_is_written_out(tmp_path):
    """Without lora_alpha the scaling is 1 at every rank; a file has no word for that."""
    config = LoRAConfig(r=8, rank_pattern={"query": 2, "value": 4}, alpha_pattern={"value": 12})
    config.save(tmp_path)
    for module in ("query", "key", "value"):
        read = LoRAConfig.load(tmp_path)
        assert read.scaling_of(f"layer.0.{module}") == config.scaling_of(f"layer.0.{module}")
    assert config.scaling_of("layer.0.query") == 1.0


def test_a_file_of_peft_full_of_defaults_is_read_silently(tmp_path, caplog):
    peft_file(tmp_path, r=4, lora_alpha=6, target_modules=["query", "value"], task_type="TOKEN_CLS")
    with caplog.at_level(logging.WARNING):
        config = LoRAConfig.load(tmp_path)
    assert not caplog.records
    assert (config.r, config.lora_alpha, sorted(config.target_modules)) == (4, 6, ["query", "value"])


def test_unknown_keys_are_named_once_and_ignored(tmp_path, caplog):
    """Property 45."""
    values = peft_file(tmp_path, target_modules=["query"])
    (tmp_path / CONFIG_FILE).write_text(json.dumps(values | {"from_the_future": 1}))
    with caplog.at_level(logging.WARNING):
        LoRAConfig.load(tmp_path)
    assert [record.getMessage().count("from_the_future") for record in caplog.records] == [1]


@pytest.mark.parametrize("field", ["alora_invocation_tokens", "target_parameters", "layer_replication"])
def test_a_feature_that_would_change_results_is_refused(field):
    with pytest.raises(ValueError, match=field):
        LoRAConfig.from_dict({"peft_type": "LORA", "r": 4, "target_modules": ["query"], field: [1]})


def test_a_config_in_a_language_of_its_own_round_trips_in_ascii(tmp_path):
    """PEFT reads the file in the encoding of the user's locale."""
    LoRAConfig(base_model_name_or_path="modèle").save(tmp_path)
    assert (tmp_path / CONFIG_FILE).read_bytes().isascii()
    assert LoRAConfig.load(tmp_path).base_model_name_or_path == "modèle"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON"),
        (b'{"peft_type": "LORA", "r": 4', "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"r": ' + b"9" * 5000 + b"}", "is not JSON"),
        (b"[1, 2]", "holds list instead of a JSON object"),
        (b"{}", "peft_type must be 'LORA'"),
        (b'{"peft_type": "IA3"}', "peft_type must be 'LORA'"),
        (b'{"peft_type": "LORA", "r": "4"}', "r is '4', but it should be a whole number"),
        (b'{"peft_type": "LORA", "target_modules": 7}', "target_modules"),
        (b'{"peft_type": "LORA", "rank_pattern": [1]}', "rank_pattern"),
        (b'{"peft_type": "LORA", "lora_dropout": {}}', "lora_dropout"),
    ],
)
def test_a_damaged_file_is_an_error_that_names_it(content, message, tmp_path):
    (tmp_path / CONFIG_FILE).write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        LoRAConfig.load(tmp_path)
    assert str(tmp_path / CONFIG_FILE) in str(error.value)


def test_a_missing_file_names_the_adapters_in_subfolders(tmp_path):
    """PEFT puts an adapter with a name of its own into a subfolder."""
    (tmp_path / "medical").mkdir()
    LoRAConfig().save(tmp_path / "medical")
    with pytest.raises(ValueError, match="medical"):
        LoRAConfig.load(tmp_path)


def test_a_failed_save_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    LoRAConfig(r=4).save(tmp_path)

    def full_disk(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr("os.replace", full_disk)
    with pytest.raises(OSError, match="No space"):
        LoRAConfig(r=16).save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [CONFIG_FILE]
    assert LoRAConfig.load(tmp_path).r == 4


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 40) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.sampled_from([f.name for f in dataclasses.fields(LoRAConfig)]), JSON, max_size=4))
def test_any_content_gives_a_config_or_a_value_error(values):
    try:
        config = LoRAConfig.from_dict({"peft_type": "LORA", **values})
    except ValueError:
        return
    assert math.isfinite(config.scaling_of(QUERY))
    json.dumps(config.to_dict(), allow_nan=False)
