import dataclasses
import json
import logging
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import lora_core
from lora_core.kernels.fused import product_dtype
from lora_core.models import load_pretrained
from trainers import experiment
from trainers.config import RunConfig
from trainers.data.tokenizer import load_tokenizer
from trainers.data.tokens.reader import load_token_datasets
from trainers.data.tokens.windows import TokenWindows, encode_tokens
from trainers.experiment import run
from trainers.finished import evaluate_run
from trainers.loop import evaluate
from trainers.model import build, load_model
from trainers.recipes import with_recipe
from trainers.run_folder import read_predictions, read_run
from trainers.tasks.token import TokenClassification, encode

METHODS = ("lora", "full", "head")


@pytest.fixture
def config(checkpoint, data, tmp_path):
    return RunConfig(model=str(checkpoint), data=str(data), output_dir=tmp_path / "run", epochs=1, batch_size=8)


def settings(finished, method):
    return RunConfig.from_dict(read_run(finished[method]).config, "config.json")


@pytest.mark.parametrize("method", METHODS)
def test_what_a_method_trains(config, tiny, checkpoint, method):
    model = build(dataclasses.replace(config, method=method, r=3), tiny.LABELS)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    head = {"classifier.weight", "classifier.bias"}
    everything = {name for name, _ in load_pretrained(checkpoint, "token-classification").named_parameters()}
    if method == "lora":
        assert head < trainable
        assert all(".lora_" in name for name in trainable - head)
        assert len(trainable - head) == 2 * 6 * 2  # A and B, of all linear layers: four of attention, two behind it
        assert all(3 in parameter.shape for name, parameter in model.named_parameters() if name in trainable - head)
    else:
        assert trainable == (everything if method == "full" else head)


def test_settings_reach_the_model_and_the_adapter(config, tiny):
    model = build(
        dataclasses.replace(config, hidden_dropout=0.25, attention_dropout=0.35, lora_alpha=6.0, use_rslora=True,
                            bias="lora_only", target_modules=("key",), lora_dropout=0.15), tiny.LABELS
    )  # fmt: skip
    assert (model.config.hidden_dropout_prob, model.config.attention_probs_dropout_prob) == (0.25, 0.35)
    folder = lora_core.save_adapter(model, config.output_dir)
    saved = json.loads((folder / "adapter_config.json").read_text())
    expected = {"r": 16, "lora_alpha": 6.0, "use_rslora": True, "bias": "lora_only", "lora_dropout": 0.15,
                "target_modules": ["key"], "base_model_name_or_path": config.model, "use_dora": False}  # fmt: skip
    assert {name: saved[name] for name in expected} == expected


def test_seed_decides_the_head_and_the_adapter(config, tiny):
    labels = (*tiny.LABELS, "B-RNA", "I-RNA")  # the checkpoint's head has other labels, so this one is fresh
    first, again, other = (
        dict(build(dataclasses.replace(config, seed=seed, model=bare(config)), labels).named_parameters())
        for seed in (1, 1, 2)
    )
    assert all(first[name].equal(again[name]) for name in first)
    different = {name for name in first if not first[name].equal(other[name])}
    assert "classifier.weight" in different
    assert any("lora_A" in name for name in different)
    assert all("lora_A" in name or "classifier" in name for name in different)


def bare(config):
    """The checkpoint without its head."""
    folder = config.output_dir.parent / "bare"
    shutil.copytree(config.model, folder, dirs_exist_ok=True)
    tensors = load_file(folder / "model.safetensors")
    save_file({name: t for name, t in tensors.items() if "classifier" not in name}, folder / "model.safetensors")
    values = json.loads((folder / "config.json").read_text())
    del values["id2label"], values["label2id"]
    (folder / "config.json").write_text(json.dumps(values))
    return str(folder)


def test_sentences_longer_than_the_model_are_cut(config, tiny, data):
    train = load_token_datasets(str(data))["train"]
    model = build(config, tiny.LABELS)
    for max_length, limit in ((None, tiny.MAX_TOKENS), (9, 9)):
        windows = encode(train, model, dataclasses.replace(config, max_length=max_length))
        assert windows.lengths.max() == limit
        assert len(windows) > len(train.words)
        assert windows.label_counts.sum() == sum(map(len, train.words))
    with pytest.raises(ValueError, match=r"max_length is 25, but .* has positions for 24 tokens"):
        encode(train, model, dataclasses.replace(config, max_length=25))


