"""`prune` and `reconstruct` on a small vision transformer, end to end: every kind of channels, every repair."""

import json
from pathlib import Path

import pytest

from tests.commands.conftest import program

NET = """\
model:
  kind: timm:vit_tiny_patch16_224
  arguments: {img_size: 28, patch_size: 14, in_chans: 1, embed_dim: 24, depth: 2, num_heads: 2, mlp_ratio: 2}
data: {kind: mnist-mini, limit: 1500, validation: 500}
train: {epochs: 1, batch_size: 128, optimizer: {kind: adam, lr: 2e-3}}
prune: {target: {macs: 70%}, samples: 200}
reconstruct: {keep: 60%, samples: 200}
"""


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vit")
    (folder / "vit.yaml").write_text(NET)
    done = program("train", "vit.yaml", "--out", "trained", cwd=folder)
    assert done.status == 0, done.err
    return folder


@pytest.mark.parametrize("repair", ["parallel", "top-down"])
@pytest.mark.parametrize("groups", ["auto", "[head-dim]", "[heads, hidden]", "[width]", "[hidden, head-dim, width]"])
def test_kinds_and_repairs(call, vit, groups, repair):
    options = (f"prune.groups={groups}", f"prune.repair={repair}", "prune.target.macs=80%")
    outcome = call("prune", vit / "vit.yaml", *options, "-c", vit / "trained", "--out", "out")
    assert outcome.status == 0, outcome.err
    found = json.loads(Path("out/report.json").read_text())
    assert found["checks"]["cut against the whole net that does not see what is cut"] < 1e-4
    assert found["targets"][0]["met"]


@pytest.mark.parametrize("chaining", ["parallel", "top-down", "bottom-up"])
def test_reconstruct(call, vit, chaining):
    options = (f"reconstruct.chaining={chaining}",)
    outcome = call("reconstruct", vit / "vit.yaml", *options, "-c", vit / "trained", "--out", "out")
    assert outcome.status == 0, outcome.err
    assert json.loads(Path("out/report.json").read_text())["checks"]["cut net against the one with zeros"] < 1e-4
