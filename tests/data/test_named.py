import os
import struct

import numpy as np
import pytest
import torch
from torchvision import datasets

from compresskit.data.named import CIFAR10, CIFAR100, MNIST, FashionMNIST
from compresskit.data.stored.normalization import measure
from compresskit.errors import DataError

CPU = torch.device("cpu")


@pytest.mark.parametrize(("option", "reader"), [(MNIST, datasets.MNIST), (FashionMNIST, datasets.FashionMNIST)])
def test_real_set_is_torchvisions_under_its_stated_normalisation(option, reader, real_root):
    data = option(root=str(real_root), validation=5000).load(seed=0)
    assert (len(data.train), len(data.validation), len(data.test)) == (55_000, 5_000, 10_000)
    raw = reader(real_root)
    measured = measure(raw.data.unsqueeze(1))
    assert data.mean == pytest.approx(measured.mean, rel=1e-12)
    assert data.std == pytest.approx(measured.std, rel=1e-12)
    test = reader(real_root, train=False)
    inputs, targets = next(data.test.batches(64, CPU))
    restored = (inputs * data.std[0] + data.mean[0]).mul(255).round().byte()
    assert torch.equal(restored[:, 0], test.data[:64])
    assert torch.equal(targets, test.targets[:64])


def test_cifar_images_come_channels_first(monkeypatch):
    pixels = np.arange(5 * 32 * 32 * 3).reshape(5, 32, 32, 3).astype(np.uint8)

    class CIFAR10Files:
        classes = [str(number) for number in range(10)]

        def __init__(self, root, train, download):
            self.data, self.targets = pixels, [0, 1, 2, 3, 9]

    monkeypatch.setattr(datasets, "CIFAR10", CIFAR10Files)
    data = CIFAR10(normalize="none").load(seed=0)
    inputs, targets = next(data.train.batches(5, CPU))
    assert data.input_shape == (3, 32, 32)
    assert torch.equal((inputs * 255).round().byte(), torch.from_numpy(pixels.transpose(0, 3, 1, 2)))
    assert targets.tolist() == [0, 1, 2, 3, 9]
    assert (data.outputs, data.classes, data.of_bytes) == (10, tuple("0123456789"), (True,))


PLACES = {
    MNIST: "MNIST/raw",
    FashionMNIST: "FashionMNIST/raw",
    CIFAR10: "cifar-10-batches-py",
    CIFAR100: "cifar-100-python",
}


@pytest.mark.parametrize(("option", "place"), PLACES.items())
def test_missing_files_name_the_folder_and_the_remedy(option, place, tmp_path):
    message = rf"{tmp_path}: cannot be read as torchvision's {option.__name__} .*set data\.download: true, or .*{place}"
    with pytest.raises(DataError, match=message):
        option(root=str(tmp_path)).load(seed=0)


def write_mnist(root, train=(4, [0, 1, 2, 9]), test=(2, [3, 4]), side=5):
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    for part, (images, labels), size in (("train", train, 5), ("t10k", test, side)):
        pixels = b"".join(struct.pack(">I", number) for number in (0x803, images, size, size)) + bytes(images * size**2)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(pixels)
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, len(labels)) + bytes(labels))
    return MNIST(root=str(root))


def test_labels_and_shapes_that_cannot_be(tmp_path):
    assert len(write_mnist(tmp_path).load(seed=0).train) == 4
    with pytest.raises(
        DataError, match=r"training part of MNIST has 1 labels that .* the first 200 at \[2\]; classes are"
    ):
        write_mnist(tmp_path, train=(4, [0, 1, 200, 9])).load(seed=0)
    with pytest.raises(DataError, match="test part of MNIST holds 2 images and 3 labels; fetch the set anew"):
        write_mnist(tmp_path, test=(2, [3, 4, 5])).load(seed=0)
    with pytest.raises(DataError, match="cannot be read as torchvision's MNIST"):
        write_mnist(tmp_path, test=(0, [])).load(seed=0)
    with pytest.raises(DataError, match=r"MNIST holds images of \(1, 5, 5\) to train on and of \(1, 6, 6\) to test on"):
        write_mnist(tmp_path, side=6).load(seed=0)


def test_pipes_in_the_place_of_files_are_not_waited_for(tmp_path):
    options = write_mnist(tmp_path)
    path = tmp_path / "MNIST/raw/train-labels-idx1-ubyte"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DataError, match="cannot be read as torchvision's MNIST"):
        options.load(seed=0)


DAMAGED = {
    "an unknown type": b"\0\0\x01\x03" + 3 * b"\0\0\0\x01" + b"\0",
    "absurd sizes": b"\0\0\x08\x03" + 3 * b"\xff\xff\xff\xff" + bytes(9),
    "cut short": b"\0\0\x08\x03\0\0",
    "labels for images": b"\0\0\x08\x01\0\0\0\x01\x05",
    "zeros": bytes(16),
    "16-bit pixels": b"\0\0\x0b\x03" + 3 * b"\0\0\0\x01" + b"\0\0",
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_a_data_error(content, tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        for name in (f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"):
            (raw / name).write_bytes(content)
    with pytest.raises(DataError, match="cannot be read as torchvision's MNIST|holds 0 images"):
        MNIST(root=str(tmp_path)).load(seed=0)


def test_home_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(DataError, match=f"{tmp_path}/sets: "):
        MNIST(root="~/sets").load(seed=0)
