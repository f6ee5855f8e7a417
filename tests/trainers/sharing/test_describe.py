"""info names what a folder or file is, from headers: weights whose numbers are gone are described all the same."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from trainers.cli import main
from trainers.sharing.describe import describe

OLD = Path(__file__).resolve().parents[1] / "run_of_0_1_0"


def cut_after_header(path):
    """The file with its header and its length, and nothing but holes behind."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        header = int.from_bytes(file.read(8), "little")
        file.truncate(8 + header)
        file.truncate(size)


@pytest.mark.parametrize(("kind", "name"), [("adapter", "lora"), ("model", "full")])
def test_adapters_and_models(finished, tmp_path, kind, name):
    source = finished[name] / ("adapter" if kind == "adapter" else "best")
    folder = shutil.copytree(source, tmp_path / "moved")
    (weights,) = folder.glob("*.safetensors")
    tensors = load_file(weights)
    cut_after_header(weights)
    found = describe(folder)
    assert (found["kind"], found["task"]) == (kind, "token-classification")
    assert found["labels"] == ["O", "B-protein", "I-protein", "B-DNA", "I-DNA"]
    assert found["numbers"] == sum(tensor.numel() for tensor in tensors.values())
    assert (found["tensors"], found["types"]) == (len(tensors), ["F32"])
    assert found["bytes"] == weights.stat().st_size
    alone = describe(weights)
    assert (alone["kind"], alone["numbers"]) == ("safetensors", found["numbers"])
    weights.write_bytes(b"none")
    with pytest.raises(ValueError, match=r"safetensors is damaged .*Copy or save it again"):
        describe(folder)


def test_an_adapter_that_cannot_move_says_so():
    found = describe(OLD / "run" / "adapter")
    assert found["moves_alone"].startswith("no: it has no head.json")
    assert (found["r"], found["trained_in_full"]) == (16, ["classifier"])


def test_runs_and_checkpoints(finished, capsys):
    main(["info", str(finished["lora"]), "--format", "json"])
    found = json.loads(capsys.readouterr().out)
    assert (found["kind"], found["state"], found["method"], found["seed"]) == ("run", "finished", "lora", 42)
    assert found["scores"].startswith("test: F1 ")
    assert found["inputs"]["data, train"].startswith("21 examples, sha256 ")
    assert found["holds"][0].startswith("adapter (")
    assert "gone" not in found
    main(["info", str(finished["lora"])])
    lines = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines() if not line.startswith(" "))
    assert lines["labels"].strip() == "O, B-protein, I-protein, B-DNA, I-DNA"
    (checkpoint,) = (finished["lora"] / "checkpoints").glob("step-*")
    found = describe(checkpoint)
    assert (found["kind"], f"step-{found['step']}") == ("checkpoint of a run", checkpoint.name)


def test_an_unfinished_run_says_how_to_go_on():
    found = describe(OLD / "interrupted")
    assert found["state"].startswith("not finished: --resume auto goes on, `lora-core finish` ends it")
    assert found["checkpoints"] == ["step-12"]


def test_a_run_that_lost_a_file_names_it(finished, tmp_path):
    folder = shutil.copytree(finished["lora"], tmp_path / "run")
    (folder / "adapter" / "tokenizer.json").unlink()
    assert describe(folder)["gone"] == ["adapter/tokenizer.json"]


def test_onnx_files(tmp_path):
    found = describe(OLD / "run" / "model.int8.onnx")
    assert (found["kind"], found["precision"], found["task"]) == ("ONNX file", "int8", "token-classification")
    assert found["labels"] == ["O", "B-protein", "I-protein", "B-DNA", "I-DNA"]
    assert "tokenizer.json" in found["holds"]
    cut = tmp_path / "cut.onnx"
    cut.write_bytes((OLD / "run" / "model.onnx").read_bytes()[:5000])
    with pytest.raises(ValueError, match="is not a whole ONNX file"):
        describe(cut)


def test_an_onnx_file_from_elsewhere(tmp_path):
    onnx = pytest.importorskip("onnx")
    graph = onnx.helper.make_graph([], "none", [], [])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "other.onnx")
    assert describe(tmp_path / "other.onnx")["origin"] == "not written by lora-core"


def test_what_is_nothing_is_one_line(tmp_path, capsys):
    (tmp_path / "notes.txt").touch()
    for path, said in (
        (tmp_path / "missing", "does not exist"),
        (tmp_path, "neither config.json nor adapter_config.json"),
        (tmp_path / "notes.txt", "neither an ONNX file nor safetensors"),
    ):
        with pytest.raises(SystemExit) as exit_:
            main(["info", str(path)])
        assert exit_.value.code == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
