"""Exported files on batches of data: what they take is made again of what batches hold."""

import zipfile

import pytest
import torch

from compresskit.data.stored.normalization import Normalization
from compresskit.errors import CheckpointError, RecipeError
from compresskit.storage.exported.metadata import read_metadata
from compresskit.storage.exported.running import Exported, open_exported

MEAN, STD = (0.1, 0.4914), (0.01, 0.2471)


def test_bytes_come_back_from_what_batches_hold():
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, 2, 16, 16)
    batch = Normalization(MEAN, STD).on(torch.device("cpu"), images)(images)
    told = {"normalised_inside": True, "mean": MEAN, "std": STD, "scale": 1 / 255, "inputs": [{"type": "uint8"}]}
    assert torch.equal(Exported(lambda taken: taken, told)(batch), images)


def test_numbers_come_back_too():
    stored = torch.randn(3, 2, 4)
    batch = Normalization(MEAN, STD).on(torch.device("cpu"), stored)(stored)
    told = {"normalised_inside": True, "mean": MEAN, "std": STD, "scale": 1.0, "inputs": [{"type": "float32"}]}
    torch.testing.assert_close(Exported(lambda taken: taken, told)(batch), stored, rtol=1e-5, atol=1e-6)


def test_probabilities_become_logarithms():
    scores = torch.randn(4, 3)
    network = Exported(lambda taken: taken.softmax(1), {"probabilities": True})
    torch.testing.assert_close(network(scores), scores.log_softmax(1))
    assert Exported(lambda taken: taken, {})(scores) is scores


def test_what_is_not_opened(tmp_path):
    with pytest.raises(RecipeError, match="it holds code"):
        open_exported(tmp_path / "net.py")
    (tmp_path / "net.pt2").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="net.pt2: it cannot be read"):
        open_exported(tmp_path / "net.pt2")
    with zipfile.ZipFile(tmp_path / "empty.pt2", "w") as archive:
        archive.writestr("net/extra/preprocessing.json", "{}")
    with pytest.raises(CheckpointError, match="empty.pt2: it cannot be run"):
        open_exported(tmp_path / "empty.pt2")
    with pytest.raises(CheckpointError, match="no such file"):
        read_metadata(tmp_path / "none.py")
