"""README and docs: what is marked as runnable runs on tiny data, and tables, pictures and links are up to date."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts.make_docs_pictures import PICTURES
from scripts.make_docs_tables import with_tables
from tests.forked.start import commands, environment

ROOT = Path(__file__).parents[2]
PAGES = {str(path.relative_to(ROOT)): path for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]}
# `<!-- file: net.yaml -->` or `<!-- run -->` on the line above a fence
_MARKED = re.compile(
    r"<!-- (?:file: (?P<file>\S+)|(?P<run>run)) -->\n```(?P<language>\w+)\n(?P<text>.*?)```", re.DOTALL
)
_IMAGES = 400  # of mnist-mini


@dataclass(frozen=True)
class Block:
    """A file to write, or a text to run in its language."""

    language: str
    text: str
    file: str | None


def blocks(page: str) -> list[Block]:
    found = _MARKED.finditer(page)
    return [Block(match["language"], match["text"], match["file"]) for match in found]


def tiny(recipe: Any) -> Any:
    """The recipe with one epoch everywhere and few images, so that it runs in seconds."""
    if isinstance(recipe, list):
        return [tiny(item) for item in recipe]
    if not isinstance(recipe, dict):
        return recipe
    small = {key: 1 if key == "epochs" else tiny(value) for key, value in recipe.items()}
    if small.get("kind") == "mnist-mini":
        small |= {"limit": _IMAGES} | ({"validation": 100} if "validation" in small else {})
    return small


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as a reader's, with the scripts and the shipped recipes in it, these made small."""
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    for path in (ROOT / "configs").rglob("*.yaml"):
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(yaml.safe_dump(tiny(yaml.safe_load(path.read_text())), sort_keys=False))
    return tmp_path


def run(block: Block, folder: Path) -> None:
    shell = ["bash", "-euo", "pipefail", "-c", block.text]
    command = shell if block.language == "sh" else [commands() / "python", "-c", block.text]
    path = os.pathsep.join([str(commands()), str(Path(sys.executable).parent), os.environ["PATH"]])
    variables = environment() | {"PATH": path}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=variables, timeout=300)
    assert done.returncode == 0, f"{block.text}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("name", [name for name, path in PAGES.items() if blocks(path.read_text())])
def test_what_a_page_marks_as_runnable_runs(name, folder):
    for block in blocks(PAGES[name].read_text()):
        if block.file is None:
            run(block, folder)
        elif block.language == "yaml":
            (folder / block.file).write_text(yaml.safe_dump(tiny(yaml.safe_load(block.text)), sort_keys=False))
        else:
            (folder / block.file).write_text(block.text)


@pytest.mark.parametrize("verb", ["train", "finetune", "fuse", "expand", "prune", "reconstruct", "spectra"])
def test_each_verb_has_a_page_with_a_chain_that_runs_and_all_its_keys(verb):
    page = PAGES[f"docs/verbs/{verb}.md"].read_text()
    assert any(block.file is None and f"compresskit {verb} " in block.text for block in blocks(page))
    assert f"<!-- keys: {verb} -->" in page
    assert "../pictures/" in page


@pytest.mark.parametrize("name", PAGES)
def test_tables_of_keys_are_those_of_the_program(name):
    page = PAGES[name].read_text()
    assert with_tables(page) == page, "run scripts/make_docs_tables.py"


def pictures_in(page: str) -> Iterator[str]:
    for path in re.findall(r"!\[[^]]*\]\(([^)]*)\)", page):
        yield Path(path).name


def test_pictures_are_made_by_the_script_and_each_is_shown():
    shown = {picture for path in PAGES.values() for picture in pictures_in(path.read_text())}
    made = {path.name for path in (ROOT / "docs/pictures").glob("*.png")}
    rivals = json.loads((ROOT / "docs/results/raw/rivals.json").read_text())["nets"]  # scripts/compare_rivals.py
    assert shown == made == set(PICTURES) | {f"rivals-{net}.png" for net in rivals}


def test_readme_takes_five_minutes():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_every_recipe_that_a_page_names_exists():
    for name, path in PAGES.items():
        for recipe in re.findall(r"configs/[\w/.-]+\.yaml", path.read_text()):
            assert (ROOT / recipe).exists(), f"{name} names {recipe}"


def test_every_module_and_file_that_a_page_names_exists():
    for name, path in PAGES.items():
        page = path.read_text()
        for module in re.findall(r"(?:(?<=from )|(?<=`))compresskit(?:\.[a-z_]+){2,}(?= import|`)", page):
            assert importlib.util.find_spec(module), f"{name} names {module}"
        for file in re.findall(
            r"`((?:commands|passes|graph|numerics|training|storage|data|models)/[a-z_/]+\.py)`", page
        ):
            assert (ROOT / "compresskit" / file).exists(), f"{name} names {file}"


def test_no_page_shows_paths_of_the_machine_that_it_was_written_on():
    for name, path in PAGES.items():
        assert not re.search(r"/tmp/|/work/|/root/|/home/", path.read_text()), name


def test_a_broken_block_and_a_stale_table_are_seen(folder):
    with pytest.raises(AssertionError, match="false"):
        run(Block("sh", "true\nfalse\n", None), folder)
    assert with_tables("<!-- keys: report -->\nold\n<!-- end of keys -->").count("`report.plots`") == 1
    small = {"train": {"epochs": 1}, "data": {"kind": "mnist-mini", "limit": _IMAGES}}
    assert tiny({"train": {"epochs": 9}, "data": {"kind": "mnist-mini"}}) == small
