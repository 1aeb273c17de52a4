"""Test accuracy at equal size without retraining: `reconstruct` against channel pruning by magnitude and by Taylor
expansion, each as it is and with least-squares repair, and against Torch-Pruning.

    python scripts/compare_pruning.py RECIPE CHECKPOINT [data.root=...] [--sizes 50 30 20 10]

Needs torch-pruning (the extra `bench`). Size is the share of the parameters. Each rival prunes uniformly and globally,
and the better of the two by test accuracy stands for it, which is more than fair. Prints one JSON line: by method and
size, test accuracy and mean KL divergence of the classes from the original's, on the test set.
"""

import argparse
import copy
import json
import platform
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import torch
import torch_pruning
from torch import Tensor, fx, nn
from torch.nn import functional

from compresskit.commands.recipe import load_recipe
from compresskit.data.layout import load_set
from compresskit.graph.channels.cut import cut
from compresskit.graph.counting import count
from compresskit.graph.shapes import evaluating
from compresskit.graph.trace import trace
from compresskit.passes.moments import collect
from compresskit.passes.reconstruct.chaining import Draft, dead_atoms
from compresskit.passes.reconstruct.network import reconstruct
from compresskit.passes.reconstruct.options import Reconstruct, Target
from compresskit.passes.reconstruct.readers import Plan, plan
from compresskit.passes.reconstruct.refitted import with_layers
from compresskit.passes.reconstruct.selection import Choice, Curve
from compresskit.passes.reconstruct.targets import Judge
from compresskit.storage.checkpoint import load
from compresskit.training.tasks.evaluation import evaluate

CPU = torch.device("cpu")
TAYLOR_IMAGES, JUDGES = 5000, 5000
BISECTIONS = 14


class Bench:
    """One network, its data, and what all methods share."""

    def __init__(self, recipe: Path, checkpoint: Path, overrides: list[str]) -> None:
        self.data = load_set(load_recipe(recipe, overrides).section("data"), 0)
        self.network = load(checkpoint).network
        self.shape = self.data.input_shape
        self.plan: Plan = plan(self.network, self.shape, Reconstruct(keep="50%"))
        self.moments = self.gather(self.network, [reader.request for reader in self.plan.readers], None)
        self.whole = count(self.network, self.shape).parameters

    def gather(self, student, requests, teacher):
        if teacher is None and hasattr(self, "moments"):
            return self.moments
        sums = {request.name: request.zeros(CPU) for request in requests}
        collect(student, requests, self.data.train.batches(256, CPU), sums, teacher=teacher)
        return {name: total.finish() for name, total in sums.items()}

    def accuracy(self, network: nn.Module, split=None) -> float:
        return evaluate(trace(network), split or self.data.test, task="classification", device=CPU)["accuracy"]

    def share(self, network: nn.Module) -> float:
        return sum(p.numel() for p in network.parameters()) / self.whole

    def judge(self) -> Judge:
        return Judge(lambda net: self.divergence(net, (self.data.validation or self.data.train).sample(JUDGES)), None)

    def divergence(self, network: fx.GraphModule, split=None) -> float:
        """Mean KL divergence from the original's classes: what accuracy, of few images that change, hardly shows."""
        ours, theirs = (self._logits(net, split or self.data.test) for net in (network, self.network))
        return float(functional.kl_div(ours, theirs, reduction="batchmean", log_target=True))

    def _logits(self, network: fx.GraphModule, split) -> Tensor:
        with torch.inference_mode(), evaluating(network):
            return torch.cat([network(x) for x, _ in split.batches(500, CPU)]).log_softmax(1)

    def ours(self, size: float, **options) -> nn.Module:
        options = Reconstruct(target=Target(params=f"{100 * size}%"), **options)
        return reconstruct(self.network, self.gather, options, self.shape, self.judge()).network

    def scores(self, taylor: bool) -> dict[str, Tensor]:
        """By site, a score for each channel: the norm of the filter that makes it, or of weight times gradient."""
        found = {}
        for site in self.plan.sites:
            total = torch.zeros(site.n_groups)
            for layer, atoms in self.plan.channels.writes.items():
                weight = self.network.get_submodule(layer).weight.detach().flatten(1)
                value = weight.square().sum(1)
                if taylor:
                    value = (weight * self.gradients[f"{layer}.weight"].flatten(1)).sum(1).square()
                for place, atom in enumerate(site.atoms.tolist()):
                    total[place] += value[atoms == atom].sum()
            found[site.name] = total if taylor else total.sqrt()
        return found

    @cached_property
    def gradients(self) -> dict[str, Tensor]:
        """Of the mean loss on some training images, by parameter."""
        network = copy.deepcopy(self.network).eval()
        for x, y in self.data.train.sample(TAYLOR_IMAGES).batches(250, CPU):
            torch.autograd.backward(functional.cross_entropy(network(x), y))
        return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}

    def pruned(self, scores: dict[str, Tensor], ratio: float, globally: bool, repaired: bool) -> nn.Module:
        """Channels of the least scores gone: `ratio` of each site, or of all sites by scores in units of their mean."""
        if globally:
            scores = {name: value / value.mean() for name, value in scores.items()}
            bar = torch.cat(list(scores.values())).quantile(ratio)
        draft = Draft()
        for site in self.plan.sites:
            own = scores[site.name]
            kept = own > (bar if globally else own.quantile(ratio))
            kept[own.argmax()] = True
            draft.add(site, Choice(kept, Curve((), (), kept[None])), self.moments, True, None)
        dead = dead_atoms(self.plan.channels, self.plan.sites, draft.choices)
        return cut(with_layers(self.network, draft.layers) if repaired else self.network, self.plan.channels, ~dead)

    def torch_pruning(self, taylor: bool, ratio: float, globally: bool) -> nn.Module:
        model = copy.deepcopy(self.network)
        kinds = torch_pruning.importance
        importance = kinds.GroupTaylorImportance() if taylor else kinds.GroupMagnitudeImportance(p=2)
        if taylor:
            for name, parameter in model.named_parameters():
                parameter.grad = self.gradients.get(name, torch.zeros_like(parameter)).clone()
        heads = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == self.data.outputs]
        pruner = torch_pruning.pruner.MetaPruner(
            model, torch.zeros(1, *self.shape), importance=importance, pruning_ratio=ratio, global_pruning=globally,
            ignored_layers=heads, max_pruning_ratio=0.99,
        )  # fmt: skip
        pruner.step()
        return model


