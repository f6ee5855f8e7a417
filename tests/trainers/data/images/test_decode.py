import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from trainers.data.images import decode as image_decode
from trainers.data.images.decode import decode, open_image

RANDOM = np.random.default_rng(0)
COLOUR = RANDOM.integers(0, 256, (12, 9, 3), dtype=np.uint8)
GREY = COLOUR[:, :, 0].copy()


def saved(path, array, **options):
    Image.fromarray(array).save(path, **options)
    return path


def pixels(source):
    image = decode(source)
    assert image.mode == ("RGB" if np.asarray(image).ndim == 3 else "L")
    return np.asarray(image)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "webp", "ppm"])
@pytest.mark.parametrize("array", [COLOUR, GREY], ids=["colour", "grey"])
def test_formats_without_loss(tmp_path, suffix, array):
    path = saved(tmp_path / f"a.{suffix}", array, **({"lossless": True} if suffix == "webp" else {}))
    found = pixels(path)
    expected = array if found.ndim == array.ndim else np.repeat(array[:, :, None], 3, 2)  # webp has no grey
    assert np.array_equal(found, expected)


def test_jpeg_in_grey_colour_and_cmyk(tmp_path):
    smooth = np.broadcast_to(np.linspace(0, 255, 32)[None, :, None], (32, 32, 3)).astype(np.uint8)
    for mode in ("L", "RGB", "CMYK"):
        Image.fromarray(smooth).convert(mode).save(tmp_path / "a.jpg", quality=100)
        found = pixels(tmp_path / "a.jpg")
        assert np.abs(found.astype(int) - (smooth if found.ndim == 3 else smooth[:, :, 0])).max() <= 3


def test_arrays_pass_unchanged():
    assert np.array_equal(pixels(COLOUR), COLOUR)
    assert np.array_equal(pixels(GREY), GREY)


def test_palette_and_one_bit(tmp_path):
    flat = np.zeros((6, 6, 3), np.uint8)
    flat[:3], flat[3:] = (255, 0, 0), (0, 0, 255)
    Image.fromarray(flat).quantize(2).save(tmp_path / "palette.png")
    assert np.array_equal(pixels(tmp_path / "palette.png"), flat)
    Image.fromarray(GREY).point(lambda value: 255 * (value > 100)).convert("1", dither=0).save(tmp_path / "bits.png")
    assert np.array_equal(pixels(tmp_path / "bits.png"), np.where(GREY > 100, 255, 0))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_parts_are_white(tmp_path, mode):
    image = Image.fromarray(COLOUR).convert(mode)
    alpha = np.full(GREY.shape, 255, np.uint8)
    alpha[:4] = 0
    image.putalpha(Image.fromarray(alpha))
    image.save(tmp_path / "a.png")
    found = pixels(tmp_path / "a.png")
    opaque = np.asarray(Image.fromarray(COLOUR).convert("L" if mode == "LA" else "RGB"))
    assert (found[:4] == 255).all()
    assert np.array_equal(found[4:], opaque[4:])


def test_a_transparent_palette_colour_is_white(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "a.png", transparency=1)
    assert pixels(tmp_path / "a.png").tolist() == [[[10, 20, 30], [255, 255, 255]]]


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits_keep_their_full_range(tmp_path, suffix):
    values = np.array([[0, 128, 129, 257], [32768, 65407, 65408, 65535]], np.uint16)
    found = pixels(saved(tmp_path / f"a.{suffix}", values))
    assert np.array_equal(found, np.rint(values / 257))  # Pillow's own conversion would cut off at 255


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_cameras_orientation_is_obeyed(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / "a.png", COLOUR, exif=exif)
    upright = {
        1: COLOUR,
        2: COLOUR[:, ::-1],
        3: COLOUR[::-1, ::-1],
        4: COLOUR[::-1],
        5: COLOUR.swapaxes(0, 1),
        6: np.rot90(COLOUR, -1),
        7: COLOUR[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(COLOUR, 1),
    }
    assert np.array_equal(pixels(path), upright[orientation])


def test_the_first_picture_of_an_animation(tmp_path):
    first, second = (Image.new("RGB", (4, 4), colour) for colour in ("red", "blue"))
    first.save(tmp_path / "a.gif", save_all=True, append_images=[second])
    assert (pixels(tmp_path / "a.gif") == (255, 0, 0)).all()


def test_floating_point_and_32_bit_pixels_are_refused(tmp_path):
    path = saved(tmp_path / "a.tif", GREY.astype(np.float32))
    with pytest.raises(ValueError, match=r"a\.tif: its pixels are floating-point"):
        decode(path)
    path = saved(tmp_path / "b.tif", GREY.astype(np.int32) * 1000)
    with pytest.raises(ValueError, match=r"b\.tif: its grey values run from \d+ to \d+, expected 0 to 65535"):
        decode(path)


def test_missing_empty_and_foreign_files_are_named(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "a.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")
    for name, problem in {
        "missing.png": "no such file",
        "empty.png": "empty",
        "text.png": "not a picture",
        "a.eps": "not a picture",
    }.items():
        with pytest.raises(ValueError, match=problem) as error:
            decode(tmp_path / name)
        assert str(error.value).startswith(f"{tmp_path / name}: ")
    with pytest.raises(ValueError, match="no such file"):
        decode(tmp_path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "gif", "bmp", "webp"])
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_every_way_to_cut_a_file_short_is_named(tmp_path, suffix):
    whole = saved(tmp_path / f"a.{suffix}", COLOUR).read_bytes()
    path = tmp_path / f"cut.{suffix}"
    problems = []
    for length in range(1, len(whole), 7):
        path.write_bytes(whole[:length])
        try:
            decode(path)  # some formats can lose their last bytes unharmed
        except ValueError as error:
            problems.append(str(error))
    assert len(problems) > 10
    assert all(problem.startswith(f"{path}: ") for problem in problems)


def bomb(side):
    """A PNG of a few hundred bytes that says it is side x side pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [9_460, 20_000])  # just above the limit, and above what Pillow itself refuses
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_picture_above_the_limit_is_refused_before_it_is_decoded(tmp_path, side):
    (tmp_path / "a.png").write_bytes(bomb(side))
    with pytest.raises(ValueError, match=r"a\.png: .*limit is 89,478,485 pixels"):
        open_image(tmp_path / "a.png")


def test_the_limit_counts_pixels(tmp_path, monkeypatch):
    path = saved(tmp_path / "a.png", GREY)
    monkeypatch.setattr(image_decode, "MAX_PIXELS", GREY.size)
    open_image(path).close()
    monkeypatch.setattr(image_decode, "MAX_PIXELS", GREY.size - 1)
    with pytest.raises(ValueError, match="9 x 12 pixels"):
        open_image(path)
