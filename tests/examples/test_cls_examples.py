"""The text classification examples on a few texts with a random model, in short."""

import dataclasses
import json
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import BertProcessing

from lora_core import parameter_counts
from lora_core.models import build_model, config_from_dict, save_pretrained
from trainers import model as model_module
from trainers.config import RunConfig
from trainers.run_folder import read_run

ROOT = Path(__file__).resolve().parents[2]
IMDB, NEWS = (ROOT / "examples" / f"cls_{name}.py" for name in ("imdb", "agnews"))
WORDS = {"good": ["fine", "warm", "kind"], "bad": ["dull", "cold", "rude"]}
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "a", *WORDS["good"], *WORDS["bad"]]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "bert-tiny"
    sizes = {"model_type": "bert", "vocab_size": len(VOCABULARY), "hidden_size": 16, "num_hidden_layers": 1,
             "num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 16}  # fmt: skip
    save_pretrained(build_model(config_from_dict(sizes), "encoder"), folder)
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "opinions"
    folder.mkdir()
    random = np.random.default_rng(0)
    for split, count in {"train": 40, "valid": 8, "test": 12}.items():
        rows = []
        for number in range(count):
            label = ("bad", "good")[number % 2]
            words = random.choice([*WORDS[label], "the", "a"], 6)
            rows.append(json.dumps({"text": " ".join(words), "label": label}))
        (folder / f"{split}.jsonl").write_text("\n".join(rows) + "\n")
    return folder


def run_here(monkeypatch, capsys, example, *arguments):
    monkeypatch.setattr(sys, "argv", [str(example), *map(str, arguments)])
    runpy.run_path(str(example), run_name="__main__")
    return capsys.readouterr().out


def tables(text):
    """The cells of each table that was printed."""
    return [[[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()]
            for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)]  # fmt: skip


def test_imdb(monkeypatch, capsys, tmp_path, model, texts):
    flags = ["--model", model, "--data", texts, "--output-dir", tmp_path, "--epochs", "2", "--train-examples", "20",
             "--test-examples", "8"]  # fmt: skip
    out = run_here(monkeypatch, capsys, IMDB, *flags)
    scores, memory = tables(out)
    assert [row[:2] for row in scores[2:]] == [
        ["bert-tiny, random head", "none"],
        ["bert-tiny, trained head", "head only"],
        ["bert-tiny, LoRA", "LoRA"],
        ["bert-tiny, full", "full"],
    ]
    assert [row[4].split()[0] for row in scores[2:4]] == ["0", "306"]  # pooler and classifier
    assert all("GB" in row[2] for row in memory[2:])
    assert "(100%)" in memory[-1][2]
    folders = [tmp_path / name / "seed-42" for name in ("untrained", "head", "lora", "full")]
    runs = [read_run(folder) for folder in folders]
    assert [run.result["epochs"] for run in runs] == [0, 2, 2, 2]
    assert all(np.sum(run.result["test"]["confusion"], axis=1).tolist() == [4, 4] for run in runs)
    assert runs[1].epochs[-1]["step"] == 4, "20 examples, batches of 16, 2 epochs"
    again = run_here(monkeypatch, capsys, IMDB, *flags)
    assert tables(again)[0] == scores


def test_agnews_with_every_model_and_more_seeds_later(monkeypatch, capsys, tmp_path, model, texts):
    words = tmp_path / "words.txt"
    words.write_text("fine\ndull\n")
    flags = ["--model", model, "--data", texts, "--output-dir", tmp_path / "runs", "--epochs", "1",
             "--scratch-epochs", "1", "--confusing-words", words]  # fmt: skip
    example = runpy.run_path(str(NEWS))
    names = list(example["ways"](example["RECIPE"]))
    scores, memory = tables(run_here(monkeypatch, capsys, NEWS, *flags, "--models", *names))
    assert [row[0] for row in scores[2:]] == names == [row[0] for row in memory[2:]]
    assert "(100%)" in memory[2][2]
    configs = {name: read_run(tmp_path / "runs" / name / "seed-42").config for name in names}
    assert configs["lora-textcnn"]["head"] == "textcnn"
    assert (configs["lora-penalty"]["head"], configs["lora-penalty"]["confusing_words"]) == ("attention", str(words))
    assert configs["lora-attention"]["confusing_words"] == ""
    assert configs["lora-awp"]["adversarial"] == "awp"
    assert configs["lora-eda"]["text_augment"] == "eda"
    assert (configs["lstm"]["model"], configs["lstm"]["method"]) == ("lstm", "full")
    (scores, *_) = tables(run_here(monkeypatch, capsys, NEWS, *flags, "--models", "lora-mlp", "--seeds", "2"))
    assert [row[0] for row in scores[2:]] == ["lora-mlp"]
    assert "±" in scores[2][5]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "bert", "gpt"], "models has ['gpt']; there are bert, bert-lora, lora-linear"),
        (["--models", "lora-penalty"], "lora-penalty needs --confusing-words FILE"),
        (["--seeds", "0"], "seeds must be at least 1"),
        (["--model", "lstm"], "--model names the encoder that the models share. To train this one: --models lstm"),
    ],
)
def test_what_agnews_cannot_do(monkeypatch, capsys, arguments, message):
    with pytest.raises(SystemExit) as exit_:
        run_here(monkeypatch, capsys, NEWS, *arguments)
    assert exit_.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_the_users_recipe_trains_147_456_parameters(monkeypatch):
    loaded = runpy.run_path(str(NEWS))
    config = loaded["parse_run"](["--config", str(ROOT / "examples" / "cls_agnews_bert.toml")], loaded["RECIPE"])
    bert = config_from_dict({"model_type": "bert"})
    labels = ("World", "Sports", "Business", "Sci/Tech")
    for name, trainable in {"bert-lora": 147_456, "bert": 109_485_316}.items():
        with torch.device("meta"):
            model = build_model(bert, "text-classification", labels)
        monkeypatch.setattr(model_module, "load_pretrained", lambda *_, model=model, **__: model)
        fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(RunConfig)}
        model_module.build(RunConfig(**fields | loaded["ways"](config)[name]), labels)
        assert parameter_counts(model)[0] == trainable


@pytest.mark.parametrize("example", [IMDB, NEWS])
def test_recipes_hold_known_settings_and_the_docstring_names_them_all(example):
    loaded = runpy.run_path(str(example))
    recipes = {path.relative_to(ROOT).as_posix() for path in example.parent.glob(f"{example.stem}_*.toml")}
    assert set(re.findall(r"--config (\S+)", loaded["__doc__"])) == recipes
    assert len(recipes) == 2
    for recipe in recipes:
        config = loaded["parse_run"](["--config", str(ROOT / recipe)], loaded["RECIPE"])
        assert config.output_dir == Path("runs") / Path(recipe).stem
        assert config.task == "text-classification"