# Finished runs


@pytest.mark.parametrize("method", METHODS)
def test_the_run_folder(finished, method):
    folder = finished[method]
    saved = "adapter" if method == "lora" else "best"
    assert {path.name for path in folder.iterdir()} == {
        "config.json",
        "inputs.json",
        "run.toml",
        "metrics.jsonl",
        "checkpoints",
        "predictions",
        saved,
    }
    best = read_run(folder).result["best_epoch"]
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {f"step-{3 * steps(folder)}", f"best-{best}"}
    assert (folder / saved / "tokenizer.json").is_file()


def steps(folder):
    return read_run(folder).epochs[0]["step"]


@pytest.mark.parametrize("method", METHODS)
def test_the_saved_model_has_the_logged_scores(finished, alone, tiny, checkpoint, data, method):
    """The oracle puts the saved files together by hand: base, adapter, data, windows, loop."""
    folder = finished[method]
    if method == "lora":
        model = load_pretrained(checkpoint, "token-classification", tiny.LABELS)
        lora_core.load_adapter(model, folder / "adapter")
    else:
        model = load_pretrained(folder / "best", "token-classification")
    saved = folder / ("adapter" if method == "lora" else "best")
    test = load_token_datasets(str(data))["test"]
    windows = encode_tokens(test.words, test.tags, load_tokenizer(saved), tiny.MAX_TOKENS, 0)
    result = read_run(folder).result
    scores = evaluate(model, TokenClassification(tiny.LABELS), windows, settings(finished, method), alone)
    evaluated = evaluate_run(folder)  # by fused layers, the oracle by plain ones
    assert evaluated == {**scores, "loss": pytest.approx(scores["loss"], abs=1e-5)}
    assert scores.pop("loss") == pytest.approx(result["test"].pop("loss"), abs=1e-5)
    assert scores == result["test"]
    loaded = load_model(settings(finished, method), tiny.LABELS)
    assert all(a.equal(b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))
    assert not loaded.training
    assert product_dtype(loaded) is None


@pytest.mark.parametrize("method", METHODS)
def test_the_result(finished, tiny, data, method):
    result = read_run(finished[method]).result
    model = build(settings(finished, method), tiny.LABELS)
    assert (result["trainable"], result["total"]) == lora_core.parameter_counts(model)
    assert result["labels"] == list(tiny.LABELS)
    assert result["processes"] == 1
    assert result["epochs"] == 3
    epochs = read_run(finished[method]).epochs
    best = min(epochs, key=lambda event: event["validation"]["loss"])
    assert result["best_epoch"] == best["epoch"]
    assert result["validation"] == best["validation"]
    assert result["seconds"] == pytest.approx(sum(event["seconds"] for event in epochs))
    tokens = [event["seconds"] * event["tokens_per_second"] for event in epochs]
    assert result["tokens_per_second"] == pytest.approx(sum(tokens) / result["seconds"])
    train = load_token_datasets(str(data))["train"]
    windows = encode(train, model, settings(finished, method))
    assert np.allclose(tokens, windows.lengths.sum())
    assert result["peak_memory_bytes"] > 2**24


