import json
import shutil

from trainers.finished import FinishedRun


def test_a_run_that_cut_its_texts_otherwise_says_so(finished_text, tmp_path, caplog):
    run = shutil.copytree(finished_text, tmp_path / "run")
    finished = FinishedRun.open(run)
    finished.encode(finished.split("test"))
    assert "older version" not in caplog.text
    path = finished.weights_folder / "tokenizer.json"
    saved = json.loads(path.read_text())
    saved["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    path.write_text(json.dumps(saved))
    finished.encode(finished.split("test"))
    assert "was trained by an older version, which put a space before the first word" in caplog.text
