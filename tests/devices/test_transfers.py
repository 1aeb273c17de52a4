"""What one batch more costs: nothing, where the data lie on the device; else a copy of its inputs and its targets.

Every reading makes the host wait until the device has done all that it was given: sums stay there, and are read once.
"""

from typing import Any

import pytest
import torch

from compresskit.numerics.group_lasso.problem import Part, Problem
from compresskit.numerics.selection.elimination import eliminate
from compresskit.passes.prune.criteria import CRITERIA
from compresskit.training.distillation import DISTILLATIONS
from compresskit.training.optimization.optimizers import OPTIMIZERS
from tests.devices.conftest import TESTED_ON, TRAIN, TRAINED_ON
from tests.pretended_gpu import pretended_gpu
from tests.pretended_tensor import GPU, Transfers

LARGE, SMALL = 50, 10  # batches
CUT: dict[str, Any] = {"target": {"macs": "60%"}, "samples": 200, "images": 100, "repair": "none", "norms": False}
DRAWING = ("augprune", "fisher")  # criteria that draw on the CPU, batch by batch
PASSES: dict[str, tuple[str, dict[str, Any]]] = {
    "evaluation": ("evaluate", {}),
    "moments, and what a fused layer is measured by": (
        "fuse",
        {"fuse": {"layers": [["conv2", "head"]], "samples": 200, "held_out": 100}},
    ),
    "an expanded net and its product": ("expand", {"expand": {"strategy": "cl", "rate": 2}, "train": TRAIN}),
    "a repaired net": ("prune", {"prune": CUT | {"repair": "parallel", "norms": True}}),
    "what sites lose alone": (
        "reconstruct",
        {"reconstruct": {"target": {"macs": "60%"}, "samples": 200, "held_out": 100, "alone": 100}},
    ),
    **{
        f"criterion {kind}": ("prune", {"prune": CUT | {"criterion": kind}}) for kind in CRITERIA if kind not in DRAWING
    },
}


def more(on_gpu, verb: str, *sections: dict[str, Any]) -> Transfers:
    """What the second run copied that the first did not."""
    few, many = (on_gpu(verb, each, *([] if verb == "evaluate" else ["--force"])) for each in sections)
    return many - few


@pytest.mark.parametrize("which", PASSES)
def test_passes_over_the_data(on_gpu, which):
    verb, sections = PASSES[which]
    found = more(on_gpu, verb, *(sections | {"moments": {"batch_size": size}} for size in (LARGE, SMALL)))
    assert found == Transfers()


@pytest.mark.parametrize("kind", ["channels", "weights"])
def test_steps_of_matching(on_gpu, kind):
    """Of five looks and one epoch each."""
    target = {"macs": "60%"} if kind == "channels" else {"sparsity": 0.5}
    prune = {"kind": kind, "target": target, "samples": 200, "held_out": 100, "norms": False}
    found = more(on_gpu, "prune", *({"prune": prune | {"match": {"steps": n, "batch_size": 10}}} for n in (10, 20)))
    assert found == Transfers()


@pytest.mark.parametrize("kind", ["channels", "weights"])
def test_iterations_of_blocks(on_gpu, kind):
    """Conjugate gradients read nothing; a step reads a few numbers, however many batches its images are."""
    target = {"macs": "60%"} if kind == "channels" else {"sparsity": 0.5}
    prune = {"kind": kind, "target": target, "samples": 200, "held_out": 100, "norms": False, "repair": "none"}
    blocks = {"layers": 1, "images": 100, "steps": 1}
    few, many = ({"prune": prune | {"blocks": blocks | {"iterations": n}}} for n in (1, 3))
    assert more(on_gpu, "prune", few, many) == Transfers()
    assert more(on_gpu, "prune", *(few | {"moments": {"batch_size": size}} for size in (LARGE, SMALL))) == Transfers()


