"""Files that are whole or not there."""

import errno
import hashlib
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lora_core.files import (
    DiskFullError,
    discard,
    disk_errors,
    file_inside,
    make_folder,
    read_json_object,
    regular_file,
    remove_abandoned,
    replacing,
    sha256_of_file,
    write_json,
    write_text,
)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    write_text(tmp_path / "a.txt", "old")

    def fail():
        with replacing(tmp_path / "a.txt") as temporary:
            temporary.write_text("ne")
            raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway"):
        fail()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.txt": "old"}


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    for content in ("one", "two"):
        with replacing(tmp_path / "folder") as temporary:
            (temporary / "inner").mkdir(parents=True)
            (temporary / "inner" / content).write_text(content)
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "inner", "two"]


def test_what_a_killed_writer_left_goes_with_the_next_write(tmp_path):
    code = (
        "import os, signal, sys; from lora_core.files import replacing\n"
        "with replacing(sys.argv[1]) as temporary:\n"
        "    temporary.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.txt")], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 1
    left = next(tmp_path.iterdir()).name
    host = left.removeprefix(".a.txt.").rsplit("-", 2)[0]
    alive = tmp_path / f".a.txt.{host}-{os.getppid()}-1"  # of a process that may still be writing
    elsewhere = tmp_path / left.replace(host, "other-machine")  # of whose processes nothing is known here
    for path in (alive, elsewhere):
        path.write_text("")
    write_text(tmp_path / "a.txt", "whole")
    assert {path.name for path in tmp_path.iterdir()} == {"a.txt", alive.name, elsewhere.name}


def killed(code, *arguments):
    """Run code in a process that ends itself by SIGKILL, as `die()` in it does."""
    head = "import os, signal, sys, lora_core.files as files\ndef die(*_, **__): os.kill(os.getpid(), signal.SIGKILL)\n"
    done = subprocess.run([sys.executable, "-c", head + code, *map(str, arguments)], check=False)
    assert done.returncode == -signal.SIGKILL


REPLACE = (
    "with files.replacing(sys.argv[1]) as new:\n"
    "    new.mkdir(); (new / 'one').write_text('new'); (new / 'two').write_text('new')\n"
)
REPLACE_KILLS = {
    "before the old gives way": "files.os.replace = die\n",
    "before the new takes its place": "files.os.replace = lambda *names, rename=os.replace: "
    "rename(*names) if str(names[1]).endswith('-old') else die()\n",
    "before the old is removed": "files.shutil.rmtree = die\n",
    "while the old is removed": "files.shutil.rmtree = lambda path: (os.remove(os.path.join(path, 'one')), die())\n",
}


