"""What computes a served model: by name, by what bench found, and what is said where neither can be."""

import dataclasses
import logging
import shutil
import sys
from typing import get_args

import numpy as np
import pytest

import trainers.predict.files
import trainers.serve.bench
import trainers.service.settings
from lora_core.export import OnnxSession
from lora_core.export.session import usual_threads
from trainers.cli import main
from trainers.predict.files import predict_files
from trainers.run_folder import RunFolder
from trainers.serve import backends, pipeline
from trainers.serve.backends import Finding, Way, choose, digests_of, read_finding, this_machine, write_finding
from trainers.serve.bench import bench_run
from trainers.serve.bench_worker import measure
from trainers.serve.export import export_run
from trainers.serve.served import load_served

TEXT = "the protein binds"


@pytest.fixture(scope="module")
def exported(finished, tmp_path_factory):
    """A run with its ONNX files."""
    run = shutil.copytree(finished["full"], tmp_path_factory.mktemp("backends") / "run")
    export_run(run, points_lost=100)
    return run


@pytest.fixture
def found(exported):
    """A finding of this machine and these files, in which OpenVINO's int8 is fast but loses too much."""
    ways = (
        Way("torch", "", "cpu", 0.0, 100.0),
        Way("onnx", "model.onnx", "cpu", 0.0, 150.0),
        Way("onnx", "model.int8.onnx", "cpu", 0.4, 300.0),
        Way("openvino", "model.int8.onnx", "cpu", 0.6, 400.0),
    )
    finding = Finding(this_machine(), 1, digests_of(RunFolder(exported)), "test", "f1", 0.5, ways)
    write_finding(finding, RunFolder(exported))
    yield finding
    RunFolder(exported).backends.unlink(missing_ok=True)


def test_a_name_says_what_computes(exported):
    assert not isinstance(load_served(exported, backend="torch").model, OnnxSession)
    onnx = load_served(exported, backend="onnx")
    assert onnx.model.path == exported / "model.int8.onnx"
    assert load_served(exported / "best", backend="onnx").model.path == exported / "model.int8.onnx"
    assert load_served(exported / "model.onnx", backend="onnx").model.path == exported / "model.onnx"
    half, full = (load_served(exported, backend=name) for name in ("torch-bf16", "torch"))
    ids = np.arange(3, 9)[None]
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    difference = np.abs(half.logits(**inputs) - full.logits(**inputs)).max()
    assert 0 < difference < 0.1
    assert half.logits(**inputs).dtype == np.float32


def test_openvino_serves_the_run(exported):
    pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install 'lora-core[openvino]'")
    served = load_served(exported, backend="openvino", threads=1)
    assert served.model.providers == ["OpenVINO"]
    assert served.model.path == exported / "model.int8.onnx"
    found = pipeline("ner", exported / "model.onnx", backend="openvino")(TEXT)
    assert found == [
        {**entity, "score": pytest.approx(entity["score"], abs=1e-3)} for entity in pipeline("ner", exported)(TEXT)
    ]


def test_what_cannot_be_is_refused(exported, finished, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="is an ONNX file, which torch does not run"):
        load_served(exported / "model.onnx", backend="torch")
    with pytest.raises(ValueError, match="backend is 'tvm'; expected one of auto, torch"):
        load_served(exported, backend="tvm")
    with pytest.raises(ValueError, match="leave out --device cuda"):
        load_served(exported, device="cuda", backend="openvino")
    with pytest.raises(ValueError, match="is no finished run and no ONNX file"):
        load_served(tmp_path, backend="onnx")
    with pytest.raises(ValueError, match=r"has no ONNX file of the run as it is now\. Write it: lora-core export"):
        load_served(finished["full"], backend="onnx")
    other = shutil.copytree(exported, tmp_path / "run")
    shutil.copy(finished["head"] / "best" / "model.safetensors", other / "best" / "model.safetensors")
    with pytest.raises(
        ValueError, match="has no ONNX file of the run as it is now"
    ):  # those there are of other weights
        load_served(other, backend="onnx")
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ValueError, match=r"pip install 'lora-core\[openvino\]'"):
        load_served(exported, backend="openvino")


def test_auto_takes_the_fastest_of_equal_quality(exported, found):
    assert read_finding(RunFolder(exported)) == found
    for source in (exported, exported / "best", exported / "model.int8.onnx"):
        chosen = choose(source, "auto", None, 1)
        assert (chosen.path, chosen.backend) == (exported / "model.int8.onnx", "onnx")
    assert choose(exported / "model.onnx", "auto", None, 1).path == exported / "model.onnx"
    worse = dataclasses.replace(found, points_allowed=0.7)
    write_finding(worse, RunFolder(exported))
    assert choose(exported, "auto", None, 1).backend == "openvino"
    assert load_served(exported, backend=None).source == str(exported)


