"""Which pictures of a folder are data, and which of them can be used."""

import logging
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from trainers.data.images.files import datasets_of_rows, image_files, inner_folders, say_what_is_not_read
from trainers.data.rows import BadRows


def picture(path, shade=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 4), shade).save(path)
    return path


def read(paths, mode="error", **labels):
    rows = [(path, labels.get(path.stem, "x"), path, None) for path in paths]
    return datasets_of_rows({"train": rows}, {"train": "here"}, BadRows(mode))["train"]


def test_what_systems_add_is_no_data(tmp_path):
    good = [
        picture(tmp_path / name) for name in ("a/1.png", "a/2.JPEG", "a/3.TIFF", "a/b/4.PNG", "c/5.webp", "c/6.jfif")
    ]
    for name in ("a/._1.png", ".hidden/1.png", "__MACOSX/a/1.png", "a/.ipynb_checkpoints/1.png", ".DS_Store/1.png"):
        picture(tmp_path / name)
    (tmp_path / "a" / "Thumbs.db").write_bytes(b"?")
    (tmp_path / "a" / "readme.txt").write_text("no picture")
    assert list(image_files(tmp_path)) == good
    assert [path.name for path in inner_folders(tmp_path)] == ["a", "c"]
    assert list(image_files(tmp_path, deep=False)) == []


def test_formats_that_are_not_read_are_counted(tmp_path, caplog):
    picture(tmp_path / "a" / "1.png")
    for name in ("1.heic", "2.HEIC", "3.dcm"):
        (tmp_path / "a" / name).write_bytes(b"?")
    say_what_is_not_read(tmp_path)
    assert "not read: 1 .dcm, 2 .heic. Convert them to PNG or JPEG" in caplog.text


def test_a_files_content_counts_and_not_its_ending(tmp_path):
    path = tmp_path / "a.jpg"
    Image.new("RGB", (4, 4), "red").save(path, format="PNG")
    assert read([path]).images == [path]


def bomb():
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def test_bad_pictures_are_named_or_left_out_and_counted(tmp_path):
    good = picture(tmp_path / "good.png")
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 50, 3), dtype=np.uint8))
    whole = tmp_path / "cut.png"
    noise.save(whole)
    contents = {
        "bomb.png": bomb(),
        "cut.png": whole.read_bytes()[:2000],
        "empty.png": b"",
        "point.png": None,
        "text.png": b"no picture",
    }
    for name, content in contents.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
    Image.new("RGB", (1, 1)).save(tmp_path / "point.png")
    bad = BadRows("skip")
    rows = [(path, "x", path, None) for path in sorted(tmp_path.iterdir())]
    assert datasets_of_rows({"train": rows}, {"train": "here"}, bad)["train"].images == [good]
    assert bad.count == 5
    problems = ["limit", "damaged or cut short", "the file is empty", "a single pixel is no picture", "not a picture"]
    for first, name, problem in zip(bad.first, sorted(contents), problems, strict=True):
        assert first.startswith(f"{tmp_path / name}: ")
        assert problem in first
    with pytest.raises(ValueError, match=r"empty\.png: the file is empty\. .*--on-bad-row skip"):
        read([tmp_path / "empty.png"])


@pytest.mark.skipif(os.getuid() == 0, reason="root reads everything")
def test_a_picture_that_may_not_be_read_is_a_bad_row(tmp_path):
    path = picture(tmp_path / "a.png")
    path.chmod(0)
    with pytest.raises(ValueError, match=r"a\.png: "):
        read([path])


def test_of_animations_the_first_picture_counts_and_this_is_said(tmp_path, caplog):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "b.tif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "c.gif")
    read(sorted(tmp_path.iterdir()))
    assert f"2 files hold several pictures, of which the first is read: {tmp_path / 'a.gif'}, " in caplog.text


def test_classes_that_look_alike_are_said(tmp_path, caplog):
    paths = [picture(tmp_path / f"{name}.png") for name in "abcd"]
    with caplog.at_level(logging.WARNING):
        dataset = read(paths, a="Cat", b="cat", c=" cat", d="dog")
    assert dataset.labels == (" cat", "Cat", "cat", "dog")
    assert "the classes ' cat' and 'Cat' and 'cat' differ only in case or blanks, and count as different" in caplog.text


@pytest.mark.parametrize("ending", [".png", ".jpg"])
@pytest.mark.parametrize("stored", ["file", "content"])
def test_a_picture_that_is_cut_short_is_named_before_training(tmp_path, ending, stored):
    path = tmp_path / f"a{ending}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole + b"what a camera adds")
    assert read([path]).images == [path]
    path.write_bytes(whole[: len(whole) // 2])
    rows = [(path if stored == "file" else path.read_bytes(), "x", path, None if stored == "file" else 7)]
    with pytest.raises(ValueError, match=rf"a{ending}.*: .*damaged or cut short"):
        datasets_of_rows({"validation": rows}, {"validation": "here"}, BadRows("error"))
