import json
import re
import shutil

import numpy as np
import pytest
import torch

import trainers.serve.export
from lora_core.export import OnnxModel, read_metadata
from lora_core.export import export_onnx as real_export
from trainers.cli import main
from trainers.finished import FinishedRun
from trainers.serve import pipeline
from trainers.serve.export import export_run, export_table


@pytest.fixture
def run(finished, tmp_path):
    """A copy of a run whose export may leave files."""
    return shutil.copytree(finished["lora"], tmp_path / "run")


def test_the_files_serve_by_themselves(run, tmp_path, capsys):
    main(["export", str(run)])
    table = capsys.readouterr().out
    assert "logits within" in table
    assert "f1 " in table or "points" in table
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("model.onnx", "model.int8.onnx"):
        shutil.move(run / name, moved / name)
    words = [["the", "il2", "gene"], ["junb"] * 40]
    expected = pipeline("ner", run).word_predictions(words)
    shutil.rmtree(run)
    found = pipeline("ner", moved / "model.onnx").word_predictions(words)
    for (ids, scores), (other_ids, other_scores) in zip(expected, found, strict=True):
        assert ids.tolist() == other_ids.tolist()
        np.testing.assert_allclose(scores, other_scores, atol=1e-5)
    for _, scores in pipeline("ner", moved / "model.int8.onnx").word_predictions(words):
        assert ((scores > 0) & (scores <= 1)).all()
    for name in ("model.onnx", "model.int8.onnx"):
        facts = read_metadata(moved / name)
        assert len(facts["run_config_sha256"]) == 64
        assert facts["run"] == "run"
        assert json.loads(facts["labels"]) == ["O", "B-protein", "I-protein", "B-DNA", "I-DNA"]
        assert "allowed" in json.loads(facts["parity"])
    assert json.loads(read_metadata(moved / "model.onnx")["parity"])["logits_within"] <= 1e-4
    parity = json.loads(read_metadata(moved / "model.int8.onnx")["parity"])
    assert (parity["metric"], parity["points_lost"] <= 0.5) == ("f1", True)


def test_only_checked_files_have_the_names_that_serve(run, monkeypatch):
    def interrupted(*args, **kwargs):
        assert not list(run.glob("*.onnx"))
        raise KeyboardInterrupt

    monkeypatch.setattr(trainers.serve.export, "verify_onnx", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export_run(run)
    assert not list(run.rglob("*.onnx"))


def test_settings_of_the_run_go_with_the_file(run):
    settings = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**settings, "max_length": 12}))
    files = export_run(run, quantize=False)
    assert [file.path.name for file in files] == ["model.onnx"]
    assert pipeline("ner", run / "model.onnx").served.max_length == 12


@pytest.fixture
def text_run(finished_text, tmp_path):
    return shutil.copytree(finished_text, tmp_path / "texts")


def test_a_text_run_is_exported_and_shortens_long_texts_as_in_training(text_run, monkeypatch):
    (path,) = [file.path for file in export_run(text_run, quantize=False)]
    words = ["il2", "nfkb", "promoter", "junb", "gene", *["the"] * 9, "enhancer", "site", "receptor", "of", "binds"]
    expected = ["[CLS]", *words[:5], *words[-5:], "[SEP]"]  # max_length is 12
    scores = []
    for source in (text_run, text_run / "adapter", path):
        classify = pipeline("text-classification", source, top_k=None)
        seen = []
        compute = classify.logits
        monkeypatch.setattr(
            classify,
            "logits",
            lambda inputs, seen=seen, compute=compute: seen.append(inputs["input_ids"]) or compute(inputs),
        )
        scores.append([found["score"] for found in classify(" ".join(words))])
        tokenizer = classify.served.tokenizer()
        assert [[tokenizer.id_to_token(token) for token in batch[0]] for batch in seen] == [expected]
    assert scores[1] == scores[0] == pytest.approx(scores[2], abs=1e-5)