def test_auto_says_when_nothing_measured_holds_here(exported, found, finished, tmp_path, caplog):
    def said(source, threads=1, device=None):
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="trainers"):
            chosen = choose(source, "auto", device, threads)
        assert (chosen.path, chosen.backend) == (source, "onnx" if source.suffix else "torch")
        (message,) = [record.getMessage() for record in caplog.records]
        assert "\n" not in message
        return message

    command = f"so torch computes. To measure: lora-core bench {exported} --threads"
    assert said(exported, threads=2).endswith(f"is for --threads 1, not 2, {command} 2")
    assert "of equal quality" in said(exported, device="cuda")
    write_finding(dataclasses.replace(found, machine={**found.machine, "cpu": "Z80"}), RunFolder(exported))
    assert "is of another machine (cpu Z80, now" in said(exported)
    write_finding(dataclasses.replace(found, digests={**found.digests, "model.int8.onnx": "0"}), RunFolder(exported))
    assert "model.int8.onnx was changed after it was measured" in said(exported)
    RunFolder(exported).backends.unlink()
    assert said(exported) == f"--backend auto: nothing was measured, {command} 1"
    assert "so onnx computes" in said(exported / "model.onnx")
    assert "nothing was measured: torch" in said(tmp_path)
    RunFolder(exported).backends.write_text('{"ways": []}')
    with pytest.raises(ValueError, match=r"is of another version .* Write it again: lora-core bench"):
        choose(exported, "auto", None, 1)


def test_bench_names_the_fastest_and_predict_takes_it(exported, tmp_path, capsys, monkeypatch):
    variants, threads = trainers.serve.bench._variants(exported), usual_threads()
    chosen = [*variants[:2], *[each for each in variants if each.backend == "openvino"][1:]]
    monkeypatch.setattr(trainers.serve.bench, "_variants", lambda folder: chosen)
    monkeypatch.setattr(
        trainers.serve.bench,
        "_in_own_process",
        lambda variant, work: measure(work, str(variant.source), variant.device, variant.backend),
    )
    main(["bench", str(exported), "--rounds", "1", "--timed", "4", "--limit", "6", "--threads", str(threads)])
    assert "fastest within 0.5 points of torch's f1 on test: " in capsys.readouterr().out
    finding = read_finding(RunFolder(exported))
    names = ["torch", "onnx with model.onnx", "openvino with model.int8.onnx"]
    assert [way.name for way in finding.ways] == names[: len(chosen)]
    assert (finding.machine, finding.threads) == (this_machine(), threads)
    (tmp_path / "texts.txt").write_text(f"{TEXT}\n")
    seen = []
    monkeypatch.setattr(trainers.predict.files, "pipeline_for", lambda served, **_: seen.append(served) or _stop())
    with pytest.raises(ValueError, match="seen"):
        predict_files(str(exported), (str(tmp_path / "texts.txt"),), backend="auto")
    fastest = finding.fastest()
    assert isinstance(seen[0].model, OnnxSession) == (fastest.backend != "torch")
    RunFolder(exported).backends.unlink()


def test_a_variant_that_openvino_cannot_run_is_left_out(exported, monkeypatch, caplog):
    pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install 'lora-core[openvino]'")
    first, *others = trainers.serve.bench._variants(exported)
    names = [first.name, *(each.name for each in others)]
    assert [name for name in names if name.startswith("OpenVINO")][:2] == ["OpenVINO fp32", "OpenVINO int8 static"]
    chosen = [first, next(each for each in others if each.backend == "openvino")]
    monkeypatch.setattr(trainers.serve.bench, "_variants", lambda folder: chosen)
    real = measure

    def here(variant, work):
        if variant.backend == "openvino":
            raise ValueError("measuring failed; its error stands above.")
        return real(work, str(variant.source), variant.device, variant.backend)

    monkeypatch.setattr(trainers.serve.bench, "_in_own_process", here)
    comparison = bench_run(exported, limit=4, timed=2, rounds=1)
    assert [each.name for each in comparison.variants] == ["PyTorch"]
    assert "OpenVINO fp32 is left out: measuring failed" in caplog.text


def _stop():
    raise ValueError("seen")


def test_the_service_has_the_same_names():
    assert trainers.service.settings.Chosen == backends.Chosen
    assert set(get_args(backends.Backend)) | {"auto"} == set(get_args(backends.Chosen))
