"""A sample of other people's nets through every step; all families are `make test-all`."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts/zoo.py"
SAMPLE = [
    *("timm:test_vit", "timm:test_convnext", "timm:test_efficientnet", "timm:test_byobnet", "timm:test_resnet"),
    *("timm:test_nfnet", "timm:test_mambaout", "timm:test_coatnet", "timm:mobilenetv3_small_050", "timm:ghostnet_050"),
    *("timm:test_vit_relpos", "timm:edgenext_xx_small"),
    *("torchvision:squeezenet1_1", "torchvision:shufflenet_v2_x0_5", "torchvision:mobilenet_v3_small"),
]
spec = importlib.util.spec_from_file_location("zoo", SCRIPT)
zoo = importlib.util.module_from_spec(spec)
spec.loader.exec_module(zoo)


def check(found: dict) -> None:
    assert [(key, told) for key, told in found.items() if key.startswith("failed")] == []
    for mode in ("eval", "train"):
        differences = [float(word) for word in found[mode].split() if "e-" in word]
        assert all(size <= 1e-5 for size in differences)
    assert found["saved"] == "equal"
    assert found["law"] <= 1e-12
    assert 0.45 < found["half"] <= 0.5
    assert found["expand"] < 1e-9
    assert found["export"] < 1e-3


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SAMPLE)
def test_every_step(name):
    check(zoo.examined(name))


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
def test_every_family(tmp_path):
    command = [sys.executable, str(SCRIPT), "--timm", "--torchvision", "--out", str(tmp_path / "zoo.jsonl")]
    subprocess.run(command, check=True)
    rows = [json.loads(line) for line in (tmp_path / "zoo.jsonl").read_text().splitlines()]
    came_in = [found for found in rows if "door" in found]
    halved = [found for found in came_in if found.get("half", 1) <= 0.5 and found.get("law", 1) <= 1e-12]
    assert len(came_in) >= 0.95 * len(rows)
    assert len(halved) >= 0.90 * len(rows)
    assert not [found for found in rows if "TRACEBACK" in str(found)]
