import io
import os
import struct
import zipfile

import numpy as np
import pytest

from trainers.data.images import npz as image_npz
from trainers.data.images.batches import ImageDataset
from trainers.data.images.npz import read_npz, write_npz

RANDOM = np.random.default_rng(0)


def arrays(shape=(28, 28), labels=3):
    found = {}
    for prefix, count in {"train": 6, "val": 3, "test": 4}.items():
        found[f"{prefix}_images"] = RANDOM.integers(0, 256, (count, *shape), dtype=np.uint8)
        found[f"{prefix}_labels"] = (np.arange(count) % labels)[:, None].astype(np.uint8)
    return found


def refused(path, match):
    with pytest.raises(ValueError, match=match) as error:
        read_npz(path)
    assert str(error.value).startswith(f"{path}: ")


@pytest.mark.parametrize("shape", [(28, 28), (20, 30, 3), (8, 8, 1)])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_the_medmnist_layout(tmp_path, shape, save):
    content = arrays(shape)
    save(tmp_path / "a.npz", **content)
    datasets = read_npz(tmp_path / "a.npz")
    assert list(datasets) == ["train", "validation", "test"]
    for (split, dataset), prefix in zip(datasets.items(), ("train", "val", "test"), strict=True):
        images = content[f"{prefix}_images"]
        assert np.array_equal(dataset.images, images[..., 0] if shape[-1] == 1 else images), split
        assert dataset.targets.dtype == np.int64
        assert np.array_equal(dataset.targets, content[f"{prefix}_labels"][:, 0])
        assert dataset.labels == ("0", "1", "2")
        assert dataset.source == f"{tmp_path / 'a.npz'}:{prefix}"


def test_column_order_flat_labels_and_other_arrays(tmp_path):
    content = arrays((6, 5, 3))
    ordered = {name: np.asfortranarray(array) for name, array in content.items()}
    ordered |= {f"{prefix}_labels": content[f"{prefix}_labels"][:, 0].astype(np.int64) for prefix in ("train", "val")}
    np.savez(tmp_path / "a.npz", **ordered, other=np.array([object()], dtype=object))  # not read, so no harm
    datasets = read_npz(tmp_path / "a.npz")
    assert np.array_equal(datasets["train"].images, content["train_images"])
    assert datasets["train"].images.flags.c_contiguous
    assert np.array_equal(datasets["validation"].targets, content["val_labels"][:, 0])


@pytest.mark.parametrize("name", ["pneumoniamnist.npz", "pneumoniamnist_64.npz"])
def test_medmnists_own_files_have_names(tmp_path, name):
    np.savez(tmp_path / name, **arrays(labels=2))
    assert read_npz(tmp_path / name)["test"].labels == ("normal", "pneumonia")


def test_names_that_do_not_fit_are_not_taken(tmp_path):
    np.savez(tmp_path / "pneumoniamnist.npz", **arrays(labels=3))
    assert read_npz(tmp_path / "pneumoniamnist.npz")["test"].labels == ("0", "1", "2")


def test_what_is_written_is_read(tmp_path):
    images = RANDOM.integers(0, 256, (4, 8, 8), dtype=np.uint8)
    datasets = {
        split: ImageDataset(images + number, np.array([0, 1, 0, 1]), ("five", "sechs"), "")
        for number, split in enumerate(("train", "validation", "test"))
    }
    write_npz(tmp_path / "new" / "a.npz", datasets)
    for split, dataset in read_npz(tmp_path / "new" / "a.npz").items():
        assert np.array_equal(dataset.images, datasets[split].images)
        assert np.array_equal(dataset.targets, datasets[split].targets)
        assert dataset.labels == ("five", "sechs")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"train_labels": np.ones((6, 14), np.uint8)}, r"train_labels is \(6, 14\): several labels"),
        ({"train_labels": np.ones((5, 1), np.uint8)}, r"expected \(6, 1\) whole numbers"),
        ({"val_labels": np.ones((3, 1))}, "float64, expected"),
        ({"test_labels": -np.ones((4, 1), np.int8)}, "run from -1 to -1"),
        ({"train_images": np.zeros((6, 28, 28), np.float32)}, "float32, expected .* uint8"),
        ({"train_images": np.zeros((6, 28, 28, 28), np.uint8)}, r"\(6, 28, 28, 28\) uint8, expected"),
        ({"train_images": np.zeros((0, 28, 28), np.uint8), "train_labels": np.zeros((0, 1), np.uint8)}, "is empty"),
        ({"val_labels": np.array([[None]] * 3)}, "val_labels.npy holds Python objects"),
        ({"label_names": np.array(["a", "b"])}, "label_names is .* expected 3 or more different names"),
        ({"label_names": np.array(["a", "b", "b"])}, "different names"),
    ],
)
def test_arrays_of_another_kind(tmp_path, changes, match):
    np.savez(tmp_path / "a.npz", **{**arrays(), **changes})
    refused(tmp_path / "a.npz", match)


