"""Every mode that PIL knows becomes the RGB image that was meant, or is refused by the name of its file."""

import os
import struct

import numpy as np
import pytest
from PIL import Image

from compresskit.data.reading.images import FORMATS, decode
from compresskit.errors import DataError

RAMP = np.array([[0, 1, 128, 129], [257, 4095, 65534, 65535]], np.uint16)
SCALED = np.array([[0, 0, 0, 1], [1, 16, 255, 255]], np.uint8)  # v / 257, rounded


def grey(image):
    pixels = np.asarray(image)
    assert image.mode == "RGB"
    assert (pixels[..., :1] == pixels).all()
    return pixels[..., 0]


def tiff(values, bits, sample_format=1):
    """A grey TIFF, uncompressed, whose rows are whole bytes."""
    raw = values.tobytes() if bits >= 8 else b""
    if bits == 12:
        text = "".join(f"{value:012b}" for value in values.flat)
        raw = int(text, 2).to_bytes(len(text) // 8)
    height, width = values.shape
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: len(raw)}
    tags |= {339: sample_format}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    return b"II*\0" + struct.pack("<I", 8 + len(raw)) + raw + struct.pack("<H", len(tags)) + entries + bytes(4)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_grey_levels_of_16_bits_are_scaled(name, tmp_path):
    Image.fromarray(RAMP).save(tmp_path / name)
    np.testing.assert_array_equal(grey(decode(str(tmp_path / name))), SCALED)


def test_grey_levels_of_other_depths_are_scaled_by_their_own_white(tmp_path):
    (tmp_path / "big-endian.tif").write_bytes(tiff(RAMP.astype("<u2"), 16))
    np.testing.assert_array_equal(grey(decode(str(tmp_path / "big-endian.tif"))), SCALED)
    (tmp_path / "twelve.tif").write_bytes(tiff(np.array([[0, 8, 9, 4095]]), 12))
    assert grey(decode(str(tmp_path / "twelve.tif"))).tolist() == [[0, 0, 1, 255]]
    (tmp_path / "thousand.pgm").write_text("P2 3 1 1000\n0 500 1000\n")
    assert grey(decode(str(tmp_path / "thousand.pgm"))).tolist() == [[0, 128, 255]]


def test_black_stays_black_and_8_bits_in_16_are_refused(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.zeros((3, 3), np.uint16)).save(path)
    assert not grey(decode(str(path))).any()
    Image.fromarray(np.full((3, 3), 255, np.uint16)).save(path)
    with pytest.raises(
        DataError, match=rf"^{path}: grey levels up to 255, where 65535 is white: .*save it with 8 bits"
    ):
        decode(str(path))


@pytest.mark.parametrize(
    ("values", "sample_format"), [(RAMP.astype("<i4"), 2), (RAMP.astype("<f4"), 3), (RAMP.astype("<u4"), 1)]
)
def test_what_has_no_known_white_is_refused(values, sample_format, tmp_path):
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(values, 32, sample_format))
    with pytest.raises(DataError, match=rf"^{path}: pixels of mode [IF] in TIFF, of which nobody says what is white;"):
        decode(str(path))


def coloured(mode):
    """4 x 2 pixels of which the first is dark and the last bright, through the mode."""
    colours = np.linspace(10, 240, 8).round().astype(np.uint8).reshape(2, 4, 1).repeat(3, 2)
    image = Image.fromarray(colours)
    return {"PA": lambda: image.convert("P").convert("PA"), "RGBX": lambda: image.convert("RGBX")}.get(
        mode, lambda: image.convert(mode)
    )()


SAVED = {
    "1": "png", "L": "png", "LA": "png", "P": "png", "RGB": "png", "RGBA": "png", "PA": "tif", "RGBX": "tif",
    "CMYK": "tif", "YCbCr": "tif",
}  # fmt: skip


@pytest.mark.parametrize("mode", SAVED)
def test_modes_of_8_bits_are_read_as_torchvision_reads_them(mode, tmp_path):
    path = tmp_path / f"a.{SAVED[mode]}"
    coloured(mode).save(path)
    pixels = np.asarray(decode(str(path))).astype(int)
    assert pixels.shape == (2, 4, 3)
    np.testing.assert_array_equal(pixels, np.asarray(Image.open(path).convert("RGB")))
    assert pixels[0, 0].max() < 30
    assert pixels[-1, -1].min() > 200


def test_transparent_palettes_are_read_in_silence(tmp_path):
    image = coloured("P")
    image.save(tmp_path / "a.png", transparency=bytes([0, 255, 128]))
    assert decode(str(tmp_path / "a.png")).mode == "RGB"


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_a_drawing_in_the_alpha_channel_alone_is_refused(mode, tmp_path):
    path = tmp_path / "icon.png"
    image = Image.new(mode, (4, 4), 0)
    image.save(path)  # blank all over: so be it
    assert not grey(decode(str(path))).any()
    image.putpixel((1, 1), (0,) * (len(mode) - 1) + (255,))
    image.save(path)
    with pytest.raises(DataError, match=rf"^{path}: all of it is in its alpha channel"):
        decode(str(path))


def test_formats_are_those_that_pil_has():
    Image.init()
    assert set(FORMATS) <= Image.OPEN.keys()


def chunk(kind, content):
    import zlib

    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@pytest.mark.parametrize("side", [9_000, 20_000, 2**31 - 1])
def test_huge_images_end_in_one_line(side, tmp_path):
    """The first is below the limit, and cut short."""
    path = tmp_path / "a.png"
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    words = "cannot be read" if side == 9_000 else "of more than 178 million pixels; scale it down"
    with pytest.raises(DataError, match=rf"^{path}: {words}"):
        decode(str(path))


def test_images_too_thin_to_be_scaled(tmp_path):
    """Resized to a shorter side of 256, this one would have a thousand million pixels."""
    path = tmp_path / "a.png"
    Image.new("L", (20_000, 1)).save(path)
    with pytest.raises(DataError, match=rf"^{path}: of 20000 x 1 pixels, too thin to be scaled"):
        decode(str(path))


def test_what_is_no_regular_file_is_refused_and_never_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    os.symlink("/nowhere/gone.png", tmp_path / "link.png")
    os.symlink(tmp_path / "loop.png", tmp_path / "loop.png")
    (tmp_path / "folder.png").mkdir()
    words = {
        "pipe": "a named pipe, where a file is needed",
        "link": "a link to /nowhere/gone.png, which cannot be reached",
        "loop": "a link to .*loop.png, which cannot be reached",
        "folder": "a folder, where a file is needed",
        "none": "there is no such file",
        "n" * 300: "cannot be reached",
        "null\0": "cannot be reached",
    }
    for name, text in words.items():
        with pytest.raises(DataError, match=rf"{name}\.png: {text}.*; mend or remove it$"):
            decode(str(tmp_path / f"{name}.png"))


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    coloured("L").save(path)

    def refuse(*arguments, **named):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(DataError, match=rf"^{path}: cannot be read as an image \(.*Permission denied"):
        decode(str(path))


@pytest.mark.parametrize(
    "error", [KeyError("x"), EOFError(), struct.error("unpack"), ZeroDivisionError(), MemoryError()]
)
def test_whatever_a_parser_raises_is_one_line(error, tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    coloured("L").save(path)

    def fail(*arguments, **named):
        raise error

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(DataError, match=rf"^{path}: .*; mend or remove it$"):
        decode(str(path))
