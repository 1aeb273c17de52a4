"""Every verb, with all that a recipe can choose where tensors are at work, on a GPU that refuses what a real one does.

What is tried comes from the registries: a criterion that is added is tried by itself.
"""

from typing import Any, get_args

import pytest

from compresskit.commands.prune.section import PRUNINGS
from compresskit.commands.train.section import TRAINING_MASKS
from compresskit.numerics.group_lasso.solvers import SOLVERS as GROUP_LASSO
from compresskit.numerics.least_squares.fusion import Channels
from compresskit.numerics.least_squares.solvers import SOLVERS as LEAST_SQUARES
from compresskit.passes.expand.strategies import STRATEGIES
from compresskit.passes.initialise.sparse_options import INITIALISATIONS, Sparse
from compresskit.passes.prune.budgets import BUDGETS
from compresskit.passes.prune.criteria import CRITERIA
from compresskit.passes.prune.mask_options import MASK_CRITERIA
from compresskit.passes.prune.options import Repair
from compresskit.passes.reconstruct.options import GOALS, Chaining
from compresskit.passes.spectra.options import DEFINITIONS
from compresskit.training.distillation import DISTILLATIONS
from compresskit.training.optimization.optimizers import OPTIMIZERS
from tests.devices.conftest import TRAIN

CUT: dict[str, Any] = {"target": {"macs": "60%"}, "samples": 200, "images": 100}
MASKED: dict[str, Any] = {"target": {"sparsity": 0.5}, "samples": 200}
THINNED: dict[str, Any] = {"samples": 200, "held_out": 100, "alone": 50}


def test_evaluate(on_gpu):
    on_gpu("evaluate", {})


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_optimizers(on_gpu, kind):
    on_gpu("finetune", {"finetune": TRAIN | {"optimizer": {"kind": kind}, "clip_norm": 1.0}})


@pytest.mark.parametrize("kind", INITIALISATIONS)
def test_initialisations(on_gpu, kind):
    sparse = {"degree": 2} if issubclass(INITIALISATIONS[kind], Sparse) else {}
    net, layers = {"eco": ("even", "conv2"), "soc": ("even", "conv2"), "sao-eco": ("even", "conv2")}.get(
        kind, ("even", "conv2") if "delta" in kind else ("mlp", "re:fc[23]")
    )
    on_gpu("train", {"train": TRAIN | {"init": {"kind": kind, "layers": [layers], **sparse}}}, net=net)


@pytest.mark.parametrize("kind", TRAINING_MASKS)
@pytest.mark.parametrize("when", ["before", "after"])
def test_masks_in_training(on_gpu, kind, when):
    net, amount = "cnn", {"target": {"sparsity": 0.5}}
    if kind == "ramanujan":
        net, amount = "mlp", {"degree": 4, "layers": ["re:fc[23]"]}
    on_gpu("train", {"train": TRAIN | {"mask": {"kind": kind, "when": when, **amount}}}, net=net)


@pytest.mark.parametrize("kind", DISTILLATIONS)
def test_teachers(on_gpu, parents, kind):
    layers = {"layers": [["conv1", "conv1"]]} if kind == "hint" else {}
    distill = {"kind": kind, "teacher": str(parents / "cnn"), **layers}
    on_gpu("train", {"train": TRAIN | {"distill": distill}})


@pytest.mark.parametrize(
    "options",
    [
        {"layerwise_rates": {"metric": "alpha"}},
        {"gradient_confusion": {"pairs": 2}},
        {"landscape": {"points": 3, "samples": 50}},
        {"init": {"kind": "sao", "degree": 2, "layers": ["re:fc[23]"]}, "layout": "grouped"},
    ],
    ids=lambda options: next(reversed(options)),
)
def test_what_training_measures(on_gpu, options):
    on_gpu("train", {"train": TRAIN | options}, net="mlp")


@pytest.mark.parametrize("kind", LEAST_SQUARES)
@pytest.mark.parametrize("samples", [200, 60])  # fewer than unknowns: other ways lead to the solution
def test_fuse(on_gpu, kind, samples):
    solver = {"kind": kind} | ({"tol": 1e-2} if kind == "cg" else {})
    fuse = {"layers": [["conv2", "head"]], "solver": solver, "samples": samples, "held_out": 100}
    on_gpu("fuse", {"fuse": fuse})


