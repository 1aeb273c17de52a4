"""Training step, or inference, of a deep net of sparse layers: masked dense layers, grouped ones, torch's sparse ones.

    python scripts/bench_sparse.py [--depth 1000] [--width 256] [--degree 4] [--batch 128] [--activation tanh]
                                   [--sparse-depth 50] [--conv] [--inference] [--device cpu] [--threads 1]
                                   [--repeats 5]

Each layer keeps `degree` of `width` inputs, in blocks, which lie in another order in the next layer. Prints one JSON
line: milliseconds of a step (forward, backward, SGD with momentum, and masking of gradients where masks are) as medians
of steps taken in turn, and ratios to the grouped layout. torch's sparse matrices are timed at a smaller depth, and both
scaled up. --conv: convolutions 3x3 of whole kernels on maps of 8x8, to be asked for with a smaller depth and width.
--inference: forward passes in eval mode under torch.inference_mode, in the place of steps.
Before anything is timed, outputs and gradients of masked and grouped nets must agree in float64.
"""

import argparse
import json
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, fx, nn

from compresskit.graph.masks import apply_masks
from compresskit.graph.trace import trace
from compresskit.numerics.sparse.ramanujan import blocks
from compresskit.passes.initialise.group import Grouped, group

ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU}


def masked(arguments: argparse.Namespace, depth: int) -> tuple[fx.GraphModule, dict[str, Tensor]]:
    """Dense layers, with masks."""
    torch.manual_seed(0)
    width, degree = arguments.width, arguments.degree
    layers: list[nn.Module] = []
    for _ in range(depth):
        layer = nn.Conv2d(width, width, 3, padding=1) if arguments.conv else nn.Linear(width, width)
        nn.init.normal_(layer.weight, 0, (degree * layer.weight[0, 0].numel()) ** -0.5)
        layers += [layer, ACTIVATIONS[arguments.activation]()]
    network, mask = (
        trace(nn.Sequential(*layers)),
        blocks(width, width, width // degree, "shuffle", torch.Generator()).mask(),
    )
    masks = {
        name: mask.view(*mask.shape, *[1] * (parameter.ndim - 2)).expand_as(parameter).clone()
        for name, parameter in network.named_parameters()
        if name.endswith("weight")
    }
    apply_masks(network, masks)
    return network.train(), masks


class SparseLinear(nn.Module):
    """torch's own: a weight in compressed rows times the batch, along the last dimension."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(layer.weight.detach().to_sparse_csr())
        self.bias = nn.Parameter(layer.bias.detach()[:, None].clone())

    def forward(self, x: Tensor) -> Tensor:
        return torch.sparse.mm(self.weight, x) + self.bias


def sparse(network: fx.GraphModule) -> nn.Module:
    """The masked net of linear layers, for batches along the last dimension."""
    children = [module for _, module in network.named_children()]
    return nn.Sequential(*[SparseLinear(m) if isinstance(m, nn.Linear) else m for m in children])


class Step:
    """One training step after another on one batch."""

    def __init__(self, network: nn.Module, inputs: Tensor, masks: dict[str, Tensor], *, fused: bool) -> None:
        self.network, self.inputs = network, inputs
        self.parameters = list(network.parameters())
        self.masks = [(network.get_parameter(name), mask.to(inputs)) for name, mask in masks.items()]
        self.optimizer = torch.optim.SGD(self.parameters, lr=1e-4, momentum=0.9, fused=fused)

    def loss(self) -> Tensor:
        return self.network(self.inputs).square().mean()

    def __call__(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.loss().backward()
        if self.masks:
            torch._foreach_mul_([parameter.grad for parameter, _ in self.masks], [mask for _, mask in self.masks])
        self.optimizer.step()


class Inference:
    """One forward pass after another of the same batch."""

    def __init__(self, network: nn.Module, inputs: Tensor) -> None:
        self.network, self.inputs = network.eval(), inputs

    @torch.inference_mode()
    def __call__(self) -> None:
        self.network(self.inputs)


class PlainStep(Step):
    """With SGD written out: torch's optimisers refuse weights in compressed rows."""

    def __init__(self, network: nn.Module, inputs: Tensor) -> None:
        self.network, self.inputs, self.parameters = network, inputs, list(network.parameters())
        self.momenta = [_values(parameter).detach().clone().zero_() for parameter in self.parameters]

    def __call__(self) -> None:
        gradients = torch.autograd.grad(self.loss(), self.parameters)
        with torch.no_grad():
            for parameter, momentum, gradient in zip(self.parameters, self.momenta, gradients, strict=True):
                momentum.mul_(0.9).add_(_values(gradient))
                _values(parameter).sub_(momentum, alpha=1e-4)


def _values(tensor: Tensor) -> Tensor:
    return tensor.detach().values() if tensor.layout == torch.sparse_csr else tensor.detach()


def check(arguments: argparse.Namespace, inputs: Tensor) -> float:
    """Largest difference of outputs and gradients, relative to the largest of each, in float64: it must be rounding."""
    network, masks = masked(arguments, 3)
    network = network.double().to(inputs.device)
    found = group(network, masks)
    assert len(found.layers) == 3
    assert not found.masks
    batch, outputs = inputs[:8].double(), []
    for each in (network, found.network):
        outputs.append(each(batch))
        outputs[-1].square().mean().backward()
    differences = [_difference(*outputs)]
    if not arguments.conv:
        differences.append(_difference(outputs[0], sparse(network)(batch.t()).t()))
    for layer in found.layers:
        rows, columns = (side.to(inputs.device) for side in (layer.blocks.rows, layer.blocks.columns))
        whole = network.get_parameter(f"{layer.name}.weight").grad[rows[:, :, None], columns[:, None, :]].flatten(0, 1)
        differences.append(_difference(whole, _gradient(found, layer.name)))
    assert max(differences) < 1e-12, f"the nets differ by {max(differences):.1e}"
    return max(differences)


def _gradient(found: Grouped, layer: str) -> Tensor:
    """Of the layer's weight, be it in a stack or by itself."""
    for names in found.stacks:
        if layer in names:
            return found.network.get_parameter(f"{names[0]}.weight").grad[names.index(layer)]
    return found.network.get_parameter(f"{layer}.weight").grad


def _difference(expected: Tensor, found: Tensor) -> float:
    return float(((expected - found).abs().max() / expected.abs().max()).detach())


def milliseconds(steps: dict[str, Callable[[], None]], repeats: int, device: torch.device) -> dict[str, float]:
    """Median time of a step of each, taken in turn, after two that are not counted."""
    times: dict[str, list[float]] = {way: [] for way in steps}
    for _ in range(repeats + 2):
        for way, step in steps.items():
            _wait(device)
            start = time.perf_counter()
            step()
            _wait(device)
            times[way].append(1000 * (time.perf_counter() - start))
    return {way: statistics.median(values[2:]) for way, values in times.items()}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def steps_of(
    arguments: argparse.Namespace, depth: int, inputs: Tensor, ways: Sequence[str]
) -> dict[str, Callable[[], None]]:
    """Of nets with the same weights."""
    network, masks = masked(arguments, depth)
    network = network.to(inputs.device)
    if arguments.inference:
        networks: dict[str, Callable[[], nn.Module]] = {
            "masked": lambda: network, "grouped": lambda: group(network, masks).network
        }  # fmt: skip
        return {way: Inference(networks[way](), inputs) for way in ways}
    makers: dict[str, Callable[[], Step]] = {
        "masked": lambda: Step(network, inputs, masks, fused=arguments.fused),
        "grouped": lambda: Step(group(network, masks).network, inputs, {}, fused=arguments.fused),
        "torch.sparse": lambda: PlainStep(sparse(network), inputs.t().contiguous()),
    }
    return {way: makers[way]() for way in ways}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depth", type=int, default=1000)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--degree", type=int, default=4)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--activation", choices=ACTIVATIONS, default="tanh")
    parser.add_argument("--sparse-depth", type=int, default=50, help="0: without torch's sparse matrices")
    parser.add_argument("--conv", action="store_true")
    parser.add_argument("--inference", action="store_true", help="forward passes in eval mode")
    parser.add_argument("--fused", action="store_true", help="torch's fused SGD")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    shape = (arguments.width, 8, 8) if arguments.conv else (arguments.width,)
    inputs = torch.randn(arguments.batch, *shape, generator=torch.Generator().manual_seed(0)).to(device)
    difference = check(arguments, inputs)
    times = milliseconds(steps_of(arguments, arguments.depth, inputs, ("masked", "grouped")), arguments.repeats, device)
    if arguments.sparse_depth and not (arguments.conv or arguments.inference):
        small = steps_of(arguments, arguments.sparse_depth, inputs, ("grouped", "torch.sparse"))
        few = milliseconds(small, arguments.repeats, device)
        times["torch.sparse, scaled"] = few["torch.sparse"] / few["grouped"] * times["grouped"]
    row = {
        "bench": "sparse", "of": "inference" if arguments.inference else "training step",
        "layer": "conv 3x3 on 8x8" if arguments.conv else "linear", "depth": arguments.depth,
        "width": arguments.width, "degree": arguments.degree, "batch": arguments.batch,
        "activation": arguments.activation, "fused_sgd": arguments.fused,
        "ms": {way: round(value, 2) for way, value in times.items()},
        "ratio": {way: round(value / times["grouped"], 2) for way, value in times.items() if way != "grouped"},
        "differ": difference,
        "device": arguments.device if device.type == "cpu" else torch.cuda.get_device_name(device),
        "threads": arguments.threads, "torch": torch.__version__, "machine": platform.machine(),
    }  # fmt: skip
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
