import json
import shutil
import sys

import numpy as np
import pytest

import trainers.serve.bench
import trainers.serve.bench_worker
from lora_core.export import PointsLost, export_onnx, read_metadata
from trainers.cli import main
from trainers.finished import FinishedRun
from trainers.run_folder import read_run
from trainers.serve.bench import Variant, bench_run, bench_table, same_predictions
from trainers.serve.bench_worker import measure
from trainers.serve.export import export_run, is_exported
from trainers.serve.served import load_served


@pytest.fixture(scope="module")
def run(finished, tmp_path_factory):
    """A copy of a run without exports."""
    return shutil.copytree(finished["full"], tmp_path_factory.mktemp("bench") / "run")


@pytest.fixture
def in_one_process(monkeypatch):
    """Measures in this process, which is faster, without OpenVINO, which test_backends.py has; which variants were
    measured, and what they got."""
    seen = []

    def here(variant, work):
        seen.append((variant, work))
        return measure(work, str(variant.source), variant.device, variant.backend)

    monkeypatch.setattr(trainers.serve.bench, "_in_own_process", here)
    monkeypatch.setattr(trainers.serve.bench, "_openvino_capabilities", list)
    return seen


def test_the_verb_exports_measures_and_writes(run, in_one_process, capsys):
    main(["bench", str(run), "--rounds", "1", "--timed", "6", "--threads", "1"])
    out = capsys.readouterr().out
    written = json.loads((run / "bench.json").read_text())
    assert (run / "bench.png").read_bytes().startswith(b"\x89PNG")
    names = [variant["name"] for variant in written["variants"]][:3]
    assert names == ["PyTorch", "ONNX fp32", "ONNX int8 static"]
    first, fp32, int8 = written["variants"][:3]
    for variant in (first, fp32, int8):
        assert variant["device"] == "cpu"
        for name in ("size_bytes", "load_seconds", "process_bytes", "latency_p50_ms",
                     "examples_per_second_unsorted", "examples_per_second_sorted"):  # fmt: skip
            assert variant[name] > 0, name
        assert variant["latency_p50_ms"] <= variant["latency_p95_ms"]
        assert f"{variant['name']}, cpu" in out
    assert fp32["size_bytes"] == (run / "model.onnx").stat().st_size > int8["size_bytes"]
    assert (first["providers"], int8["providers"]) == (None, ["CPUExecutionProvider"])
    assert first["identical"] == fp32["identical"] == written["compared"] == written["scored"] == 9
    test = read_run(run).result["test"]
    assert first["scores"]["f1"] == fp32["scores"]["f1"] == pytest.approx(test["f1"])
    assert written["timed"] == 6
    assert all(work.threads == 1 for _, work in in_one_process)


@pytest.mark.parametrize("kind", ["text", "image"])
def test_runs_of_texts_and_of_images(kind, request, tmp_path, in_one_process):
    run = shutil.copytree(request.getfixturevalue(f"finished_{kind}"), tmp_path / "run")
    for file in export_run(run, points_lost=100):
        assert file.size > 0
    comparison = bench_run(run, timed=5, limit=6, rounds=1)
    assert (comparison.scored, comparison.timed, comparison.compared, comparison.metric) == (6, 5, 6, "f1")
    assert [variant.identical for variant in comparison.variants[:2]] == [6, 6]
    assert all(0 <= variant.scores["accuracy"] <= 1 for variant in comparison.variants)


def test_int8_that_loses_too_much_is_left_out_and_the_rest_is_measured(
    finished, tmp_path, monkeypatch, caplog, in_one_process
):
    run = shutil.copytree(finished["full"], tmp_path / "run")
    with monkeypatch.context() as patched:
        patched.setattr(trainers.serve.export, "verify_score", lose_three_points)
        comparison = bench_run(run, timed=2, limit=2, rounds=1)
        assert "int8 is left out:" in caplog.text
        assert "loses 3.00 points" in caplog.text
        assert {variant.file for variant in comparison.variants} == {"", "model.onnx"}
        comparison = bench_run(run, timed=2, limit=2, rounds=1, points_lost=3.5)
    assert "model.int8.onnx" in {variant.file for variant in comparison.variants}


def lose_three_points(path, score, reference, *, limit_points):
    if limit_points < 3:
        raise PointsLost("it loses 3 points", 3.0)
    return 3.0