@pytest.mark.fault("kill -9 while a folder takes another's place", "the old or the new is there, whole", "none")
@pytest.mark.parametrize("point", REPLACE_KILLS)
def test_a_folder_is_old_or_new_whenever_its_writer_is_killed(tmp_path, point):
    target = tmp_path / "folder"
    target.mkdir()
    for name in ("one", "two"):
        (target / name).write_text("old")
    killed(REPLACE_KILLS[point] + REPLACE, target)
    assert len(list(tmp_path.iterdir())) == 2
    remove_abandoned(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    expected = "new" if "removed" in point else "old"
    assert {path.name: path.read_text() for path in target.iterdir()} == {"one": expected, "two": expected}


def test_a_folder_that_cannot_take_the_place_leaves_the_old_one(tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").touch()
    rename = os.replace

    def fail(source, target):
        if str(target) == str(tmp_path / "folder") and not str(source).endswith("-old"):
            raise OSError(5, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="Input/output error"), replacing(tmp_path / "folder") as temporary:
        temporary.mkdir()
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "old"]


@pytest.mark.parametrize("what", ["file", "folder"])
def test_what_is_discarded_is_whole_or_gone(tmp_path, what):
    path = tmp_path / "step-6"
    if what == "file":
        path.write_text("whole")
    else:
        path.mkdir()
        for name in ("one", "two"):
            (path / name).write_text("whole")
        shutil.copytree(path, tmp_path / "step-7")
        killed("files.shutil.rmtree = lambda path: (os.remove(os.path.join(path, 'one')), die())\n"
               "files.discard(sys.argv[1])", tmp_path / "step-7")  # fmt: skip
        assert {one.name for one in tmp_path.iterdir()} > {"step-6"}
        (left,) = remove_abandoned(tmp_path)
        assert left.name.startswith(".step-7.")
        assert left.name.endswith("-gone")
    discard(path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError):
        discard(path)


def test_only_what_killed_processes_of_this_machine_left_is_removed(tmp_path):
    host = socket.gethostname()
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    pid = int(dead.stdout)
    gone = [f".a.{host}-{pid}-1", f".b.json.{host}-{pid}-2-old", f".b.json.{host}-{pid}-3-gone"]
    mine, alive = f".a.{host}-{pid}", f".a.{host}-{os.getppid()}-1"
    kept = [alive, f".a.other-{pid}-1", f"a.{host}-{pid}-1", f".{host}-{pid}-1", mine, f"{mine}-1-new",
            f".a.{host}-x-1", ".a", "b.json"]  # fmt: skip
    for name in (*gone, *kept):
        (tmp_path / name).touch()
    (tmp_path / ".loop").symlink_to(".loop")
    with replacing(tmp_path / "own") as own:
        own.touch()
        assert sorted(path.name for path in remove_abandoned(tmp_path)) == sorted(gone)
    assert {path.name for path in tmp_path.iterdir()} == {*kept, ".loop", "own"}
    assert remove_abandoned(tmp_path / "nowhere") == []


def test_two_processes_may_remove_the_same(tmp_path, monkeypatch):
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    abandoned = [tmp_path / f".a.{socket.gethostname()}-{int(dead.stdout)}-{number}-gone" for number in range(3)]
    for path in abandoned:
        path.mkdir()
    rmtree = shutil.rmtree

    def overtaken(path):
        rmtree(path)
        if path == abandoned[1]:
            rmtree(path)

    monkeypatch.setattr(shutil, "rmtree", overtaken)
    assert sorted(remove_abandoned(tmp_path)) == [abandoned[0], abandoned[2]]
    assert list(tmp_path.iterdir()) == []


def test_folders_that_are_made_are_on_disk_with_their_names(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: flushed.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    assert make_folder(tmp_path / "a" / "b").is_dir()
    assert flushed == [str(tmp_path), str(tmp_path / "a")]
    make_folder(tmp_path / "a" / "b")
    assert len(flushed) == 2
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        make_folder(tmp_path / "file")


def test_threads_write_one_file_without_harm_to_each_other(tmp_path):
    texts = [str(number) * 100_000 for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda text: write_text(tmp_path / "a.txt", text), texts * 5))
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() in texts


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_get_the_permissions_that_the_umask_gives(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        write_json(tmp_path / "a.json", {"a": 1})
    finally:
        os.umask(before)
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == mode
    assert os.umask(before) == before


def test_json_that_is_no_object_names_the_file_and_the_remedy(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"name": "β"})
    assert read_json_object(path, "") == {"name": "β"}
    for content in (b"[1]", b"{", b"\xff\xfe", b"[" * 100_000):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.json .*\. Fetch it again"):
            read_json_object(path, "Fetch it again")
    with pytest.raises(FileNotFoundError):
        read_json_object(tmp_path / "none.json", "")


def test_the_digest_is_that_of_the_bytes(tmp_path):
    content = os.urandom(3 << 20)
    (tmp_path / "a").write_bytes(content)
    assert sha256_of_file(tmp_path / "a") == hashlib.sha256(content).hexdigest()


@pytest.mark.fault("a pipe or a device in the place of a file", "refused at once, named", "none")
@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "link to a device"])
def test_what_is_no_file_is_never_opened(kind, tmp_path):
    path = tmp_path / "config.json"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path = Path("/dev/zero")
    else:
        path.symlink_to("/dev/zero")
    for read in (regular_file, sha256_of_file, lambda place: read_json_object(place, "Copy it.")):
        with pytest.raises(ValueError, match=f"{path} is a.* instead of a file") as error:
            read(path)
        assert "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        regular_file(tmp_path / "nowhere")


