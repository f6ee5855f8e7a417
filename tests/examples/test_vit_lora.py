"""The example on some of scikit-learn's digits, on other images, and with a pretrained model, in short."""

import json
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

from lora_core.models import build_model, config_from_dict, load_pretrained, save_pretrained
from trainers.data.images import digits
from trainers.data.images.batches import ImageDataset
from trainers.data.images.npz import write_npz
from trainers.run_folder import read_run

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "vit_lora.py"
WRITTEN = ("ablation.md", "ablation.json", "confusion.png", "samples.png")


def run_here(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), *map(str, arguments)])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    return capsys.readouterr().out


def table(text):
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.fixture(autouse=True)
def few_digits(monkeypatch):
    monkeypatch.setattr(digits, "SHARES", {"train": 0.06, "validation": 0.04, "test": 0.1})


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A few grey pictures of two kinds."""
    random = np.random.default_rng(0)
    splits = {split: ImageDataset(random.integers(0, 256, (count, 28, 28), dtype=np.uint8), np.arange(count) % 2,
                                  ("no", "yes"), "")
              for split, count in {"train": 16, "validation": 4, "test": 6}.items()}  # fmt: skip
    path = tmp_path_factory.mktemp("data") / "kinds.npz"
    write_npz(path, splits)
    return path


def test_digits_and_the_table_again(monkeypatch, capsys, tmp_path):
    flags = ["--output-dir", tmp_path, "--base-epochs", "1", "--epochs", "1"]
    out = run_here(monkeypatch, capsys, *flags)
    rows = table(out)
    assert [row[:4] for row in rows[2:]] == [
        ["small ViT, random", "full", "", ""],
        ["small ViT, digits 0 to 4", "head only", "", ""],
        ["small ViT, digits 0 to 4", "LoRA", "8", "16"],
        ["small ViT, digits 0 to 4", "LoRA", "24", "48"],
        ["small ViT, digits 0 to 4", "full", "", ""],
    ]
    assert "digits_5_to_9.npz, test split" in out
    assert "no large pretrained model takes part" in out
    assert all(f"wrote {tmp_path / name}" in out and (tmp_path / name).is_file() for name in WRITTEN)
    trained = {
        name: read_run(tmp_path / name / "seed-42") for name in ("scratch", "head", "lora-r8", "lora-r24", "full")
    }
    base = str(tmp_path / "base" / "best")
    assert [run.config["model"] == base for run in trained.values()] == [False, True, True, True, True]
    assert trained["lora-r24"].result["trainable"] == 4 * 3 * 24 * 2 * 64 + 65 * 5
    assert trained["head"].result["trainable"] == 65 * 5
    assert read_run(tmp_path / "base").result["labels"] == list("01234")

    again = run_here(monkeypatch, capsys, *flags)
    assert table(again) == rows


def test_seeds_and_other_images(monkeypatch, capsys, tmp_path, images):
    out = run_here(monkeypatch, capsys, "--output-dir", tmp_path, "--base-epochs", "1", "--epochs", "1",
                   "--data", images, "--seeds", "2")  # fmt: skip
    assert all("±" in row[6] for row in table(out)[2:])
    assert "kinds.npz, test split" in out
    assert "t-interval of 2 seeds" in out
    first, second = (load_pretrained(tmp_path / "random" / f"seed-{seed}", "image-classification") for seed in (42, 43))
    assert not np.array_equal(first.classifier.weight.detach(), second.classifier.weight.detach())
    assert np.sum(json.loads((tmp_path / "ablation.json").read_text())[0]["confusion"]) == 2 * 6


def test_a_pretrained_model_is_trained_without_lora_and_with_it(monkeypatch, capsys, tmp_path, images):
    sizes = {"model_type": "vit", "image_size": 16, "patch_size": 8, "hidden_size": 16, "num_hidden_layers": 1,
             "num_attention_heads": 2, "intermediate_size": 16}  # fmt: skip
    save_pretrained(build_model(config_from_dict(sizes), "encoder"), tmp_path / "vit-tiny")
    out = run_here(monkeypatch, capsys, "--config", ROOT / "examples" / "vit_lora_in21k.toml",
                   "--model", tmp_path / "vit-tiny", "--output-dir", tmp_path / "runs",
                   "--data", images, "--image-size", "32")  # fmt: skip
    assert [row[:4] for row in table(out)[2:]] == [["vit-tiny", "LoRA", "8", "16"], ["vit-tiny", "LoRA", "24", "48"],
                                                   ["vit-tiny", "full", "", ""]]  # fmt: skip
    assert "small ViT" not in out
    config = read_run(tmp_path / "runs" / "full" / "seed-42").config
    assert (config["learning_rate"], config["batch_size"], config["epochs"]) == (1e-4, 32, 3)


def test_recipes_hold_known_settings_and_the_docstring_names_them_all():
    example = runpy.run_path(str(EXAMPLE))
    recipes = {path.relative_to(ROOT).as_posix() for path in EXAMPLE.parent.glob("vit_lora_*.toml")}
    assert set(re.findall(r"--config (\S+)", example["__doc__"])) == recipes
    for recipe in recipes:
        config = example["parse_run"](["--config", str(ROOT / recipe)], example["RECIPE"])
        assert config.output_dir == Path("runs") / Path(recipe).stem
        assert config.task == "image-classification"


def test_no_seeds_at_all(monkeypatch, capsys):
    with pytest.raises(SystemExit) as exit_:
        run_here(monkeypatch, capsys, "--seeds", "0")
    assert exit_.value.code == 2
    assert "seeds must be at least 1" in capsys.readouterr().err
