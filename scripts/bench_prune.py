"""`prune` against Torch-Pruning: accuracy at equal MACs without fine-tuning, and the time to find what goes together.

    python scripts/bench_prune.py RECIPE CHECKPOINT [data.root=...] [--macs 50 30] [--networks resnet18 densenet121 ...]

Needs torch-pruning (the extra `bench`). Both prune by the l2 norm of filters; Torch-Pruning stands with the better of
pruning uniformly and globally, by test accuracy, which is more than fair. Ours is measured as it is cut, and repaired.
Time: our channel atoms of each of torchvision's networks against Torch-Pruning's dependency graph, and then whether
a net cut to half of its MACs runs; the best of three.

Prints one JSON line.
"""

import argparse
import copy
import json
import platform
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch_pruning
import torchvision
from torch import fx, nn

from compresskit.commands.recipe import load_recipe
from compresskit.data.dataset import DataSet
from compresskit.data.layout import load_set
from compresskit.graph.channels.cut import cut
from compresskit.graph.channels.walk import find_channels
from compresskit.graph.counting import count
from compresskit.graph.trace import trace
from compresskit.passes.moments import gather_from
from compresskit.passes.prune.channels import Data, Pruner
from compresskit.passes.prune.options import Prune, PruneTarget
from compresskit.passes.repair.layers import repair
from compresskit.passes.repair.norms import estimate_norms
from compresskit.storage.checkpoint import load
from compresskit.training.tasks.evaluation import evaluate

CPU = torch.device("cpu")
SAMPLES = 5000
BISECTIONS = 12
NETWORKS = [
    *("vgg19_bn", "resnet18", "resnet50", "resnext50_32x4d", "densenet121", "mobilenet_v2", "mobilenet_v3_large"),
    *("efficientnet_b0", "shufflenet_v2_x1_0", "googlenet", "inception_v3", "squeezenet1_1", "mnasnet1_0"),
    *("regnet_y_400mf", "alexnet", "wide_resnet50_2"),
]
UNINITIALISED = {"googlenet", "inception_v3"}  # which take a minute to draw their weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--macs", type=float, nargs="+", default=[50], help="per cent")
    parser.add_argument("--networks", nargs="*", default=NETWORKS)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    data: DataSet = load_set(load_recipe(arguments.recipe, arguments.overrides).section("data"), 0)
    network = load(arguments.checkpoint).network
    result: dict[str, Any] = {"bench": "prune", "python": platform.python_version(), "torch": torch.__version__}
    result["original"] = accuracy(network, data)
    result["accuracy"] = {f"{macs:g}%": compared(network, data, macs / 100) for macs in arguments.macs}
    result["graphs"] = {name: timed_graphs(name) for name in arguments.networks}
    print(json.dumps(result))


def accuracy(network: nn.Module, data: DataSet) -> float:
    found = evaluate(network, data.test, task="classification", device=CPU)["accuracy"]
    return round(found, 4)


def compared(network: fx.GraphModule, data: DataSet, share: float) -> dict[str, Any]:
    shape = data.input_shape
    whole = count(network, shape).macs
    split = data.train.sample(SAMPLES)
    batches = list(split.batches(256, CPU))
    options = Prune(target=PruneTarget(macs=f"{100 * share:g}%"))
    pruned = Pruner(network, options, shape).prune(Data(), 0)
    bare = cut(network, pruned.channels, pruned.alive)
    rows = {"ours, cut": (bare, pruned.got / pruned.whole)}
    for chained in (False, True):
        began = time.perf_counter()
        fixed = repair(network, pruned.channels, pruned.alive, gather_from(batches), shape, chained=chained)
        smaller = cut(fixed.network, pruned.channels, pruned.alive)
        estimate_norms(smaller, batches)
        label = f"ours, repaired {'top-down' if chained else 'in parallel'} in {time.perf_counter() - began:.0f} s"
        rows[label] = (smaller, count(smaller, shape).macs / whole)
    rivals = [rival(network, shape, share, data.outputs, globally=globally) for globally in (False, True)]
    best = max((net for net in rivals if net is not None), key=lambda net: accuracy(net, data))
    rows["Torch-Pruning"] = (best, count(trace(best), shape).macs / whole)
    estimated = copy.deepcopy(best)
    estimate_norms(estimated, batches)  # type: ignore[arg-type]
    rows["Torch-Pruning, with our estimate of the norms"] = (estimated, rows["Torch-Pruning"][1])
    return {name: [accuracy(net, data), round(macs, 4)] for name, (net, macs) in rows.items()}


def rival(
    network: fx.GraphModule, shape: tuple[int, ...], share: float, outputs: int, *, globally: bool
) -> nn.Module | None:
    """Torch-Pruning's largest net of at most this share of the MACs, by bisection over its ratio."""
    whole = count(network, shape).macs
    low, high, best = 0.0, 0.99, None
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        model = copy.deepcopy(network)
        heads = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == outputs]
        torch_pruning.pruner.MetaPruner(
            model, torch.zeros(1, *shape), importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=middle, global_pruning=globally, ignored_layers=heads, max_pruning_ratio=0.99,
        ).step()  # fmt: skip
        if count(trace(model), shape).macs <= share * whole:
            best, high = model, middle
        else:
            low = middle
    return best


def timed_graphs(name: str) -> dict[str, Any]:
    """Seconds of both, whether the net that each cuts runs, and what stopped Torch-Pruning where it failed."""
    torch.manual_seed(0)
    drawn = {"init_weights": False} if name in UNINITIALISED else {}
    model = torchvision.models.get_model(name, weights=None, **drawn).eval()
    shape = (3, 299, 299) if name == "inception_v3" else (3, 224, 224)
    traced = trace(model)
    inputs = torch.zeros(1, *shape)
    ours = fastest(lambda: find_channels(traced, shape))
    pruned = Pruner(traced, Prune(target=PruneTarget(macs="50%")), shape).prune(Data(), 0)
    smaller = cut(traced, pruned.channels, pruned.alive)
    with torch.no_grad():
        smaller(inputs)
    found: dict[str, Any] = {"ours": round(ours, 4), "macs": round(pruned.got / pruned.whole, 4)}
    try:
        theirs = fastest(lambda: torch_pruning.DependencyGraph().build_dependency(model, example_inputs=inputs))
        found |= {"torch-pruning": round(theirs, 4), "ratio": round(theirs / ours, 1)}
        other = copy.deepcopy(model)
        heads = [m for m in other.modules() if isinstance(m, nn.Linear) and m.out_features == 1000]
        importance = torch_pruning.importance.GroupMagnitudeImportance(p=2)
        torch_pruning.pruner.MetaPruner(
            other, inputs, importance=importance, pruning_ratio=0.3, ignored_layers=heads
        ).step()
        with torch.no_grad():
            other(inputs)
    except Exception as error:  # a rival may fail in any way
        found["torch-pruning fails"] = (
            f"{type(error).__name__}: {str(error).splitlines()[0][:80] if str(error) else ''}"
        )
    return found


def fastest(action: Callable[[], Any]) -> float:
    times = []
    for _ in range(3):
        began = time.perf_counter()
        action()
        times.append(time.perf_counter() - began)
    return min(times)


if __name__ == "__main__":
    main()
