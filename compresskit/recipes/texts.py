"""Texts of a fixed form, which options are annotated with: sizes in bytes, names of files."""

from typing import Annotated

from pydantic import StringConstraints

Size = Annotated[  # 500 MiB, 4GB; 1GB = 10^9
    str, StringConstraints(pattern=r"^[0-9]+(\.[0-9]+)? ?([kMGT]|[KMGT]i)?B$"), "such as 4GB or 500 MiB"
]
FileName = Annotated[str, StringConstraints(pattern=r"^[^/\\]+$"), "without slashes"]

_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def bytes_of(size: Size) -> int:
    """What the text stands for: 4GB is 4 * 10^9 bytes."""
    number = size.rstrip("BikMGT ")
    return int(float(number) * _UNITS[size.removeprefix(number).strip(" B")])
