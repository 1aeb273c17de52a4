"""What the machine has."""

import os


def total_memory() -> float:
    """Bytes of its memory, free or not."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):  # not on Windows
        return float("inf")
