"""A finished run takes inputs as it was trained to, whatever has become of its checkpoint's files since."""

import json
import shutil

import numpy as np
import pytest

import trainers
from trainers.finished import FinishedRun, evaluate_run
from trainers.notebook import TrainedRun
from trainers.run_folder import read_run


@pytest.fixture
def moved(tmp_path):
    """`moved(run)`: a copy of a finished run whose checkpoint is a copy too, which may be spoilt."""

    def copy(folder):
        run, base = shutil.copytree(folder, tmp_path / "run"), tmp_path / "base"
        config = json.loads((run / "config.json").read_text())
        shutil.copytree(config["model"], base)
        (run / "config.json").write_text(json.dumps(config | {"model": str(base)}))
        return run, base

    return copy


def spoil_tokenizer(base):
    """Other ids for all words, upper case, a space before each text, and a shorter limit."""
    path = base / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    words = [word for word in vocabulary if not word.startswith("[")]
    tokenizer["model"]["vocab"] = vocabulary | {
        word: vocabulary[other] for word, other in zip(words, reversed(words), strict=True)
    }
    tokenizer["normalizer"] = {"type": "Prepend", "prepend": "the "}
    path.write_text(json.dumps(tokenizer))
    (base / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 5, "truncation_side": "left"}))


def same_scores(run):
    """Whether the test split is scored as when the run ended."""
    scores, trained = evaluate_run(run), read_run(run).result["test"]
    return all(scores[name] == pytest.approx(trained[name], abs=1e-6) for name in ("loss", "f1"))


@pytest.mark.parametrize("method", ["lora", "full", "head"])
def test_words_are_cut_with_the_tokenizer_that_the_run_saved(method, finished, moved):
    run, base = moved(finished[method])
    spoil_tokenizer(base)
    assert same_scores(run)


def test_texts_are_cut_with_the_tokenizer_and_the_limit_that_the_run_saved(finished_text, moved):
    run, base = moved(finished_text)
    before = FinishedRun.open(run)
    probabilities = before.probabilities(before.split("test"))
    spoil_tokenizer(base)
    assert same_scores(run)
    after = FinishedRun.open(run)
    np.testing.assert_array_equal(after.probabilities(after.split("test")), probabilities)


def test_pictures_are_prepared_as_the_run_saved_it(finished_image, moved):
    run, base = moved(finished_image)
    path = base / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"image_mean": [0, 0, 0], "image_std": [9, 9, 9]}))
    assert same_scores(run)


@pytest.mark.parametrize("kind", ["words", "pictures"])
def test_an_old_run_that_saved_nothing_takes_the_checkpoints_files_and_says_so(
    kind, finished, finished_image, moved, caplog
):
    run, base = moved(finished["lora"] if kind == "words" else finished_image)
    name = "tokenizer.json" if kind == "words" else "preprocessor_config.json"
    (run / "adapter" / name).unlink()
    (run / "adapter" / "text_processing.json").unlink(missing_ok=True)
    assert same_scores(run)
    assert f"its inputs are prepared as {base} says today" in caplog.text


def test_a_run_of_an_older_version_that_cut_texts_otherwise_keeps_its_own_way(finished_text, moved):
    run, _ = moved(finished_text)
    path = run / "adapter" / "tokenizer.json"
    saved = json.loads(path.read_text())
    saved["normalizer"] = {"type": "Prepend", "prepend": "gene "}  # as once a space stood before every text
    path.write_text(json.dumps(saved))
    finished = FinishedRun.open(run)
    encoded = finished.encode(finished.split("test"))
    gene = saved["model"]["vocab"]["gene"]
    assert (encoded.input_ids[encoded.offsets[:-1] + 1] == gene).all()


def test_what_python_saves_takes_inputs_as_the_run_does(finished_text, moved, tmp_path):
    run, base = moved(finished_text)
    spoil_tokenizer(base)
    files = read_run(run)
    trained = TrainedRun(**{name: getattr(files, name) for name in files.__dataclass_fields__})
    saved = trainers.pipeline(model=trained.save(tmp_path / "model"), top_k=None)
    texts = ["il2 binds the gene", "the promoter of junb in cells and a gene induces il2 and nfkb and the receptor"]
    for mine, its in zip(trained.predict(texts), saved(texts), strict=True):
        assert mine["label"] == its[0]["label"]
        assert mine["score"] == pytest.approx(its[0]["score"], abs=1e-5)


def test_what_python_saves_keeps_the_thresholds_of_several_labels(checkpoint, tmp_path):
    texts = [f"{word} binds {number}" for number in range(20) for word in ("il2", "gene")]
    labels = [["p"] if "il2" in text else ["d"] for text in texts]
    trained = trainers.train(
        {"text": texts, "labels": labels}, task="text-classification", model=str(checkpoint), epochs=1,
        output_dir=tmp_path / "run", fresh_head=True,
    )  # fmt: skip
    thresholds = trained.result["thresholds"]
    assert thresholds != {"d": 0.5, "p": 0.5}
    assert trainers.pipeline(model=trained.save(tmp_path / "model")).served.thresholds == thresholds