def test_responses_to_augmentation(on_gpu):
    """AugMix is drawn on the CPU, batch by batch, and the host asks once whether the images are of bytes."""
    prune = CUT | {"criterion": "augprune"}
    found = more(on_gpu, "prune", *({"prune": prune, "moments": {"batch_size": size}} for size in (LARGE, SMALL)))
    batches = 100 // SMALL - 100 // LARGE
    assert list(found.to_device.values()) == [batches]
    assert sorted(found.to_host.values()) == [batches, batches]


def test_curvatures(on_gpu):
    """Signs are drawn on the CPU, batch by batch, and nothing is read from the device."""
    prune = CUT | {"criterion": "fisher"}
    found = more(on_gpu, "prune", *({"prune": prune, "moments": {"batch_size": size}} for size in (LARGE, SMALL)))
    batches = 100 // SMALL - 100 // LARGE
    assert list(found.to_device.values()) == [batches]
    assert not found.to_host


@pytest.mark.parametrize(
    "options",
    [
        {"clip_norm": 1.0},
        {"mask": {"kind": "weights", "target": {"sparsity": 0.5}}},
        *({"optimizer": {"kind": kind}} for kind in OPTIMIZERS),
    ],
)
def test_steps_of_training(on_gpu, options):
    """Fewer than there are between two looks at the losses."""
    found = more(on_gpu, "train", *({"train": TRAIN | options | {"batch_size": size}} for size in (LARGE, SMALL)))
    assert found == Transfers()


@pytest.mark.parametrize("kind", DISTILLATIONS)
def test_steps_with_a_teacher(on_gpu, parents, kind):
    distill = {"kind": kind, "teacher": str(parents / "cnn")} | (
        {"layers": [["conv1", "conv1"]]} if kind == "hint" else {}
    )
    found = more(
        on_gpu, "train", *({"train": TRAIN | {"distill": distill, "batch_size": size}} for size in (LARGE, SMALL))
    )
    assert found == Transfers()


def test_steps_on_augmented_images(on_gpu, data):
    """How many images each operation gets is read once for a batch."""
    changed = {"data": data | {"augment": {"crop": 2, "flip": True, "augmix": {}}}}
    found = more(on_gpu, "train", *(changed | {"train": TRAIN | {"batch_size": size}} for size in (LARGE, SMALL)))
    assert list(found.to_host.values()) == [TRAINED_ON // SMALL - TRAINED_ON // LARGE]
    assert not found.to_device


def test_pairs_of_gradients(on_gpu):
    """Their cosines are asked for one by one."""
    found = more(
        on_gpu, "train", *({"train": TRAIN | {"batch_size": 20, "gradient_confusion": {"pairs": n}}} for n in (2, 4))
    )
    assert list(found.to_host.values()) == [2]
    assert not found.to_device


def test_similarity(on_gpu):
    sections = ({"spectra": {"cka": {"samples": 100, "batch_size": size}}} for size in (LARGE, SMALL))
    assert more(on_gpu, "spectra", *sections) == Transfers()


def test_a_set_that_the_device_has_no_room_for(on_gpu):
    """It comes batch by batch."""
    on_gpu.free = 1000
    found = more(on_gpu, "evaluate", *({"moments": {"batch_size": size}} for size in (LARGE, SMALL)))
    batches = TESTED_ON // SMALL - TESTED_ON // LARGE
    assert sorted(found.to_device.values()) == [batches, batches]  # inputs and targets
    assert not found.to_host


@pytest.mark.parametrize("width", [1, 2])
def test_elimination(width):
    """One group more is one step more, of which the host asks three things, and four of groups of several inputs."""
    counted = []
    for groups in (8, 9):
        x = torch.randn(100, groups * width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        with pretended_gpu() as transfers:
            x = x.to(GPU)
            part = Part(x.T @ x, x[:, :3].T @ x, torch.arange(groups, device=GPU).repeat_interleave(width))
            eliminate(Problem((part,), 1e3, groups))
        counted.append(transfers)
    found = counted[1] - counted[0]
    assert found.to_host.total() == 2 + width
    assert not found.to_device