def at_size(bench: Bench, size: float, make: Callable[[float], nn.Module]) -> nn.Module | None:
    """The largest network of at most this share of the parameters, by bisection over the pruning ratio."""
    low, high, best = 0.0, 0.99, None
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        found = make(middle)
        if bench.share(found) <= size:
            best, high = found, middle
        else:
            low = middle
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--sizes", type=float, nargs="+", default=[50, 30, 20, 10], help="per cent of the parameters")
    arguments = parser.parse_args()
    bench = Bench(arguments.recipe, arguments.checkpoint, arguments.overrides)
    scores = {taylor: bench.scores(taylor) for taylor in (False, True)}
    rows: dict[str, dict[str, tuple[float, float]]] = {}

    def note(name: str, size: float, candidates: list[nn.Module | None]) -> None:
        scored = [(bench.accuracy(network), network) for network in candidates if network is not None]
        accuracy, best = max(scored, key=lambda pair: pair[0])
        divergence = bench.divergence(trace(best))
        rows.setdefault(name, {})[f"{size:g}%"] = (round(accuracy, 4), round(divergence, 5))

    for percent in arguments.sizes:
        size = percent / 100
        note("reconstruct, backward", percent, [bench.ours(size)])
        note("reconstruct, backward, top-down", percent, [bench.ours(size, chaining="top-down")])
        for taylor, label in ((False, "magnitude"), (True, "Taylor")):
            for repaired in (False, True):
                nets = [
                    at_size(bench, size, lambda r, t=taylor, g=g, f=repaired: bench.pruned(scores[t], r, g, f))
                    for g in (False, True)
                ]
                note(f"{label}{', repaired' if repaired else ''}", percent, nets)
            nets = [at_size(bench, size, lambda r, t=taylor, g=g: bench.torch_pruning(t, r, g)) for g in (False, True)]
            note(f"Torch-Pruning, {label}", percent, nets)
    result = {"bench": "pruning", "original": bench.accuracy(bench.network), "accuracy_and_divergence": rows}
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    result["versions"] = versions | {"torch_pruning": torch_pruning.__version__}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
