import json

from trainers.run_folder import MetricsLog, RunFolder


def lines(folder):
    return RunFolder(folder).metrics.read_text().splitlines()


def test_appends_one_object_a_line_in_order(tmp_path):
    folder = tmp_path / "new" / "run"
    log = MetricsLog(folder)
    assert lines(folder) == []
    log.write("epoch", epoch=1, step=3, validation={"f1": 0.5})
    log.write("result", step=3)
    assert [json.loads(line) for line in lines(folder)] == [
        {"event": "epoch", "epoch": 1, "step": 3, "validation": {"f1": 0.5}},
        {"event": "result", "step": 3},
    ]


def test_a_new_run_begins_an_empty_log(tmp_path):
    MetricsLog(tmp_path).write("epoch", step=3)
    MetricsLog(tmp_path)
    assert lines(tmp_path) == []


def test_a_resumed_run_drops_what_came_after_its_checkpoint(tmp_path):
    log = MetricsLog(tmp_path)
    for step in (3, 6, 9):
        log.write("epoch", step=step)
    with RunFolder(tmp_path).metrics.open("a") as file:
        file.write('{"event": "epoch", "step": 1')
    kept = lines(tmp_path)[:2]
    log = MetricsLog(tmp_path, resume_at=6)
    assert lines(tmp_path) == kept
    log.write("epoch", step=9)
    assert json.loads(lines(tmp_path)[-1])["step"] == 9
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_run_that_goes_on_is_finished_no_more(tmp_path):
    log = MetricsLog(tmp_path)
    log.write("epoch", step=6)
    log.write("result", step=6)
    assert RunFolder(tmp_path).is_finished()
    MetricsLog(tmp_path, resume_at=6)
    assert [json.loads(line)["event"] for line in lines(tmp_path)] == ["epoch"]


def test_lines_that_are_no_events_are_dropped(tmp_path):
    MetricsLog(tmp_path).write("epoch", step=3)
    with RunFolder(tmp_path).metrics.open("ab") as file:
        file.write(b'[1]\nnull\n{"step": "3"}\n\xff\xfe\n' + b"\0" * 30)
    MetricsLog(tmp_path, resume_at=6)
    assert [json.loads(line)["step"] for line in lines(tmp_path)] == [3]


def test_an_event_without_a_step_is_not_kept(tmp_path):
    MetricsLog(tmp_path).write("note")
    MetricsLog(tmp_path, resume_at=6)
    assert lines(tmp_path) == []


def test_other_processes_write_nothing(tmp_path):
    MetricsLog(tmp_path / "run", writes=False).write("epoch", step=1)
    assert list(tmp_path.iterdir()) == []
