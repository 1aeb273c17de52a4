"""Imports run downward between folders, every outside library has one home, and files and folders stay small."""

import ast
from collections import Counter
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "compresskit"
# Rooms, the top one first: a folder without those in it, or a file that stands for itself. A room may import the rooms
# on lines below its own and none beside or above it; the most exact pattern counts.
FLOORS = [
    ["__main__"],
    ["cli"],
    ["report"],
    ["terminal"],
    # what a user types: each verb reads files, calls a pass, evaluates, and writes files
    ["commands.validate"],
    ["commands.spectra", "commands.fuse", "commands.prune", "commands.reconstruct", "commands.finetune"],
    ["commands.export"],
    ["commands.evaluate", "commands.show", "commands.show.overview"],
    ["commands.train", "commands.inspect"],
    ["commands.expand"],
    ["commands.repair"],
    ["commands"],
    ["commands.jobs"],
    ["commands.session"],
    ["commands.figures", "commands.parents"],
    ["commands.result"],
    ["commands.recipe"],
    ["commands.*.section"],
    ["page", "plots"],
    ["recipes"],
    # training of a network
    ["training"],
    ["training.analyses"],
    ["training.optimization", "training.tasks"],
    # (model, statistics, options) -> (new model, rows)
    ["passes.prune"],
    ["passes.prune.criteria"],
    ["passes.repair"],
    [
        "passes.expand",
        "passes.fold",
        "passes.fuse",
        "passes.initialise",
        "passes.isometry",
        "passes.reconstruct",
        "passes.spectra",
    ],
    ["passes"],
    ["storage.exported"],
    ["storage"],
    # networks as graphs
    ["graph.source"],
    ["graph.channels"],
    ["graph.channels.rules"],
    ["graph.channels.record"],
    ["graph.channels.numbers"],
    ["graph.channels.labels"],
    ["graph"],
    ["graph.doors"],
    ["graph.format"],
    ["graph.layers"],
    # what recipes name
    ["data.registry"],
    ["data.own"],
    ["models", "data"],
    [
        "models.plain",
        "models.images",
        "models.scenes",
        "models.weights",
        "data.augmentation",
        "data.reading",
        "data.stored",
    ],
    ["models.parts"],
    ["jobs"],
    # tensors in, tensors out
    ["numerics.selection", "numerics.pruning", "numerics.sparse", "numerics.orthogonal", "numerics.expansion"],
    ["numerics.group_lasso", "numerics.spectra"],
    ["numerics.least_squares"],
    ["numerics.moments"],
    ["numerics"],
    ["distributed", "mishaps", "user_code"],
    ["options", "errors", "process", "shapes", "__init__"],
]
HOMES = {
    "typer": ["cli"],
    "rich": ["report", "terminal"],
    "yaml": ["recipes.yaml_reader"],
    "pydantic": ["recipes.build", "recipes.hints", "recipes.texts", "storage.content"],
    "h5py": ["storage.moment_cache", "storage.stored_matrix", "data.reading.arrays"],
    "torchvision": ["models", "data"],
    "matplotlib": ["plots"],
    "jinja2": ["page.render"],
    "tensorboard": ["training.metrics_log"],
    "scipy": ["numerics"],
    "PIL": ["data"],
    "pycocotools": ["training.tasks.average_precision"],
    "onnxruntime": ["storage.exported"],
    "onnx": ["storage.exported"],
    "filelock": ["storage.lock"],
    "ray": ["jobs.cluster"],
    "multiprocessing": ["jobs", "process", "passes.reconstruct.workers"],
}
ROOMS = [room for floor in FLOORS for room in floor]
LEVELS = {room: level for level, floor in enumerate(FLOORS) for room in floor}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.read_text().strip())


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path) for path in PACKAGE.rglob("*.py")}


def imports(path: Path) -> list[tuple[str, bool]]:
    """(module or name in it, whether it is imported at the top) of every import of the file."""
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


def room_of(module: str) -> str:
    """The room that a file stands in: one of its own, or that of its folder."""
    folder = module if (PACKAGE / Path(*module.split("."))).is_dir() else module.rpartition(".")[0]
    own = [room for room in ROOMS if fnmatchcase(module, room)] or [room for room in ROOMS if room == folder]
    assert own, f"{module}: it stands in no room; add {folder or module} to FLOORS"
    return max(own, key=len)


def inside(module: str) -> list[str]:
    """The modules of the package that it imports."""
    path = PACKAGE.joinpath(*module.split("."))
    path = path.with_suffix(".py") if path.with_suffix(".py").exists() else path / "__init__.py"
    named = [name.removeprefix("compresskit.") for name, _ in imports(path) if name.startswith("compresskit.")]
    return [name if name in MODULES else name.rpartition(".")[0] or "__init__" for name in named]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_run_downward(path):
    own = name_of(path)
    room = room_of(own)
    for other in inside(own):
        above = LEVELS[room_of(other)] <= LEVELS[room] and room_of(other) != room
        assert not above, f"{own} ({room}) imports {other} ({room_of(other)}), which is beside or above it"


def test_no_file_imports_what_its_neighbour_keeps_to_itself():
    private = [
        f"{name_of(path)} imports {name}"
        for path in FILES
        for name, _ in imports(path)
        if name.startswith("compresskit.") and name.rpartition(".")[2].startswith("_") and not name.endswith("__")
    ]
    assert not private


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
    assert len(path.read_text().splitlines()) <= 300


def test_folders_hold_few_files():
    files = Counter(path.parent for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")
    assert {str(folder): count for folder, count in files.items() if count > 12} == {}


def test_tests_have_the_folders_of_what_they_test():
    tests = Path(__file__).parent
    folders = {path.parent.relative_to(tests) for path in tests.rglob("test_*.py")} - {
        Path(name) for name in ("docs", "campaigns", "devices")
    }
    assert {str(folder) for folder in folders if not (PACKAGE / folder).is_dir()} == set()


def test_a_prefix_that_a_folder_gives_is_not_in_the_names_of_its_files():
    doubled = [
        name for name in MODULES if "_" in name and name.split(".")[-1].startswith(name.split(".")[-2:][0] + "_")
    ]
    assert doubled == []


def test_the_command_line_imports_nothing_heavy_before_a_verb_runs():
    heavy = {"torch", "torchvision", "numpy", "rich", "pydantic", "matplotlib", "h5py"}
    for path in (
        *(PACKAGE / "cli").glob("*.py"),
        PACKAGE / "errors.py",
        PACKAGE / "__init__.py",
        PACKAGE / "__main__.py",
    ):
        top = {module.split(".")[0] for module, at_top in imports(path) if at_top}
        assert not top & heavy, f"{path}: {top & heavy}"
