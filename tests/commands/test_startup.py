"""What a verb imports: nothing that it does not need and that takes long."""

import gc
import json
import subprocess
import sys
from pathlib import Path

import pytest

from compresskit import process
from tests.commands.conftest import environment

HEAVY = ("torchvision", "matplotlib", "scipy", "pandas", "sympy", "timm", "torch._dynamo", "torch._inductor")
RUN = """
import atexit, json, sys
atexit.register(lambda: open("modules.json", "w").write(json.dumps(sorted(sys.modules))))
from compresskit.__main__ import main
main()
"""


def imported(folder: Path, *arguments: object) -> set[str]:
    """Of the heavy modules, those that a run of the program loads."""
    command = [sys.executable, "-c", RUN, *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment(), timeout=300)
    assert done.returncode == 0, done.stderr
    return set(HEAVY) & set(json.loads((folder / "modules.json").read_text()))


# Each verb is started as installed here or, to be killed, by its own tests: other programs are forked (tests/forked).
STARTS = {
    "evaluate": ((), set()),
    "finetune": (("--dry-run",), set()),
    "prune": (("prune={target: {macs: 50%}}", "--dry-run"), {"matplotlib"}),
    "spectra": (("spectra={}",), {"matplotlib"}),
    "validate": ((), {"matplotlib"}),
}


@pytest.mark.parametrize("verb", STARTS)
def test_a_verb_loads_nothing_heavy_that_it_does_not_need(verb, trained, tmp_path):
    options, needed = STARTS[verb]
    assert imported(tmp_path, verb, trained / "net.yaml", *options, "-c", trained / "runs/net-train") == needed


@pytest.mark.parametrize(("verb", "options"), [("inspect", ()), ("export", ("--out", "net.pt"))])
def test_a_verb_without_a_recipe_loads_nothing_heavy(verb, options, trained, tmp_path):
    assert imported(tmp_path, verb, trained / "runs/net-train", *options) == set()


def test_what_is_needed_is_seen(trained, tmp_path):
    """The same look at a run that draws its learning curves."""
    assert "matplotlib" in imported(tmp_path, "train", trained / "net.yaml", "train.epochs=1")


@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_is_collected_behind_imports_as_before(enabled):
    def fail() -> None:
        with process.importing():
            assert not gc.isenabled()
            raise ImportError

    (gc.enable if enabled else gc.disable)()
    try:
        with pytest.raises(ImportError):
            fail()
        assert gc.isenabled() == enabled
    finally:
        gc.enable()
