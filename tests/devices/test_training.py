"""What trains on a GPU: losses and tasks, precisions, augmentation, a set that the device has no room for."""

from dataclasses import replace
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest

from compresskit.data.augmentation.auto_augment import Policy
from compresskit.training.options import Training
from compresskit.training.tasks.losses import OF_TASK
from tests.devices.conftest import TRAIN
from tests.scenes import draw, write_voc_detection, write_voc_segmentation

SMALL: dict[str, Any] = {"kind": "convnet", "channels": [4], "pool_size": 4}
PRECISIONS = get_args(get_type_hints(Training)["precision"])


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Model and data for each task."""
    folder = tmp_path_factory.mktemp("tasks")
    random = np.random.default_rng(0)
    inputs, targets = random.standard_normal((60, 1, 8, 8), np.float32), random.standard_normal((60, 2), np.float32)
    np.savez(folder / "numbers.npz", inputs=inputs, targets=targets)
    scenes = [replace(scene, mask=np.minimum(scene.mask, 1)) for scene in draw(8, 64, 0)]
    one_class = [replace(scene, boxes=[(0, *box) for _, *box in scene.boxes]) for scene in scenes]
    for part in ("train", "val"):
        write_voc_segmentation(folder, scenes, part)
    for part in ("trainval", "test"):
        write_voc_detection(folder, one_class, part)
    of_files = {"root": str(folder), "workers": 0}
    boxes = {"kind": "voc-detection", "train": [2007], "classes": ["0"], "size": 64, "anchors": [[0.3, 0.3]]}
    return {
        "classification": {"model": SMALL},
        "regression": {"model": SMALL, "data": {"kind": "arrays", "path": str(folder / "numbers.npz")}},
        "segmentation": {
            "model": {"kind": "unet", "width": 2, "depth": 2},
            "data": {"kind": "voc-segmentation", "size": [64, 64], "classes": 2, **of_files},
        },
        "detection": {"model": {"kind": "yolo-lite"}, "data": boxes | of_files},
    }


@pytest.mark.parametrize(("task", "kind"), [(task, loss.kind) for task, losses in OF_TASK.items() for loss in losses])
def test_losses(on_gpu, tasks, task, kind):
    on_gpu("train", {"train": TRAIN | {"batch_size": 4, "loss": {"kind": kind}}} | tasks[task])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_precisions(on_gpu, precision):
    on_gpu("train", {"train": TRAIN | {"precision": precision}})


@pytest.mark.skip(reason="torch.compile sees the wrapper, not a GPU; scripts/check_gpu.py compiles on a real one")
def test_compile(on_gpu):
    on_gpu("train", {"train": TRAIN | {"compile": True}})


@pytest.mark.parametrize("consistency", [0.0, 1.0])
def test_augmix(on_gpu, data, consistency):
    on_gpu("train", {"train": TRAIN, "data": data | {"augment": {"augmix": {}, "consistency": consistency}}})


@pytest.mark.parametrize("policy", get_args(Policy))
def test_auto_augment(on_gpu, data, policy):
    on_gpu("train", {"train": TRAIN, "data": data | {"augment": {"auto": policy, "crop": 2, "flip": True}}})


def test_a_set_that_the_device_has_no_room_for(on_gpu, data):
    on_gpu.free = 1000
    on_gpu("train", {"train": TRAIN, "data": data | {"augment": {"crop": 2}}})
