"""scripts/check_gpu.py compares the CPU with itself where it is told to, and says where two runs differ."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.forked.start import python

SCRIPT = Path(__file__).parents[1] / "scripts" / "check_gpu.py"


def run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return python(SCRIPT, "--device", "cpu", "--jobs", "1", "--no-bench", "--out", folder, *options)


def test_the_cpu_against_itself(tmp_path):
    done = run(tmp_path, "--only", "reconstruct, backward", "spectra, CKA")
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "gpu.json").read_text())["checks"]
    assert [(row["check"], row["difference"]) for row in rows] == [
        ("reconstruct, backward", 0.0), ("spectra, CKA", 0.0), ("reconstruct, backward, TF32", 0.0)
    ]  # fmt: skip
    assert "| spectra, CKA | tables | 0e+00 |" in (tmp_path / "gpu.md").read_text()


def test_what_fails_is_named_and_the_status_says_so(tmp_path):
    done = run(tmp_path, "--only", "train, float16")
    assert done.returncode == 1
    assert "float16 needs --device cuda" in done.stdout
    assert "failed: 1 of 1" in done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu():
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True)
    assert done.returncode == 1
    assert "torch finds no GPU here" in done.stderr