def test_examples_with_other_predictions_are_counted(run, monkeypatch):
    figures = dict.fromkeys(["load_seconds", "latency_p50_ms", "latency_p95_ms", "examples_per_second_unsorted",
                             "examples_per_second_sorted"], 1.0)  # fmt: skip
    figures |= {"memory_bytes": 1, "process_bytes": 1, "device_memory_bytes": None, "providers": None,
                "scores": {"f1": 0.5}}  # fmt: skip
    answers = iter([[[0, 1], [2], [0], [1]], [[0, 1], [2], [0], [0]], [[0, 1], [1], [2], [0]]])

    def fake(variant, work):
        return figures, [np.array(ids) for ids in next(answers)]

    monkeypatch.setattr(trainers.serve.bench, "_in_own_process", fake)
    monkeypatch.setattr(
        trainers.serve.bench, "_variants", lambda folder: [Variant(name, folder, "cpu", "torch") for name in "abc"]
    )
    monkeypatch.setattr(trainers.serve.bench, "COMPARED", 3)
    comparison = bench_run(run, limit=4, timed=2)
    assert (comparison.compared, [variant.identical for variant in comparison.variants]) == (3, [3, 3, 1])
    assert "same of 3" in bench_table(comparison)


def test_a_process_of_its_own_gives_the_same_predictions(run, monkeypatch):
    monkeypatch.setattr(
        trainers.serve.bench, "_variants", lambda folder: [Variant("ONNX", folder / "model.onnx", "cpu", "onnx")]
    )
    collected = []
    real = trainers.serve.bench._in_own_process

    def spy(variant, work):
        figures, predictions = real(variant, work)
        collected.append((work, predictions))
        return figures, predictions

    monkeypatch.setattr(trainers.serve.bench, "_in_own_process", spy)
    comparison = bench_run(run, limit=5, timed=4, rounds=1, threads=1)
    ((work, predictions),) = collected
    assert len(predictions) == 5
    assert comparison.variants[0].memory_bytes < comparison.variants[0].process_bytes
    _, expected = measure(work, str(run / "model.onnx"), "cpu")
    assert [ids.tolist() for ids in predictions] == [ids.tolist() for ids in expected]


def test_exports_of_other_weights_or_without_a_passed_check_are_made_again(finished, tmp_path, in_one_process):
    run = shutil.copytree(finished["full"], tmp_path / "run")
    assert not is_exported(FinishedRun.open(run))
    export_run(run)
    old = FinishedRun.open(run)
    assert is_exported(old)
    shutil.copy(finished["head"] / "best" / "model.safetensors", run / "best" / "model.safetensors")
    assert not is_exported(FinishedRun.open(run))
    bench_run(run, timed=2, limit=2, rounds=1)
    assert is_exported(FinishedRun.open(run))
    facts = read_metadata(run / "model.onnx")
    own = {name: facts[name] for name in ("run_config_sha256", "run_weights_sha256")}
    export_onnx(FinishedRun.open(run).model, run / "model.onnx", metadata=own)  # killed before its check
    assert not is_exported(FinishedRun.open(run))


def test_an_onnx_file_gets_its_inputs_on_the_cpu_whatever_computes(run, in_one_process, monkeypatch):
    bench_run(run, timed=2, limit=2, rounds=1)
    here = monkeypatch.setattr
    here(trainers.serve.bench_worker, "load_served", lambda source, **_: load_served(source, device="cpu"))
    figures, _ = measure(in_one_process[0][1], str(run / "model.onnx"), "cuda")
    assert figures["device_memory_bytes"] is None


def test_a_process_that_fails_is_named(run, monkeypatch):
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(ValueError, match="measuring PyTorch on cpu failed"):
        bench_run(run, timed=2)


def test_wrong_arguments(run):
    with pytest.raises(ValueError, match="has no tset split"):
        bench_run(run, split="tset")
    for name in ("limit", "timed", "rounds", "threads"):
        with pytest.raises(ValueError, match="at least 1"):
            bench_run(run, **{name: 0})


def test_numbers_are_the_same_within_a_hundredth_of_their_spread():
    numbers = [np.array([value], np.float32) for value in (0.0, 10.0, 20.0)]
    moved = [numbers[0] + 0.05, numbers[1] + 0.2, numbers[2]]
    assert same_predictions(moved, numbers) == [True, False, True]
    labels = [np.array([0, 1]), np.array([1, 1])]
    assert same_predictions([labels[0], labels[0]], labels) == [True, False]
