import os
from pathlib import Path

import pytest


@pytest.fixture
def real_root() -> Path:
    """Folder of the real sets; COMPRESSKIT_DATA overrides its place."""
    root = Path(os.environ.get("COMPRESSKIT_DATA", "~/.cache/compresskit-data")).expanduser()
    if not root.is_dir():
        pytest.skip(f"no real data sets at {root}; set COMPRESSKIT_DATA to their folder")
    return root
