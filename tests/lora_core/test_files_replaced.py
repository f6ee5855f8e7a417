"""A folder that replaces another takes two renames: a signal between them loses neither."""

import os
from pathlib import Path

import pytest

from lora_core.files import replacing


def write(path, content):
    with replacing(path) as temporary:
        temporary.mkdir()
        (temporary / "file").write_text(content)


def test_a_signal_between_the_renames(tmp_path, monkeypatch):
    rename = os.replace
    target = tmp_path / "folder"
    write(target, "old")

    def interrupted(source, destination):
        if Path(destination) == target and "new" in (Path(source) / "file").read_text():
            raise KeyboardInterrupt
        rename(source, destination)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write(target, "new")
    assert (target / "file").read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]
    write(target, "new")
    assert (target / "file").read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]