@pytest.mark.parametrize("channels", get_args(Channels))
def test_fuse_channels(on_gpu, channels):
    fuse = {"layers": [["conv2", "conv3"]], "channels": channels, "samples": 20, "held_out": 20}
    on_gpu("fuse", {"fuse": fuse}, net="even")


def test_fuse_auto(on_gpu):
    on_gpu("fuse", {"fuse": {"until": {"layers": 3}, "samples": 200, "held_out": 100}}, net="mlp")


@pytest.mark.parametrize(
    ("strategy", "init"), [*((strategy, "standard") for strategy in STRATEGIES), ("cl", "nonlinear")]
)
def test_expand(on_gpu, strategy, init):
    net, layer = ("mlp", "fc2") if STRATEGIES[strategy].linear else ("even", "conv2")
    kernel = {"kernel": 5} if strategy == "ck" else {}
    expand = {"strategy": strategy, "rate": 2, "init": init, "layers": [layer]}
    model = {"kind": "convnet", "channels": [4, 4], "pool_size": 4, **kernel}
    changes = {"model": model} if net == "even" else {}
    on_gpu("expand", {"expand": expand, "train": TRAIN, **changes}, net=net)


def test_expand_from_a_checkpoint(on_gpu, parents):
    expand = {"strategy": "cl", "rate": 2, "init": "from_checkpoint"}
    on_gpu("expand", {"expand": expand, "train": TRAIN}, "-c", parents / "cnn")


@pytest.mark.parametrize("criterion", CRITERIA)
def test_prune_criteria(on_gpu, criterion):
    on_gpu("prune", {"prune": CUT | {"criterion": criterion}})


@pytest.mark.parametrize("repair", get_args(Repair))
def test_prune_repairs(on_gpu, repair):
    on_gpu("prune", {"prune": CUT | {"repair": repair, "budget": "global"}})


@pytest.mark.parametrize("budget", BUDGETS)
def test_prune_budgets(on_gpu, budget):
    on_gpu("prune", {"prune": CUT | {"budget": budget, "repair": "none"}})


@pytest.mark.parametrize("kind", [kind for kind in PRUNINGS if kind != "channels"])
@pytest.mark.parametrize("criterion", MASK_CRITERIA)
def test_prune_masks(on_gpu, kind, criterion):
    on_gpu("prune", {"prune": MASKED | {"kind": kind, "criterion": criterion, "retrain": TRAIN}})


@pytest.mark.parametrize("repair", get_args(Repair))
def test_mask_repairs(on_gpu, repair):
    on_gpu("prune", {"prune": MASKED | {"kind": "weights", "repair": repair}})


@pytest.mark.parametrize("chaining", get_args(Chaining))
def test_reconstruct_backward(on_gpu, chaining):
    on_gpu("reconstruct", {"reconstruct": THINNED | {"error": 0.1, "chaining": chaining}})


@pytest.mark.parametrize("solver", GROUP_LASSO)
def test_reconstruct_group_lasso(on_gpu, solver):
    selection = {"kind": "group-lasso", "solver": solver, "points": 4, "smallest": 1e-2}
    options = {"keep": "60%", "selection": selection, "low_rank": {"error": 0.1}, "layers": ["conv2"]}
    on_gpu("reconstruct", {"reconstruct": THINNED | options})


@pytest.mark.parametrize("goal", [*GOALS, "accuracy_drop"])
def test_reconstruct_to_a_target(on_gpu, goal):
    value = 5 if goal == "accuracy_drop" else "70%"
    on_gpu("reconstruct", {"reconstruct": THINNED | {"target": {goal: value}}})


@pytest.mark.parametrize("definitions", DEFINITIONS)
def test_spectra(on_gpu, definitions):
    on_gpu("spectra", {"spectra": {"definitions": definitions}})


def test_similarity_of_layers(on_gpu):
    on_gpu("spectra", {"spectra": {"cka": {"samples": 100, "batch_size": 50}}})


@pytest.mark.parametrize("exact", [1024, 4])  # decomposed, or estimated
def test_isometry(on_gpu, exact):
    on_gpu("spectra", {"spectra": {"isometry": {"images": 2, "exact": exact, "steps": 4}}}, net="mlp")