def test_a_named_file_lies_in_its_folder(tmp_path):
    outside = tmp_path / "secret.bin"
    outside.write_text("secret")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "part.bin").write_text("part")
    (folder / "near.bin").symlink_to("part.bin")
    (folder / "far.bin").symlink_to(outside)
    assert file_inside(folder, "part.bin").read_text() == file_inside(folder, "near.bin").read_text() == "part"
    for name in ("../secret.bin", str(outside), "", ".", "..", "a/../part.bin", "..\\secret.bin", "part.bin\0"):
        with pytest.raises(ValueError, match="not the plain name of a file"):
            file_inside(folder, name)
    with pytest.raises(ValueError, match=r"is a link to .*secret\.bin, outside its folder"):
        file_inside(folder, "far.bin")
    with pytest.raises(FileNotFoundError):
        file_inside(folder, "absent.bin")


def test_links_into_the_hubs_cache_are_its_own(tmp_path):
    snapshot, blobs = tmp_path / "models--a--b/snapshots/123", tmp_path / "models--a--b/blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "abc").write_text("part")
    (snapshot / "part.bin").symlink_to("../../blobs/abc")
    assert file_inside(snapshot, "part.bin").read_text() == "part"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": 1, "b": {"c": 2, "c": 3}}', "the key 'c' stands twice"),
        ('{"a": ' + "[" * 150 + "]" * 150 + "}", "nested more than 100 deep"),
        ('{"a": ' + "[" * 200_000 + "]" * 200_000 + "}", "is not JSON|nested more"),
        ('{"a": ' + "9" * 5000 + "}", "is not JSON"),
    ],
)
def test_json_that_readers_would_read_differently_or_without_end(content, message, tmp_path):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match=f"a.json .*{message}.*Copy it") as error:
        read_json_object(tmp_path / "a.json", "Copy it.")
    assert len(str(error.value)) < 400


def test_a_json_file_of_any_size_is_not_read(tmp_path):
    with (tmp_path / "a.json").open("wb") as file:
        file.truncate(1 << 40)  # a sparse file
    with pytest.raises(ValueError, match="1,099,511,627,776 bytes"):
        read_json_object(tmp_path / "a.json", "Copy it.")


@pytest.mark.fault("a full disk while a file is written", "a line: bytes and path; the old file stays", "none")
@pytest.mark.parametrize("write", ["python", "safetensors"])
def test_a_file_without_room(write, tmp_path):
    """Linux' limit of a file's size stands for a full disk: the write fails halfway, and really."""
    path = tmp_path / "a.bin"
    path.write_text("old")

    def fill():
        with replacing(path, size=200_000, remedy="Make room.") as temporary:
            if write == "python":
                temporary.write_bytes(bytes(200_000))
            else:
                save_file({"x": torch.ones(50_000)}, temporary)

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(DiskFullError) as error:
            fill()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert str(error.value) == (
        f"{path} could not be written: file too large; 200,000 bytes are needed, a file may not be larger here "
        "(ulimit -f). Make room."
    )
    assert error.value.errno == errno.EFBIG
    assert {each.name: each.read_text() for each in tmp_path.iterdir()} == {"a.bin": "old"}


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
        RuntimeError("I/O error: No space left on device (os error 28)"),
        RuntimeError('Error while serializing: IoError(Os { code: 28, kind: StorageFull, message: "..." })'),
    ],
)
def test_a_full_disk_says_how_much_is_free(error, tmp_path):
    with pytest.raises(DiskFullError, match=r"a\.bin could not be written: .*; [\d,]+ bytes are free\. Make room"):
        fail_to_write(tmp_path / "a.bin", error)


def fail_to_write(path, error):
    with disk_errors(path):
        raise error


def test_other_errors_of_writing_pass(tmp_path):
    with pytest.raises(PermissionError):
        fail_to_write(tmp_path / "a.bin", PermissionError(errno.EACCES, "denied"))
    with pytest.raises(RuntimeError, match="code 28"):
        fail_to_write(tmp_path / "a.bin", RuntimeError("code 28"))


def test_a_device_that_is_full(tmp_path):
    with pytest.raises(DiskFullError, match="no space left on device"), disk_errors("/dev/full"):
        Path("/dev/full").write_bytes(bytes(10_000))
