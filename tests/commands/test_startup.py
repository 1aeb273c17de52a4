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


@pytest.mark.parametrize("verb", ["evaluate", "inspect"])
def test_a_verb_loads_nothing_heavy_that_it_does_not_need(verb, trained, tmp_path):
    recipe, run = trained / "net.yaml", trained / "runs/net-train"
    given = (run,) if verb == "inspect" else (recipe, "--checkpoint", run)
    assert imported(tmp_path, verb, *given) == set()


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
