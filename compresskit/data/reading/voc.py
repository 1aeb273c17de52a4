"""PASCAL VOC's lists of images, in the layout that torchvision unpacks."""

from pathlib import Path

from compresskit.data.reading.regular import at_home, reading, regular
from compresskit.errors import DataError


def listed(root: str, year: int, kind: str, part: str) -> tuple[Path, Path, list[str]]:
    """The root, its folder of the year, and the names of the images in ImageSets/{kind}/{part}.txt.

    Raises DataError where that file lacks, is none, or lists nothing.
    """
    top = at_home(root)
    folder = top / ("TrainVal/VOCdevkit" if year == 2011 else "VOCdevkit") / f"VOC{year}"
    path, advice = folder / f"ImageSets/{kind}/{part}.txt", "check data.root, and the years and parts that data names"
    regular(path, advice)
    with reading(path, "a list of images", advice):
        names = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    if not names:
        raise DataError(f"{path}: it lists no images; {advice}")
    return top, folder, names
