"""New exports in the place of those that are served: real processes under load."""

import os
import shutil

import pytest

from trainers.serve import pipeline

TEXT = "nfkb binds the il2 promoter in junb cells"


def put(source, path):
    """A file in the place of another, whole at every moment, as export writes it."""
    beside = path.with_name("beside")
    shutil.copy(source, beside)
    os.replace(beside, path)


@pytest.mark.fault(
    "a new export while a service is under load", "every request answered; the new one serves", "nothing"
)
@pytest.mark.parametrize("workers", [1, 2])
def test_a_new_export_is_served_without_a_lost_request(start, exported, tmp_path, workers):
    path = tmp_path / "model.onnx"
    fp32, int8 = exported["ner"] / "model.onnx", exported["ner"] / "model.int8.onnx"
    put(fp32, path)
    service = start(f"ner={path}", "--threads", 1, "--workers", workers, "--reload-on-change")
    service.wait_until_ready(workers)
    assert service.predict("ner", [TEXT]) == [pipeline(None, fp32)(TEXT)]
    load = service.load(clients=8)
    service.wait_until(lambda: load.answers.count(200) > 50)
    put(int8, path)
    service.wait_until(lambda: service.log.count("is now the new") == workers)
    before = len(load.answers)
    service.wait_until(lambda: len(load.answers) > before + 50)
    load.end()
    assert set(load.answers) == {200}
    assert load.unanswered == []
    assert service.get("/v1/models").json["models"][0]["precision"] == "int8"
    assert service.predict("ner", [TEXT]) == [pipeline(None, int8)(TEXT)]
    assert service.stop() == 0


@pytest.mark.fault("a damaged file in the place of a served one", "the old one is served on; a line says so", "nothing")
def test_a_damaged_new_file_changes_nothing(start, exported, tmp_path):
    path, junk = tmp_path / "model.onnx", tmp_path / "junk"
    fp32, int8 = exported["ner"] / "model.onnx", exported["ner"] / "model.int8.onnx"
    put(fp32, path)
    service = start(f"ner={path}", "--threads", 1, "--reload-on-change").wait_until_ready()
    junk.write_bytes(int8.read_bytes()[:-100])
    put(junk, path)
    service.wait_until(lambda: "cannot be used, the old one is served on" in service.log)
    path.unlink()  # nor does a file that is gone
    assert service.predict("ner", [TEXT]) == [pipeline(None, fp32)(TEXT)]
    put(int8, path)
    service.wait_until(lambda: "is now the new" in service.log)
    assert service.predict("ner", [TEXT]) == [pipeline(None, int8)(TEXT)]
    assert service.log.count("cannot be used") == 1
    assert "Traceback" not in service.log


def test_adapters_stay_on_a_new_base_and_one_that_they_do_not_fit_is_refused(start, exported, base, tmp_path):
    path = tmp_path / "base.onnx"
    put(base / "base.onnx", path)
    adapter = f"base+a={base / 'a.onnx_adapter'}"
    service = start(f"base={path}", "--adapters", adapter, "--threads", 1, "--reload-on-change").wait_until_ready()
    expected = service.predict("base+a", [TEXT])
    put(base / "base.onnx", path)
    service.wait_until(lambda: "is now the new" in service.log)
    assert service.predict("base+a", [TEXT]) == expected
    put(exported["ner"] / "model.onnx", path)
    service.wait_until(lambda: "takes no adapters" in service.log)
    assert service.predict("base+a", [TEXT]) == expected
