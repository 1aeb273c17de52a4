"""The templates as a part of the package."""

import tomllib
from fnmatch import fnmatchcase
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_template_is_in_the_built_package():
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["compresskit"]
    files = [
        path
        for path in (ROOT / "compresskit/page").rglob("*")
        if path.is_file() and path.suffix in (".jinja", ".css", ".js")
    ]
    assert len(files) == 6
    for path in files:
        name = path.relative_to(ROOT / "compresskit").as_posix()
        assert any(fnmatchcase(name, pattern) for pattern in patterns), f"{name} matches none of {patterns}"
