"""Imports run downward, every outside library has one home, and files stay small."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "compresskit"
FLOORS = [  # upper ones may import lower ones; those on one line may import each other
    {"__main__"},
    {"cli"},
    {"report"},
    {"commands"},
    {"plots"},
    {"recipes"},
    {"storage.moment_cache", "storage.checkpoint", "storage.exported", "storage.run_folder"},
    {"training"},
    {"passes"},
    {"graph"},
    {"models", "data"},
    {"numerics"},
    {"options", "errors", "storage.atomic", "storage.masked", "__init__", "__version__"},
]
HOMES = {
    "typer": {"cli"},
    "rich": {"report"},
    "yaml": {"recipes.yaml_reader"},
    "pydantic": {"recipes.build", "recipes.hints", "recipes.schema"},
    "h5py": {"storage.moment_cache", "data.arrays"},
    "torchvision": {"models", "data"},
    "matplotlib": {"plots"},
    "tensorboard": {"training.metrics_log"},
    "scipy": {"numerics"},
    "PIL": {"data"},
    "pycocotools": {"training.average_precision"},
    "onnxruntime": {"storage.exported"},
}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.read_text().strip())


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> list[tuple[str, bool]]:
    """(module, whether it is imported at the top) of every import of the file."""
    tree = ast.parse(path.read_text())
    top = set(map(id, tree.body))
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found += [(f"{node.module}.{alias.name}", id(node) in top) for alias in node.names]
    return found


def floor_of(module: str) -> int:
    """Number of the floor, 0 the top; the most exact entry counts."""
    fits = [
        (len(entry), index)
        for index, floor in enumerate(FLOORS)
        for entry in floor
        if module == entry or module.startswith(f"{entry}.")
    ]
    assert fits, f"{module}: it stands on no floor; add it to FLOORS"
    return max(fits)[1]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_run_downward(path):
    own = floor_of(name_of(path))
    for module, _ in imports(path):
        if module.startswith("compresskit."):
            other = module.removeprefix("compresskit.")
            assert floor_of(other) >= own, f"{name_of(path)} imports {other}, which stands above it"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_outside_libraries_stay_at_home(path):
    for module, _ in imports(path):
        library = module.split(".")[0]
        library = "tensorboard" if "tensorboard" in module else library
        homes = HOMES.get(library)
        at_home = homes is None or any(name_of(path) == home or name_of(path).startswith(f"{home}.") for home in homes)
        assert at_home, f"{name_of(path)} imports {library}, whose home is {homes}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_are_small(path):
    assert len(path.read_text().splitlines()) <= 400


def test_the_command_line_imports_nothing_heavy_before_a_verb_runs():
    heavy = {"torch", "torchvision", "numpy", "rich", "pydantic", "matplotlib", "h5py"}
    for path in (PACKAGE / "cli.py", PACKAGE / "errors.py", PACKAGE / "__init__.py", PACKAGE / "__main__.py"):
        top = {module.split(".")[0] for module, at_top in imports(path) if at_top}
        assert not top & heavy, f"{path}: {top & heavy}"
