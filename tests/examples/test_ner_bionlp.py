"""The example, on the sample data with a tiny model: two processes under torchrun, then again in this one."""

import importlib.util
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from trainers.data.tokens.reader import load_token_datasets
from trainers.run_folder import read_run

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "ner_bionlp.py"
SAMPLE = ROOT / "examples" / "data" / "biomedical"


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory):
    spec = importlib.util.spec_from_file_location("tiny", ROOT / "tests" / "trainers" / "tiny.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.write_checkpoint(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def flags(tiny_model, tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("runs") / "ner"
    return ["--model", str(tiny_model), "--output-dir", str(output_dir), "--epochs", "1", "--fresh-head"]


@pytest.fixture(scope="module")
def first(flags):
    """What the example prints under torchrun with two processes."""
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", EXAMPLE, *flags],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_here(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), *arguments])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    return capsys.readouterr().out


def table(text):
    return [line for line in text.splitlines() if line.startswith("|")]


def test_two_processes_train_twice_and_compare(first, flags):
    folder = Path(flags[3])
    assert [line.split("|")[1].strip(" -") for line in table(first)] == [
        *("run", "", "full", "lora"),
        *("settings that differ", "", "method", "learning_rate"),
    ]
    assert re.search(r"^\| full .*baseline.*\n\| lora ", first, flags=re.MULTILINE)
    assert {path.name for path in folder.iterdir()} == {
        "full",
        "lora",
        "comparison.md",
        "comparison.json",
        "comparison.png",
    }
    assert all(f"wrote {folder / name}" in first for name in ("comparison.md", "comparison.json", "comparison.png"))
    runs = {method: read_run(folder / method) for method in ("full", "lora")}
    for method, run in runs.items():
        assert run.result["processes"] == 2
        assert run.config["method"] == method
        assert len(run.epochs) == 1
        sentences = len(load_token_datasets(str(SAMPLE))["train"].words)
        assert run.epochs[0]["step"] >= sentences / run.config["batch_size"]
    assert runs["full"].result["trainable"] == runs["full"].result["total"]
    assert runs["lora"].result["trainable"] < runs["lora"].result["total"]
    assert runs["full"].config["learning_rate"] != runs["lora"].config["learning_rate"]


def test_the_sample_is_called_a_sample_and_the_real_command_named(first):
    assert "This is the sample" in first.split("\n")[0]
    (command,) = re.findall(r"torchrun (examples/\S+) --config (\S+)", first.split("|")[0])
    assert all((ROOT / path).is_file() for path in command)


def test_a_second_start_shows_the_table_again(first, flags, monkeypatch, capsys):
    log = Path(flags[3]) / "lora" / "metrics.jsonl"
    before = log.read_bytes()
    again = run_here(monkeypatch, capsys, *flags)
    assert table(again) == table(first)
    assert log.read_bytes() == before


def test_other_data_and_settings_in_one_process(tiny_model, tmp_path, monkeypatch, capsys):
    for split in ("train", "valid", "test"):
        lines = (SAMPLE / f"{split}.conll").read_text(encoding="utf-8").split("\n\n")[:20]
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / f"{split}.conll").write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    settings = tmp_path / "run.toml"
    settings.write_text(
        f"model = '{tiny_model}'\nfresh_head = true\nepochs = 1\nfull_learning_rate = 0.125\nbias = 'none'\n"
    )
    out = run_here(
        monkeypatch,
        capsys,
        "--config",
        str(settings),
        "--data",
        str(tmp_path / "data"),
        "--output-dir",
        str(tmp_path / "runs"),
    )
    assert "sample" not in out.split("|")[0]
    assert len(table(out)) == 8  # header, line, two runs; header, line, two settings
    config = json.loads((tmp_path / "runs" / "full" / "config.json").read_text())
    assert (config["learning_rate"], config["bias"]) == (0.125, "none")
    assert json.loads((tmp_path / "runs" / "lora" / "config.json").read_text())["learning_rate"] != 0.125


def test_a_wrong_flag_ends_with_status_2(monkeypatch, capsys):
    with pytest.raises(SystemExit) as exit_:
        run_here(monkeypatch, capsys, "--full-learning-rat", "1")
    assert exit_.value.code == 2
    assert "Did you mean --full-learning-rate?" in capsys.readouterr().err


def test_recipes_hold_known_settings_and_the_docstring_names_them_all():
    example = runpy.run_path(str(EXAMPLE))
    recipes = {path.relative_to(ROOT).as_posix() for path in EXAMPLE.parent.glob("ner_bionlp_*.toml")}
    assert set(re.findall(r"--config (\S+)", example["__doc__"])) == recipes
    for recipe in recipes:
        config = example["parse_run"](["--config", str(ROOT / recipe)], example["SAMPLE_RECIPE"])
        assert config.data != str(SAMPLE)