def test_an_image_run_is_exported(finished_image, tmp_path):
    run = shutil.copytree(finished_image, tmp_path / "pictures")
    files = export_run(run, points_lost=100)
    pictures = sorted(str(path) for path in finished_image.parent.glob("data/test/*/*.png"))
    expected = pipeline("image-classification", run)(pictures)
    assert len(expected) == 7
    for file, tolerance in zip(files, (1e-5, 0.1), strict=True):
        found = pipeline("image-classification", file.path)(pictures)
        scores = [each["score"] for each in expected]
        assert [each["score"] for each in found] == pytest.approx(scores, abs=tolerance)


def test_logits_that_differ_delete_the_file_and_fail(run, monkeypatch, capsys):
    def damaged(model, path, **options):
        with torch.no_grad():
            model.classifier.bias[0] += 1e-3
        real_export(model, path, **options)
        with torch.no_grad():
            model.classifier.bias[0] -= 1e-3
        return path

    (run / "model.int8.onnx").write_bytes(b"of an earlier export")
    monkeypatch.setattr(trainers.serve.export, "export_onnx", damaged)
    with pytest.raises(SystemExit) as stopped:
        main(["export", str(run)])
    assert stopped.value.code == 2
    assert "deleted" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in run.glob("*.onnx")} == {"model.int8.onnx": b"of an earlier export"}


