import runpy
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch

from compresskit.data.mini import MnistMini
from compresskit.data.named import MNIST_NORMALIZATION

CPU = torch.device("cpu")
PACKED = files("compresskit.data").joinpath("mnist-mini.npz")


def test_shapes_balance_and_scale():
    data = MnistMini(validation=500).load(seed=0)
    assert (len(data.train), len(data.validation), len(data.test)) == (9500, 500, 2000)
    assert (data.input_shape, data.outputs, data.task) == ((1, 28, 28), 10, "classification")
    inputs, targets = next(data.test.batches(2000, CPU))
    assert inputs.shape == (2000, 1, 28, 28)
    assert inputs.dtype == torch.float32
    assert targets.bincount().tolist() == [200] * 10
    assert (data.mean, data.std) == (MNIST_NORMALIZATION.mean, MNIST_NORMALIZATION.std)
    assert abs(inputs.mean()) < 0.05
    assert abs(inputs.std() - 1) < 0.05


def test_training_part_is_balanced_and_in_random_order():
    data = MnistMini().load(seed=0)
    _, targets = next(data.train.batches(10_000, CPU))
    assert targets.bincount().tolist() == [1000] * 10
    assert targets[:1000].bincount(minlength=10).min() > 60


def test_the_file_is_small_and_no_image_is_twice_in_it():
    assert len(PACKED.read_bytes()) <= 3_000_000
    with PACKED.open("rb") as file, np.load(file) as arrays:
        images = [image.tobytes() for part in ("train", "test") for image in arrays[f"{part}_inputs"]]
    assert len(set(images)) == 12_000


def test_the_script_packs_the_same_arrays(real_root, tmp_path, capsys):
    script = Path(__file__).parents[2] / "scripts" / "make_mnist_mini.py"
    runpy.run_path(str(script))["main"](real_root, tmp_path / "again.npz")
    assert "bytes, sha256" in capsys.readouterr().out
    with PACKED.open("rb") as file, np.load(file) as packed, np.load(tmp_path / "again.npz") as again:
        assert packed.files == again.files
        for name in packed.files:
            np.testing.assert_array_equal(packed[name], again[name])
