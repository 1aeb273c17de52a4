"""Moments of several chains at once: which of them stay the same while others are fused."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256

from torch import fx

from compresskit.numerics.moments.moments import Moments
from compresskit.numerics.moments.patches import Patches
from compresskit.passes.fuse.fusible import Fusible, apply, find
from compresskit.passes.fuse.options import Fuse
from compresskit.passes.moments import Request, in_passes
from compresskit.shapes import Shape

Gather = Callable[[fx.GraphModule, Sequence[Request]], dict[str, Moments]]
Passes = list[list[Fusible]]
_Key = tuple[str, str, Patches | None, bool]


@dataclass(frozen=True)
class Planned:
    """A chain to fuse. since: how many of those before it are fused when its moments are what they will stay."""

    fusible: Fusible
    since: int


def rehearse(network: fx.GraphModule, input_shape: Shape, options: Fuse) -> list[Planned]:
    """What each entry of `options.layers` will fuse, one after another, without any moments.

    Raises UnsupportedModelError at the first entry that cannot be fused.
    """
    planned: list[Planned] = []
    stages: list[dict[str, str]] = []
    for entry in options.layers:
        fusible = find(network, entry, input_shape, options.kernel, options.channels)
        stages.append(_origins(network))
        ends = (fusible.chain.source, fusible.chain.target)
        since = next(n for n, stage in enumerate(stages) if all(stage.get(end) == stages[-1][end] for end in ends))
        planned.append(Planned(fusible, since))
        network = apply(network, fusible, None)
    return planned


def beside(planned: Sequence[Planned], step: int) -> list[Fusible]:
    """Those behind entry `step`, counted from 0, whose moments can be taken with its own."""
    return [later.fusible for later in planned[step + 1 :] if later.since <= step]


def passes(planned: Sequence[Planned], memory: float) -> Passes:
    """The passes over the data that fusing them one after another takes, each with its chains."""
    taken: set[str] = set()
    found: Passes = []
    for step, one in enumerate(planned):
        if one.fusible.request.name not in taken:
            due = [one.fusible, *(f for f in beside(planned, step) if f.request.name not in taken)]
            found += in_passes(due, lambda fusible: fusible.request.nbytes, memory)
            taken |= {fusible.request.name for fusible in due}
    return found


class KeptMoments:
    """Moments that hold while nothing that leads to the ends of their chains is fused; what is lacking is taken.

    For a network and those that fusing makes of it: other weights in the same graph would not be seen.
    """

    def __init__(self) -> None:
        self._held: dict[_Key, Moments] = {}

    def get(
        self, network: fx.GraphModule, requests: Sequence[Request], gather: Gather, also: Sequence[Request] = ()
    ) -> dict[str, Moments]:
        """Of `requests`, by name; where `gather` must take one, it takes those of `also` in the same pass."""
        origins = _origins(network)
        keys = {request: _key(request, origins) for request in (*requests, *also)}
        if any(keys[request] not in self._held for request in requests):
            lacking = [request for request, key in keys.items() if key not in self._held]
            taken = gather(network, lacking)
            self._held |= {keys[request]: taken[request.name] for request in lacking}
        self._held = {key: self._held[key] for key in keys.values() if key in self._held}
        return {request.name: self._held[keys[request]] for request in requests}


def _key(request: Request, origins: dict[str, str]) -> _Key:
    return origins[request.source], origins[request.target], request.patches, request.flatten


def _origins(network: fx.GraphModule) -> dict[str, str]:
    """By node, a digest of the part of the graph that leads to it: calls and names of modules, no tensors.

    A fused layer reads what its chain read, so that it differs from every layer of the chain.
    """
    found: dict[str, str] = {}
    for node in network.graph.nodes:
        reads = fx.node.map_arg((node.args, node.kwargs), lambda read: found[read.name])
        found[node.name] = sha256(repr((node.op, node.target, reads)).encode()).hexdigest()
    return found