def test_a_failed_export_leaves_an_earlier_one_as_it_was(run, monkeypatch):
    """They are of the same model, and a service may be reading them."""
    for name in ("model.onnx", "model.int8.onnx", "model.onnx.data"):
        (run / name).write_bytes(b"of an earlier export")

    def full(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr(trainers.serve.export, "export_onnx", full)
    with pytest.raises(OSError, match="No space"):
        export_run(run)
    assert len(list(run.glob("*.onnx*"))) == 3


def test_int8_that_scores_worse_is_deleted_and_fails(run, monkeypatch, capsys):
    scores = iter([0.8, 0.792, 0.794])  # the model's, then the static file's and the dynamic one's
    monkeypatch.setattr(FinishedRun, "score", lambda self, model, data: next(scores))
    with pytest.raises(SystemExit) as stopped:
        main(["export", str(run)])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert re.search(r"int8 loses 0\.60 points of f1 on \d+ validation examples, at most 0\.5 may be lost", error)
    assert f"{run / 'model.onnx'}, in fp32, is there and checked" in error
    assert "--points-lost allows more" in error
    assert ".export-" not in error
    assert [path.name for path in run.glob("*.onnx")] == ["model.onnx"]
    for scales in ("static", "dynamic"):
        scores = iter([0.8, 0.794])
        with pytest.raises(ValueError, match=r"int8 loses 0\.60 points of f1 .*, at most 0\.5 may be lost"):
            export_run(run, activations=scales)
        assert [path.name for path in run.glob("*.onnx")] == ["model.onnx"]
    scores = iter([0.8, 0.794])
    main(["export", str(run), "--points-lost", "0.7"])
    assert "loses 0.60 points of f1 on validation data, static scales" in capsys.readouterr().out
    assert json.loads(read_metadata(run / "model.int8.onnx")["parity"])["allowed"] == 0.7


@pytest.mark.parametrize("static", [0.792, float("nan")])
def test_int8_falls_back_to_dynamic_scales_where_only_these_keep_the_metric(run, monkeypatch, caplog, static):
    scores = iter([0.8, static, 0.798])
    monkeypatch.setattr(FinishedRun, "score", lambda self, model, data: next(scores))
    _, int8 = export_run(run)
    lost = "nan" if static != static else "0.80"
    assert f"dynamic scales, which lose 0.20 points of f1; static ones lose {lost}, at most 0.5" in caplog.text
    assert int8.activations == "dynamic"
    assert int8.points_lost == pytest.approx(0.2)
    facts = read_metadata(run / "model.int8.onnx")
    assert facts["activations"] == "dynamic"
    assert json.loads(facts["parity"])["points_lost"] == int8.points_lost
    assert "calibration_split" not in facts
    caplog.set_level("INFO")
    pipeline("ner", run / "model.int8.onnx")
    assert "model.int8.onnx is int8 with dynamic scales: scores depend a little on the batch" in caplog.text


def test_static_scales_come_from_training_data_and_are_the_same_each_time(run, monkeypatch, caplog):
    monkeypatch.setattr(FinishedRun, "score", lambda self, model, data: 0.8)
    monkeypatch.setattr(trainers.serve.export, "CALIBRATION_INPUTS", 5)
    files = [export_run(run, activations=scales)[1] for scales in ("static", "auto", "dynamic")]
    assert [file.activations for file in files] == ["static", "static", "dynamic"]
    digests = []
    for flags in (["--activations", "static"], []):
        main(["export", str(run), *flags])
        facts = read_metadata(run / "model.int8.onnx")
        assert (facts["calibration_inputs"], facts["calibration_split"]) == ("5", "train")
        digests.append(facts["graph_sha256"])
    assert digests[0] == digests[1]
    caplog.set_level("INFO")
    pipeline("ner", run / "model.int8.onnx")
    assert "dynamic" not in caplog.text
    datasets = {name: split for name, split in FinishedRun.open(run).datasets.items() if name != "train"}
    monkeypatch.setattr(FinishedRun, "datasets", datasets)
    export_run(run)
    facts = read_metadata(run / "model.int8.onnx")
    assert facts["calibration_split"] == "validation"
    assert facts["graph_sha256"] != digests[0]
    with pytest.raises(ValueError, match="activations is 'statik'; expected one of auto, static, dynamic"):
        export_run(run, activations="statik")


@pytest.mark.parametrize("kind", ["lora", "text", "image"])
def test_a_result_does_not_depend_on_what_else_is_asked(kind, request, tmp_path):
    source = (
        request.getfixturevalue("finished")["lora"] if kind == "lora" else request.getfixturevalue(f"finished_{kind}")
    )
    run = shutil.copytree(source, tmp_path / "run")
    export_run(run, points_lost=100, activations="static")
    task = {"lora": "ner", "text": "text-classification", "image": "image-classification"}[kind]
    predict = pipeline(task, run / "model.int8.onnx")
    if kind == "image":
        inputs = sorted(str(path) for path in source.parent.glob("data/test/*/*.png"))
    else:
        words = ["the", "il2", "gene", "nfkb", "promoter", "junb", "binds", "of", "receptor"]
        inputs = [" ".join((words * 3)[start : start + length]) for start in range(9) for length in (1, 2, 5, 9, 17)]
    alone = [predict([each])[0] for each in inputs]
    random = np.random.default_rng(0)
    for size in (2, 5, len(inputs)):
        order = random.permutation(len(inputs))
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            assert predict([inputs[place] for place in chosen]) == [alone[place] for place in chosen]


def test_the_gate_of_int8_scores_both_models_on_the_same_validation_examples(run, monkeypatch):
    seen = []

    def score(self, model, data):
        seen.append((type(model), data))
        return 0.5

    monkeypatch.setattr(FinishedRun, "score", score)
    files = export_run(run, examples=4)
    assert [kind is OnnxModel for kind, _ in seen] == [False, True]
    assert seen[0][1] is seen[1][1]
    assert len(set(seen[0][1].sentence.tolist())) == 4
    assert files[1].points_lost == 0
    assert "+0.00 points" in export_table(files) or "-0.00 points" in export_table(files)


def test_score_is_that_of_the_run(run):
    finished = FinishedRun.open(run)
    data = finished.sample("validation", 1000)
    assert finished.score(finished.model, data) == pytest.approx(finished.run.result["validation"]["f1"])
    with pytest.raises(ValueError, match="has no tset split"):
        finished.sample("tset", 3)
    with pytest.raises(SystemExit):
        main(["export", str(run / "checkpoints")])
