"""The law of cutting: a net without some atoms equals the whole net that does not see them, at full size."""

import copy
import math
from typing import Any

import torch
from torch import Tensor, fx, nn

from compresskit.graph.channels.cut import cut
from compresskit.graph.channels.kept import kept_norms
from compresskit.graph.channels.walk import Channels, find_channels
from compresskit.graph.counting import count
from compresskit.graph.format.table import from_table, to_table
from compresskit.graph.trace import trace


def randomised(net: nn.Module) -> nn.Module:
    """In float64 and eval mode, with no tensor left at its first value: zeros and ones hide mistakes."""
    net = net.double().eval()
    for name, tensor in net.state_dict().items():
        if tensor.is_floating_point():
            deviation = tensor[0].numel() ** -0.5 if tensor.ndim > 1 else 1.0
            tensor.uniform_(0.5, 2) if "running_var" in name else tensor.normal_(0, deviation)
    return net


def random_alive(channels: Channels, seed: int, gone: float = 0.35) -> Tensor:
    """That share of the atoms that may go is gone, one at least stays in every tensor."""
    generator = torch.Generator().manual_seed(seed)
    alive = torch.rand(channels.n_atoms, generator=generator) > gone
    alive[list(channels.frozen)] = True
    for atoms in channels.slots.values():
        if not alive[atoms].any():
            alive[atoms[0]] = True
    return alive


class Reference(fx.Interpreter):
    """The whole network, node by node, with every norm written out over what is alive and nothing cut at all."""

    def __init__(self, network: fx.GraphModule, channels: Channels, alive: Tensor) -> None:
        super().__init__(zeroed(network, channels, alive))
        self.channels, self.alive = channels, alive

    def run_node(self, n: fx.Node) -> Any:
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        if norm := self.channels.norms.get(n.name):
            return self.normalised(n, norm, args, kwargs)
        sums = self.channels.sums.get(n.name, {})
        args = tuple(x * self.alive[sums[i]] if i in sums else x for i, x in enumerate(args))
        return getattr(self, n.op)(n.target, args, kwargs)

    def normalised(self, n: fx.Node, norm: Any, args: Any, kwargs: Any) -> Tensor:
        x = args[0]
        if norm.kind == "statistic":
            return self.statistic(n, norm, args, kwargs)
        names = {"group": ("x", "num_groups"), "rms": ("x", "normalized_shape")}.get(
            norm.kind, ("x", "normalized_shape")
        )
        more = ("weight", "eps") if norm.kind == "rms" else ("weight", "bias", "eps")
        given = dict(zip((*names, *more), args, strict=False)) | kwargs
        if n.op == "call_module":
            module = self.fetch_attr(n.target)
            given |= {key: getattr(module, key) for key in (names[1], *more)}
        eps = given.get("eps", 1e-5)
        eps = torch.finfo(x.dtype).eps if eps is None else eps
        view = [1] * x.ndim
        view[norm.dim] = -1
        mask = self.alive[norm.atoms].view(view).to(x).expand(x.shape)
        if norm.kind == "group":
            grouped, alive = (y.reshape(len(x), given["num_groups"], -1) for y in (x, mask))
            y, last = standardised(grouped, alive, (-1,), eps, centred=True).view(x.shape), view
        else:
            last = list(given["normalized_shape"])
            dims = tuple(range(-len(last), 0))
            y = standardised(x, mask, dims, eps, centred=norm.kind == "layer")
        for key in ("weight", "bias"):
            tensor = given.get(key)
            if tensor is not None:
                tensor = tensor.view(view) if norm.kind == "group" else tensor
                y = y * tensor if key == "weight" else y + tensor
        return y * mask

    def statistic(self, n: fx.Node, norm: Any, args: Any, kwargs: Any) -> Tensor:
        x, name = args[0], str(getattr(n.target, "__name__", n.target))
        dims = kwargs.get("dim", args[1] if len(args) > 1 else list(range(x.ndim)))
        keep = kwargs.get("keepdim", len(args) > 2 and args[2])
        view = [1] * x.ndim
        view[norm.dim] = -1
        mask = self.alive[norm.atoms].view(view).to(x).expand(x.shape)
        if name == "amax":
            return x.masked_fill(mask == 0, -math.inf).amax(dims, keep)
        number = mask.sum(dims, keepdim=True)
        mean = (x * mask).sum(dims, keepdim=True) / number
        if name == "var":
            mean = ((x - mean).square() * mask).sum(dims, keepdim=True) / (number - 1)
        return mean if keep else mean.squeeze(dims)


def standardised(x: Tensor, mask: Tensor, dims: tuple[int, ...], eps: float, *, centred: bool) -> Tensor:
    number = mask.sum(dims, keepdim=True)
    if centred:
        x = x - (x * mask).sum(dims, keepdim=True) / number
    return x / ((x * x * mask).sum(dims, keepdim=True) / number + eps).sqrt()


def zeroed(network: fx.GraphModule, channels: Channels, alive: Tensor) -> fx.GraphModule:
    """The network with zeros where its layers read what is to go."""
    network = copy.deepcopy(network)
    state = network.state_dict()
    with torch.no_grad():
        for name, dim in channels.blinding:
            state[name].movedim(dim, 0)[~alive[channels.slots[name, dim]]] = 0
    return network


def check_law(net: nn.Module, x: Tensor, seed: int = 0, heads: Any = "positions", gone: float = 0.35) -> int:
    """The law, and what goes with it; how many atoms were cut."""
    shape = tuple(x.shape[1:])
    network = trace(randomised(net), shape)
    channels = find_channels(network, shape, heads)
    alive = random_alive(channels, seed, gone)
    smaller = cut(network, channels, alive)
    with torch.no_grad():
        expected, got = Reference(network, channels, alive).run(x), smaller(x)
        whole = kept_norms(network, channels, alive)
        blind = whole(x)
    assert expected.abs().max() > 0
    for found in (got, blind):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11 * float(expected.abs().max()))
    check_sizes(network, channels, alive, smaller, shape)
    to_table(whole)  # moments of it are kept by its table
    loaded = from_table(to_table(smaller))
    assert {n: t.shape for n, t in loaded.state_dict().items()} == {n: t.shape for n, t in smaller.state_dict().items()}
    return int((~alive).sum())


def check_sizes(network: Any, channels: Channels, alive: Tensor, smaller: Any, shape: tuple[int, ...]) -> None:
    """Slots foretell the number of parameters."""
    predicted = 0
    for name, tensor in network.named_parameters():
        sizes = [
            int(alive[channels.slots[name, dim]].sum()) if (name, dim) in channels.slots else size
            for dim, size in enumerate(tensor.shape)
        ]
        predicted += torch.Size(sizes).numel()
    assert count(smaller, shape).parameters == predicted
