import json
import re

import pytest

from trainers.processes.failure import Failure


def failure(error):
    try:
        raise error
    except type(error) as caught:
        return Failure.of(caught, rank=3)


@pytest.mark.parametrize("error", [ValueError("row 3 has no label"), OSError("disk"), FloatingPointError("inf")])
def test_errors_for_users_say_rank_and_place_and_end_with_2(error):
    found = failure(error)
    assert re.fullmatch(rf"rank 3: {type(error).__name__} at tests/\S+/test_failure\.py:\d+: {error}", found.line)
    assert (found.status, found.detail) == (2, "")


def test_other_errors_bring_their_traceback_and_end_with_1():
    found = failure(ZeroDivisionError("by zero"))
    assert found.status == 1
    assert found.detail.startswith("Traceback (most recent call last):\n")
    assert found.detail.endswith("ZeroDivisionError: by zero\n")


def test_it_reads_what_it_writes():
    for found in (failure(ValueError("ä\n'\"")), failure(KeyError(1)), Failure(1, 0, "rank 1 is gone")):
        assert "\n" not in found.to_json()
        assert Failure.from_json(found.to_json()) == found


def test_a_process_that_says_nothing_has_no_place():
    assert Failure(1, 0, "rank 1 has not answered").line == "rank 1 has not answered"


def test_torchruns_file(tmp_path, monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE", raising=False)
    failure(ValueError("x")).write_for_torchrun()
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    found = failure(ValueError("x"))
    found.write_for_torchrun()
    message = json.loads((tmp_path / "error.json").read_text())["message"]
    assert message["message"] == message["extraInfo"]["py_callstack"] == found.line
    assert message["extraInfo"]["timestamp"].isdecimal()