def test_a_missing_half_and_no_pictures_at_all(tmp_path):
    content = arrays()
    del content["val_labels"]
    np.savez(tmp_path / "a.npz", **content)
    refused(tmp_path / "a.npz", "only one of val_images and val_labels")
    np.savez(tmp_path / "b.npz", x=np.ones(3))
    refused(tmp_path / "b.npz", "holds no pictures")


class Forbidden:
    def __getattr__(self, name):
        raise AssertionError(f"memory was taken with {name}")


def npy(header_shape, data, dtype="|u1"):
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {header_shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def zipped(path, **members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return path


def test_an_expanding_archive_is_refused_before_memory_is_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(image_npz.np, "empty", Forbidden())
    path = zipped(tmp_path / "a.npz", train_images=npy((50_000, 28, 28), bytes(50_000 * 28 * 28)))
    assert path.stat().st_size < 50_000
    refused(path, r"train_images\.npy expands from [\d,]+ to 39,200,128 bytes, more than 100 times")


def test_an_archive_above_the_limit_is_refused_before_memory_is_taken(tmp_path, monkeypatch):
    np.savez(tmp_path / "a.npz", **arrays())
    monkeypatch.setattr(image_npz.np, "empty", Forbidden())
    monkeypatch.setattr(image_npz, "MAX_BYTES", 10_000)
    refused(tmp_path / "a.npz", r"expand to [\d,]+ bytes, above the limit of 10,000")


@pytest.mark.parametrize("shape", [(10**9, 28, 28), (5, 28, 28), (7, 28, 28)])
def test_a_header_that_lies_about_the_shape(tmp_path, monkeypatch, shape):
    monkeypatch.setattr(image_npz.np, "empty", Forbidden())
    path = zipped(tmp_path / "a.npz", train_images=npy(shape, os.urandom(6 * 28 * 28)))
    refused(path, "says that it is .* follow")


def test_damaged_files(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, **arrays())
    whole = path.read_bytes()
    for content in (b"", b"not a zip file", whole[: len(whole) // 2]):
        path.write_bytes(content)
        refused(path, "zip file")
    path.write_bytes(whole[:200] + bytes(byte ^ 0xFF for byte in whole[200:250]) + whole[250:])
    refused(path, "decompress|CRC")
    zipped(path, train_images=b"no array")
    refused(path, "train_images.npy is not a .npy array")
    zipped(path, train_images=npy("'oops'", b""))
    refused(path, "train_images.npy is not a .npy array")


def test_flipped_pixels_fail_the_checksum(tmp_path):
    path = tmp_path / "a.npz"
    content = arrays()
    np.savez(path, **content)
    whole = bytearray(path.read_bytes())
    place = bytes(whole).index(content["train_images"][2].tobytes()[:50])
    whole[place] ^= 1
    path.write_bytes(bytes(whole))
    refused(path, "CRC")


def test_an_encrypted_archive_is_named(tmp_path):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays())
    data = bytearray(buffer.getvalue())
    central = data.index(b"PK\x01\x02")
    for place in (6, central + 8):
        data[place] |= 1  # the flag of encryption
    (tmp_path / "a.npz").write_bytes(bytes(data))
    refused(tmp_path / "a.npz", "encrypted")
