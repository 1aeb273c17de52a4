"""Images in files of the user, as RGB or as masks of classes: every mode of PIL, and nothing clipped."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from compresskit.data.reading.regular import reading, regular
from compresskit.errors import DataError

# What carries the endings of image folders. PIL knows more, and hands some of them to other programs
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "DIB", "TIFF", "WEBP", "GIF", "JPEG2000")
DEEP = 65535  # white with 16 bits
# Of mode I, which holds 32 bits: PIL stretches the grey levels of a PGM to 16 bits, and before version 11 it opened
# 16-bit PNGs so
DEEP_IN_32 = ("PNG", "PPM")
THIN = 1000  # times as long as wide: scaled by its shorter side, the image would fill the memory
BITS_PER_SAMPLE = 258  # tag of TIFF


def decode(path: str) -> Image.Image:
    """The RGB image of a file; grey levels of 16 bits are scaled (65535 is white), alpha is dropped.

    Raises DataError for a file that cannot be read, and for an image whose brightness cannot be told (32-bit integers
    and floats), that would become black (16-bit levels below 256), that lies in its alpha channel alone, or that is a
    thread.
    """
    with opened(path, "an image") as image:
        if max(image.size) > THIN * min(image.size):
            raise DataError(
                f"{path}: of {image.width} x {image.height} pixels, too thin to be scaled; cut or remove it"
            )
        if image.mode in ("I", "F") or image.mode.startswith("I;16"):
            return _scaled(image, path)
        rgb = image.convert("RGB")
        if "A" in image.getbands() or "a" in image.getbands() or (image.mode == "P" and "transparency" in image.info):
            _check_alpha(image, rgb, path)
        return rgb


@contextmanager
def opened(path: str, what: str) -> Iterator[ImageFile.ImageFile]:
    """PIL's image of a regular file, silently: its warnings (odd metadata, many pixels) ask nothing of the user.

    Raises DataError for whatever PIL raises, here and in the block.
    """
    regular(path)
    with reading(path, what), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(path, formats=FORMATS) as image:
                yield image
        except Image.DecompressionBombError as error:
            most = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6
            raise DataError(f"{path}: of more than {most} million pixels; scale it down or remove it") from error


def read_mask(path: str, image: str) -> NDArray[np.uint8]:
    """(height, width): the numbers in the mask of an image, for an indexed one those of its colours."""
    with opened(path, "a mask") as mask, opened(image, "an image") as pixels:
        # PIL stretches grey levels of 2 and 4 bits to 0 .. 255, so that classes would get other numbers; a format that
        # loses something changes them too
        exact = mask.format == "PNG" and mask.mode in ("L", "P") and mask.tile[0].args not in ("L;2", "L;4")
        if not exact or mask.size != pixels.size:
            raise DataError(f"{path}: no mask of its image; give an indexed or grey PNG of 8 bits, of the image's size")
        return np.array(mask)


def _scaled(image: Image.Image, path: str) -> Image.Image:
    white = _white(image)
    if white is None:
        raise DataError(
            f"{path}: pixels of mode {image.mode} in {image.format}, of which nobody says what is white; save it as a "
            "PNG of 8 or 16 bits, or store all images in one file (kind: arrays)"
        )
    values = np.asarray(image).astype(np.uint32)
    if 0 < values.max() < 256:
        raise DataError(
            f"{path}: grey levels up to {values.max()}, where {white} is white: it would become black; save it with 8 "
            "bits, or stretch its levels"
        )
    levels = (255 * values + white // 2) // white  # rounded
    return Image.fromarray(levels.astype(np.uint8)).convert("RGB")


def _white(image: Image.Image) -> int | None:
    """The level that is white, where the file's format tells it."""
    if image.mode == "I":
        return DEEP if image.format in DEEP_IN_32 else None
    if image.mode == "F" or image.format not in ("PNG", "TIFF", "JPEG2000", "PPM"):
        return None
    tags = getattr(image, "tag_v2", {})  # PIL opens a TIFF of 12 bits as 16
    return int(2 ** tags.get(BITS_PER_SAMPLE, (16,))[0]) - 1


def _check_alpha(image: Image.Image, rgb: Image.Image, path: str) -> None:
    """Raises DataError for a drawing in one colour on a transparent ground, of which RGB keeps the colour alone."""
    alpha, colours = np.asarray(image.convert("RGBA").getchannel("A")), np.asarray(rgb)
    if np.ptp(alpha) and not np.ptp(colours, axis=(0, 1)).any():
        raise DataError(
            f"{path}: all of it is in its alpha channel, which is dropped, and the rest is one colour; draw it on a "
            "ground and save it without alpha"
        )