def test_training_learns(finished):
    """The words of the data tell their tags, so full training must come near to a perfect score."""
    epochs = read_run(finished["full"]).epochs
    assert read_run(finished["full"]).result["test"]["f1"] > 0.9
    assert epochs[-1]["train_loss"] < 0.6 * epochs[0]["train_loss"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_fused_layers_learn_what_the_plain_ones_do(config, method, precision):
    """Without dropout, whose random numbers differ, losses and predictions do not."""
    runs = {}
    for kernels in ("fused", "plain"):
        changes = {"kernels": kernels, "precision": precision, "learning_rate": 1e-3, "epochs": 2, "metric": "loss",
                   "hidden_dropout": 0.0, "lora_dropout": 0.0}  # fmt: skip
        folder = config.output_dir / kernels
        runs[kernels] = run(dataclasses.replace(config, method=method, bias="all", output_dir=folder, **changes))
    fused, plain = ([(e["train_loss"], e["validation"]["loss"]) for e in runs[k].epochs] for k in ("fused", "plain"))
    assert fused == [pytest.approx(losses, abs=1e-5 if precision == "fp32" else 3e-3) for losses in plain]
    if precision == "fp32":
        for split in ("validation", "test"):
            found, expected = (read_predictions(config.output_dir / k, split)[0] for k in ("fused", "plain"))
            assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


def test_no_file_of_a_run_says_int8_where_it_was_not_computed(config, tmp_path, caplog, monkeypatch):
    here = dataclasses.replace(config, method="lora", epochs=1, frozen="int8", resume="auto", output_dir=tmp_path / "a")
    monkeypatch.setattr(experiment, "unsupported", lambda device: f"no int8 on this {device}")
    run(here)
    assert caplog.text.count("--frozen int8 is left out: no int8 on this cpu") == 1
    assert read_run(here.output_dir).config["frozen"] is None
    assert "int8" not in (here.output_dir / "adapter" / "README.md").read_text()
    run(here)  # the same command again finds its run
    assert "nothing is left to do" in caplog.text


def test_a_run_in_int8_goes_on_where_it_is_not_computed(config, tmp_path, monkeypatch):
    begun = dataclasses.replace(config, method="lora", epochs=1, frozen="int8", output_dir=tmp_path / "a")
    monkeypatch.setattr(experiment, "unsupported", lambda device: None)
    run(begun)
    monkeypatch.setattr(experiment, "unsupported", lambda device: "no int8")
    run(dataclasses.replace(begun, resume="auto"))
    assert read_run(begun.output_dir).config["frozen"] == "int8"


def test_evaluate_on_other_data_matches_labels_by_name(finished, tiny, data, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(data, other)
    order = [*reversed(tiny.LABELS)]
    (other / "label.json").write_text(json.dumps({label: index for index, label in enumerate(order)}))
    rows = [json.loads(line) for line in (data / "test.json").read_text().splitlines()]
    for row in rows:
        row["tags"] = [order.index(tiny.LABELS[tag]) for tag in row["tags"]]
    (other / "test.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert evaluate_run(finished["full"], str(other)) == evaluate_run(finished["full"])

    renamed = {label.replace("DNA", "RNA"): index for index, label in enumerate(order)}
    (other / "label.json").write_text(json.dumps(renamed))
    with pytest.raises(ValueError, match=r"labels that are not among .*B-DNA.*B-RNA"):
        evaluate_run(finished["full"], str(other))


@pytest.mark.parametrize("method", METHODS)
def test_a_checkpoint_whose_head_has_other_labels(config, tiny, data, tmp_path, method):
    other = shutil.copytree(data, tmp_path / "other")
    names = [label.replace("DNA", "RNA") for label in tiny.LABELS]
    (other / "label.json").write_text(json.dumps({label: index for index, label in enumerate(names)}))
    changed = dataclasses.replace(config, data=str(other), method=method)
    with pytest.raises(ValueError, match=r"B-RNA.*B-DNA.*fresh_head"):
        run(changed)
    result = run(dataclasses.replace(changed, fresh_head=True)).result
    assert result["labels"] == names
    scores = evaluate_run(changed.output_dir)
    assert scores.pop("loss") == pytest.approx(result["test"].pop("loss"), abs=1e-5)
    assert scores == result["test"]


# Beginning and going on


def test_a_folder_with_a_run_is_not_written_over(finished):
    config = settings(finished, "head")
    before = (finished["head"] / "metrics.jsonl").read_bytes()
    with pytest.raises(ValueError, match=r"holds a run already\. Add --resume auto"):
        run(config)
    assert (finished["head"] / "metrics.jsonl").read_bytes() == before


def test_a_finished_run_is_read_and_not_repeated(finished, caplog, monkeypatch):
    monkeypatch.setattr("trainers.experiment.fit", None)
    files = {path: path.stat().st_mtime_ns for path in finished["head"].rglob("*")}
    with caplog.at_level(logging.WARNING, "trainers"):
        again = run(dataclasses.replace(settings(finished, "head"), resume="auto"))
    assert again == read_run(finished["head"])
    assert f"The run in {finished['head']} is finished; nothing is left to do." in caplog.text
    assert {path: path.stat().st_mtime_ns for path in finished["head"].rglob("*")} == files


def test_other_settings_than_the_run_was_begun_with(finished):
    config = dataclasses.replace(settings(finished, "head"), resume="auto", epochs=9, target_modules=("key",))
    with pytest.raises(ValueError, match="begun with other settings") as error:
        run(config)
    assert "epochs was 3, now 9" in str(error.value)
    assert "target_modules was ['qv'], now ['key']" in str(error.value)
    assert "learning_rate" not in str(error.value)


def test_a_run_from_before_a_setting_had_its_default(finished, tmp_path):
    older = shutil.copytree(finished["head"], tmp_path / "older")
    written = json.loads((older / "config.json").read_text())
    del written["train_head"], written["focal_gamma"]
    (older / "config.json").write_text(json.dumps(written))
    config = dataclasses.replace(settings(finished, "head"), resume="auto", output_dir=older)
    assert run(config).result == read_run(finished["head"]).result
    with pytest.raises(ValueError, match=r"focal_gamma was 0.0, now 2.0"):
        run(dataclasses.replace(config, focal_gamma=2.0))


@pytest.mark.parametrize("change", [{"micro_batch_size": 1}, {"keep_checkpoints": 5}, {"checkpoint_steps": 2}])
def test_settings_that_do_not_change_the_result_may_change(finished, change):
    run(dataclasses.replace(settings(finished, "head"), resume="auto", **change))


def test_a_test_split_is_scored_when_it_is_asked_for(config, finished):
    config = dataclasses.replace(settings(finished, "full"), output_dir=config.output_dir, score_test=False)
    left = run(config).result
    assert "test" not in left
    assert "test" not in config.output_dir.joinpath("inputs.json").read_text()
    assert run(dataclasses.replace(config, resume="auto")).result == left
    scored = run(dataclasses.replace(config, resume="auto", score_test=True)).result
    expected = read_run(finished["full"]).result
    assert scored["test"] == expected["test"]
    assert scored["files"] == expected["files"]
    shutil.rmtree(config.output_dir / "checkpoints")
    assert run(dataclasses.replace(config, resume="auto", score_test=True)).result == scored


def test_a_test_split_that_can_no_longer_be_scored(config, finished):
    config = dataclasses.replace(settings(finished, "full"), output_dir=config.output_dir, score_test=False)
    run(config)
    shutil.rmtree(config.output_dir / "checkpoints")
    with pytest.raises(ValueError, match=r"test split is not scored, and there is no checkpoint.*lora-core evaluate"):
        run(dataclasses.replace(config, resume="auto", score_test=True))


def test_a_run_folder_may_be_moved(finished, tmp_path):
    moved = shutil.copytree(finished["head"], tmp_path / "moved")
    again = run(dataclasses.replace(settings(finished, "head"), resume="auto", output_dir=moved))
    assert again.result == read_run(finished["head"]).result


def test_a_run_is_begun_anew_where_one_lies_and_nothing_else_is_touched(config, finished, tmp_path):
    old = shutil.copytree(finished["head"], tmp_path / "old")
    (old / "notes.txt").write_text("mine")
    config = dataclasses.replace(config, output_dir=old)
    with pytest.raises(ValueError, match=r"holds a run already.*--overwrite"):
        run(config)
    with pytest.raises(ValueError, match="nowhere-at-all"):
        run(dataclasses.replace(config, data="nowhere-at-all", overwrite=True))
    assert read_run(old).result == read_run(finished["head"]).result
    again = run(dataclasses.replace(config, overwrite=True))
    assert len(again.epochs) == 1
    assert (old / "notes.txt").read_text() == "mine"
    assert (old / "adapter").is_dir()
    assert not (old / "best").exists()
    with pytest.raises(ValueError, match="overwrite deletes the run that resume"):
        dataclasses.replace(config, overwrite=True, resume="auto")


def test_the_learning_rate_follows_what_is_trained(config):
    rates = {method: with_recipe(dataclasses.replace(config, method=method)).learning_rate for method in METHODS}
    assert rates == {"lora": 2e-3, "full": 1e-4, "head": 1e-3}
    scratch = dataclasses.replace(config, method="full", model="lstm")
    assert with_recipe(scratch).learning_rate == 1e-3
    assert with_recipe(dataclasses.replace(config, learning_rate=3e-5)).learning_rate == 3e-5
    assert run(dataclasses.replace(config, epochs=0)).config["learning_rate"] == 2e-3


def test_a_run_that_finds_nothing_is_told_so_after_its_first_epoch_and_its_last(config, caplog, monkeypatch):
    monkeypatch.setattr("trainers.loop.evaluate", lambda *_: {"loss": 1.0, "f1": 0.0})
    run(dataclasses.replace(config, epochs=3))
    first, last = [message for message in caplog.messages if "the validation f1 is 0" in message]
    assert first.startswith("After the first epoch")
    assert last.startswith("At the end of training")
    assert "than 0.002 (--learning-rate)" in first


def test_resume_from_a_path_outside_the_run(config, finished):
    (checkpoint,) = finished["head"].glob("checkpoints/step-*")
    with pytest.raises(ValueError, match=r"is not a checkpoint of .*run.*--output-dir"):
        run(dataclasses.replace(config, resume=str(checkpoint)))
    with pytest.raises(ValueError, match=r"holds no run to resume: it has no config\.json"):
        run(dataclasses.replace(config, resume=str(config.output_dir / "checkpoints" / "step-3")))
    assert not config.output_dir.exists()


def test_a_mistake_leaves_no_run_behind(config, data):
    for change in ({"data": "nowhere-at-all"}, {"target_modules": ("nothing",)}, {"max_length": 99}):
        with pytest.raises(ValueError, match=r".+"):
            run(dataclasses.replace(config, **change))
        assert not config.output_dir.exists()


def test_data_without_validation(config, data, tmp_path, caplog):
    shutil.copytree(data, tmp_path / "short")
    (tmp_path / "short" / "valid.json").unlink()
    done = run(dataclasses.replace(config, data=str(tmp_path / "short"), epochs=0))
    assert {"validation", "test"} < done.result.keys()
    assert "no validation split; its" in caplog.text


def test_data_without_a_training_split(config, data, tmp_path):
    shutil.copytree(data, tmp_path / "short")
    (tmp_path / "short" / "train.json").unlink()
    with pytest.raises(ValueError, match="has no train split; it has validation, test"):
        run(dataclasses.replace(config, data=str(tmp_path / "short")))


def test_data_without_test_scores_validation_only(config, data, tmp_path):
    shutil.copytree(data, tmp_path / "short")
    (tmp_path / "short" / "test.json").unlink()
    result = run(dataclasses.replace(config, data=str(tmp_path / "short"))).result
    assert "test" not in result
    assert result["validation"]["loss"] > 0


def test_bad_rows_stop_the_run_or_are_skipped(config, data, tmp_path, caplog):
    shutil.copytree(data, tmp_path / "bad")
    with (tmp_path / "bad" / "train.json").open("a") as file:
        file.write('{"tokens": ["a"], "tags": [99]}\n')
    bad = dataclasses.replace(config, data=str(tmp_path / "bad"))
    with pytest.raises(ValueError, match=r"train\.json:22"):
        run(bad)
    run(dataclasses.replace(bad, on_bad_row="skip"))
    assert "train.json" in caplog.text


def test_windows_are_shared_by_training_and_evaluation(config, monkeypatch):
    """Every word of every split is trained on or predicted once, in one epoch."""
    seen = []
    collate = TokenWindows.collate

    def note(self, indices, epoch):
        inputs, labels = collate(self, indices)
        seen.append((torch.is_inference_mode_enabled(), int((labels >= 0).sum())))
        return inputs, labels

    monkeypatch.setattr(TokenWindows, "collate", note)
    run(config)
    words = {name: sum(map(len, split.words)) for name, split in load_token_datasets(config.data).items()}
    assert sum(count for evaluating, count in seen if not evaluating) == words["train"]
    # validation once after the epoch and once with the best weights
    assert sum(count for evaluating, count in seen if evaluating) == 2 * words["validation"] + words["test"]
