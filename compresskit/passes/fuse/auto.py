"""Choosing what to fuse: every chain and block is a candidate, and its moments say what it would cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import fx

from compresskit.errors import UnsupportedModelError
from compresskit.graph.chains import WEIGHTED
from compresskit.graph.counting import count
from compresskit.numerics.least_squares.fusion import Fusion, MeanMaps
from compresskit.numerics.moments.moments import Moments
from compresskit.passes.fuse.candidates import candidates
from compresskit.passes.fuse.fusible import Fusible, facts, prepare
from compresskit.passes.fuse.network import solve
from compresskit.passes.fuse.options import Fuse, Until
from compresskit.passes.shares import share
from compresskit.shapes import Shape


@dataclass(frozen=True)
class Candidate:
    """A chain that could be fused, and the layer that would stand in for it."""

    fusible: Fusible
    fusion: Fusion


@dataclass(frozen=True)
class Size:
    """What `until` counts: weighted layers, multiply-accumulates of one sample, parameters."""

    layers: int
    macs: int
    params: int


def size(network: fx.GraphModule, input_shape: Shape) -> Size:
    counts = count(network, input_shape)
    layers = sum(isinstance(module, WEIGHTED) for module in network.modules())
    return Size(layers, counts.macs, counts.parameters)


def find_candidates(
    network: fx.GraphModule,
    input_shape: Shape,
    options: Fuse,
    memory: float,
    among: set[str] | None = None,
) -> tuple[list[Fusible], dict[str, str]]:
    """All chains that could be fused, shortest first; and what is left alone, with the reason.

    memory: bytes that the moments of one chain may take. among: the layers that may be fused; all, if None.
    """
    fusibles: list[Fusible] = []
    chains, skipped = candidates(network, options.max_layers)
    known = facts(network, input_shape)
    for chain in chains:
        if among is not None and not among.issuperset(chain.layers):
            skipped[str(chain)] = "`among` leaves out one of its layers"
            continue
        try:
            fusible = prepare(network, chain, known, options.kernel, options.channels)
        except UnsupportedModelError as error:
            skipped[str(chain)] = str(error)
            continue
        if fusible.request.nbytes > memory:
            skipped[str(chain)] = (
                f"its moments take {fusible.request.nbytes / 1e9:.1f} GB of {memory / 1e9:.1f} allowed"
            )
        else:
            fusibles.append(fusible)
    return fusibles, skipped


def rank(
    fusibles: Sequence[Fusible], moments: Mapping[str, Moments], options: Fuse, means: Mapping[str, MeanMaps]
) -> list[Candidate]:
    """The chains with what would stand in for them, smallest unexplained share first; moments and, where they are
    needed, means: by name of request."""
    named = [(f.request.name, f) for f in fusibles]
    ranked = [Candidate(f, solve(f, moments[name], options, means.get(name))) for name, f in named]
    return sorted(ranked, key=lambda candidate: candidate.fusion.unexplained)


def unmet(until: Until, now: Size, original: Size) -> set[str]:
    """The figures of `until` that `now` does not reach yet, of layers, macs and params."""
    goals = {
        "layers": until.layers if until.layers is not None else now.layers,
        "macs": share(until.macs) * original.macs if until.macs else now.macs,
        "params": share(until.params) * original.params if until.params else now.params,
    }
    return {name for name, goal in goals.items() if getattr(now, name) > goal}


def reached(until: Until, now: Size, original: Size) -> bool:
    """Whether every size that `until` states is reached; never where an error alone is the limit."""
    return _states_a_size(until) and not unmet(until, now, original)


def choose(ranked: Sequence[Candidate], until: Until, now: Size, original: Size) -> Candidate | None:
    """The next candidate to fuse, None when nothing that is allowed brings `until` nearer.

    Of those that bring a size not reached yet nearer, the one with the smallest unexplained share for each share of it
    saved; with an error alone as the limit, of those that save multiply-accumulates or parameters, the best explained.
    """
    allowed = [c for c in ranked if until.error is None or c.fusion.unexplained <= until.error]
    if not _states_a_size(until):
        return next((c for c in allowed if _gain(c.fusible, {"macs", "params"}, original) > 0), None)
    wanted = unmet(until, now, original)
    gains = [(_gain(candidate.fusible, wanted, original), candidate) for candidate in allowed]
    helpful = [(gain, candidate) for gain, candidate in gains if gain > 0]
    return min(helpful, key=lambda entry: entry[1].fusion.unexplained / entry[0])[1] if helpful else None


def _states_a_size(until: Until) -> bool:
    return any(goal is not None for goal in (until.layers, until.macs, until.params))


def _gain(fusible: Fusible, wanted: set[str], original: Size) -> float:
    saved = {
        "layers": (len(fusible.chain.layers) - 1) / original.layers,
        "macs": fusible.saved_macs / original.macs,
        "params": fusible.saved_params / original.params,
    }
    return max((saved[name] for name in wanted), default=0.0)
