import logging
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainers.data.cache import BLOCK, arrays_in_memory, cache_dir, cached_arrays

CHUNKS = [
    {"ids": np.array([1, 2, 3], dtype=np.uint16), "counts": np.array([4], dtype=np.int64)},
    {"ids": np.array([5], dtype=np.uint16), "counts": np.array([6, 7], dtype=np.int64)},
]


class Maker:
    """Gives arrays in chunks and counts how often it is asked to."""

    def __init__(self, chunks=CHUNKS):
        self.chunks = chunks
        self.calls = 0

    def __call__(self, notes):
        self.calls += 1
        notes["bad"] = 0
        for chunk in self.chunks:
            notes["bad"] += 1
            yield chunk


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("LORA_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def entry(folder: Path) -> Path:
    (found,) = (path for path in folder.iterdir() if path.is_dir())
    return found


def assert_right(arrays, notes):
    assert notes == {"bad": 2}
    assert {name: (array.tolist(), array.dtype) for name, array in arrays.items()} == {
        "ids": ([1, 2, 3, 5], np.uint16),
        "counts": ([4, 6, 7], np.int64),
    }


def test_arrays_are_made_once_and_then_mapped(folder):
    maker = Maker()
    for _ in range(3):
        arrays, notes = cached_arrays("tokens", {"a": 1}, maker)
        assert_right(arrays, notes)
        assert isinstance(arrays["ids"].base, np.memmap)
        assert not arrays["ids"].flags.writeable
    assert maker.calls == 1
    assert entry(folder).name.startswith("tokens-")
    assert np.load(entry(folder) / "ids.npy").tolist() == [1, 2, 3, 5]  # plain .npy files for everyone


def test_another_key_is_another_entry():
    first, second = Maker(), Maker([{"ids": np.array([9])}])
    cached_arrays("tokens", {"a": 1, "b": (1, 2)}, first)
    assert cached_arrays("tokens", {"a": 2, "b": (1, 2)}, second)[0]["ids"].tolist() == [9]
    assert_right(*cached_arrays("tokens", {"b": [1, 2], "a": 1}, second))
    assert (first.calls, second.calls) == (1, 1)


def test_in_memory_they_are_the_same():
    assert_right(*arrays_in_memory(Maker()))


@given(st.lists(st.lists(st.integers(0, 255), min_size=1), min_size=1))
def test_any_chunks_come_back_one_behind_another(tmp_path_factory, lists):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORA_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        maker = Maker([{"x": np.array(values, dtype=np.uint8)} for values in lists])
        for _ in range(2):
            assert cached_arrays("x", {}, maker)[0]["x"].tolist() == [value for values in lists for value in values]


def test_a_large_array_comes_back_whole():
    large = np.arange(BLOCK, dtype=np.int32)  # several blocks of bytes
    maker = Maker([{"x": large}, {"x": large}])
    for _ in range(2):
        np.testing.assert_array_equal(cached_arrays("x", {}, maker)[0]["x"], np.concatenate([large, large]))
    assert maker.calls == 1


def cut(content):
    return content[:-2]


def empty(content):
    return b""


def flip(place):
    def flipped(content):
        return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]

    return flipped


def replace_key(content):
    return content.replace(b'"key"', b'"kez"')


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        *(("ids.npy", damage) for damage in (cut, empty, flip(-2), flip(20), None)),
        *(("meta.json", damage) for damage in (cut, empty, replace_key, None)),
    ],
)
def test_a_damaged_entry_is_made_again(folder, caplog, file, damage):
    maker = Maker()
    cached_arrays("tokens", {"a": 1}, maker)
    path = entry(folder) / file
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage(path.read_bytes()))
    with caplog.at_level(logging.WARNING):
        assert_right(*cached_arrays("tokens", {"a": 1}, maker))
    assert maker.calls == 2
    assert "damaged and is made again" in caplog.text
    assert_right(*cached_arrays("tokens", {"a": 1}, maker))
    assert maker.calls == 2


def test_a_failed_or_killed_attempt_leaves_no_entry(folder):
    def fail(notes):
        yield CHUNKS[0]
        raise ValueError("a bad row")

    with pytest.raises(ValueError, match="a bad row"):
        cached_arrays("tokens", {"a": 1}, fail)
    assert [path.suffix for path in folder.iterdir()] == [".lock"]
    lock = next(folder.iterdir())
    lock.with_suffix(".unfinished").mkdir()
    (lock.with_suffix(".unfinished") / "ids.npy").write_bytes(b"half")
    assert_right(*cached_arrays("tokens", {"a": 1}, Maker()))
    assert not list(folder.glob("*.unfinished"))


def test_chunks_of_another_type_are_a_mistake():
    with pytest.raises(TypeError, match="int32, those before it uint16"):
        cached_arrays("tokens", {}, Maker([CHUNKS[0], {"ids": np.array([1], dtype=np.int32)}]))


def test_a_folder_that_cannot_be_written_is_said_and_done_without(folder, caplog):
    folder.write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        assert_right(*cached_arrays("tokens", {"a": 1}, Maker()))
    assert "LORA_CACHE_DIR" in caplog.text


PROCESS = """
import os, sys, time
from pathlib import Path
import numpy as np
from trainers.data.cache import cached_arrays

def slow(notes):
    notes["bad"] = 2
    Path(os.environ["LORA_CACHE_DIR"], f"made-{os.getpid()}").touch()
    yield {"ids": np.array([1], dtype=np.uint16)}
    time.sleep(0.2)
    yield {"ids": np.array([2, 3], dtype=np.uint16)}

print("ready", flush=True)
sys.stdin.readline()
arrays, notes = cached_arrays("tokens", {"a": 1}, slow)
print(arrays["ids"].tolist(), notes)
"""


def test_of_several_processes_one_makes_the_entry_and_the_others_wait(folder):
    folder.mkdir()
    command = [sys.executable, "-c", PROCESS]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("start\n")
        process.stdin.flush()
    assert {process.communicate()[0] for process in processes} == {"[1, 2, 3] {'bad': 2}\n"}
    assert len(list(folder.glob("made-*"))) == 1


def test_the_default_folder_is_in_the_home(monkeypatch, tmp_path):
    monkeypatch.delenv("LORA_CACHE_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "lora-core"


def test_arrays_stay_usable_when_the_cache_is_deleted(folder):
    arrays, notes = cached_arrays("tokens", {"a": 1}, Maker())
    shutil.rmtree(folder)
    assert_right(arrays, notes)


def test_the_size_is_reported(folder, caplog):
    with caplog.at_level(logging.INFO):
        cached_arrays("tokens", {"a": 1}, Maker())
    assert f"MB in {entry(folder)}" in caplog.text
