"""Which layers' inputs can be thinned, which of them are chosen together, and the problem that each choice solves."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Literal

import torch
from torch import Tensor, fx

from compresskit.errors import ConvergenceError, RecipeError
from compresskit.graph.chains import weighted
from compresskit.graph.channels.walk import Channels, find_channels
from compresskit.graph.operations import calls_of
from compresskit.graph.selectors import select
from compresskit.graph.shapes import node_shapes
from compresskit.numerics.group_lasso.problem import Part, Problem
from compresskit.numerics.moments.matrix import dense
from compresskit.numerics.moments.moments import Moments
from compresskit.passes.moments import Request, request_of, without_moments
from compresskit.passes.reconstruct.options import Reconstruct
from compresskit.shapes import Shape

Rows = Mapping[str, Tensor]  # by layer: (out,) bool, the outputs whose error counts


@dataclass(frozen=True)
class Reader:
    """A layer whose inputs can be thinned.

    request: moments of its input and its own output. groups: (groups of the convolution, features of each) the group of
    its site that every feature belongs to. atoms: (in,) atom of every input.
    """

    layer: str
    request: Request
    groups: Tensor
    atoms: Tensor


@dataclass(frozen=True)
class Site:
    """Inputs that are kept or dropped together, of one layer or of several.

    dynamic: the activation stays and a selection stands before the layer; else what is dropped is cut from the layers
    that made it. atoms: (n_groups,) atom of each group; None where the groups are a layer's own inputs.
    """

    name: str
    readers: tuple[Reader, ...]
    dynamic: bool
    n_groups: int
    atoms: Tensor | None

    @property
    def unit(self) -> Literal["channels", "inputs"]:
        own = all(reader.request.patches is None and len(reader.atoms) == self.n_groups for reader in self.readers)
        return "inputs" if own else "channels"

    def problem(self, moments: Mapping[str, Moments], rows: Rows | None = None, *, relative: bool) -> Problem:
        """The problem of this site. moments: by name of the request. relative: every layer's error is in units of the
        variance of its output, so that several count alike; else they are as they are."""
        parts, variance = [], 0.0
        for reader in self.readers:
            found = reader_parts(reader, moments[reader.request.name], rows)
            total = sum(c for _, c in found)
            scale = 1 / total if relative and total > 0 else 1.0
            parts += [replace(part, cxx=part.cxx * scale, cyx=part.cyx * scale) for part, _ in found]
            variance += total * scale
        return Problem(tuple(parts), variance, self.n_groups)


@dataclass(frozen=True)
class Plan:
    """What is thinned. skipped: by layer, why it is left alone."""

    channels: Channels
    sites: tuple[Site, ...]
    skipped: dict[str, str]

    @property
    def readers(self) -> list[Reader]:
        return [reader for site in self.sites for reader in site.readers]

    @property
    def lasting(self) -> Tensor:
        """(n_atoms,) bool: those that stay though no layer reads them: frozen ones, and what norms and attention sum
        over, unless a static site drops it."""
        lasting = summed(self.channels)
        for site in self.sites:
            if not site.dynamic and site.atoms is not None:
                lasting[site.atoms] = False
        lasting[list(self.channels.frozen)] = True
        return lasting


def summed(channels: Channels) -> Tensor:
    """(n_atoms,) bool: atoms that norms or attention sum over: without one of them, others have other values."""
    found = torch.zeros(channels.n_atoms, dtype=torch.bool)
    for norm in channels.norms.values():
        found[norm.atoms] = True
    for arguments in channels.sums.values():
        for atoms in arguments.values():
            found[atoms] = True
    return found


def reader_parts(reader: Reader, moments: Moments, rows: Rows | None = None) -> list[tuple[Part, float]]:
    """A part of a problem for each group of the layer's convolution, and the variance of its outputs.

    Raises ConvergenceError, with the layer's name, where moments are not finite.
    """
    outputs = moments.cyx.shape[1]
    alive = (
        torch.ones_like(moments.cyy, dtype=torch.bool) if rows is None else rows[reader.layer].to(moments.cyy.device)
    )
    found = []
    for group, cyx in enumerate(moments.cyx):
        own = slice(group * outputs, (group + 1) * outputs)
        kept = alive[own]
        try:
            part = Part(dense(moments.cxx[group]), cyx[kept], reader.groups[group].to(cyx.device))
        except ConvergenceError as error:
            raise ConvergenceError(f"{reader.layer}: {error}") from error
        found.append((part, float(moments.cyy[own][kept].sum())))
    return found


def plan(network: fx.GraphModule, input_shape: Shape, options: Reconstruct) -> Plan:
    """The sites of `network` under the recipe's options, without any data.

    Raises RecipeError for a selector that means nothing, and where nothing at all can be thinned.
    """
    channels = find_channels(network, input_shape)
    wanted, told = select(network, options.layers), options.told_layers
    asked = wanted if told is None else [layer for layer in wanted if layer in select(network, told)]
    readers, skipped = find_readers(network, channels, input_shape, asked, from_input=options.input_sampler)
    skipped |= {layer: "no selector of the amounts names it" for layer in wanted if layer not in asked}
    skipped |= _of_other_kinds(network, channels)
    sites = []
    for component in connected(readers.values()):
        obstacle = _obstacle(channels, component, options)
        if options.sampler == "static" or (options.sampler == "auto" and obstacle is None and len(component) == 1):
            if obstacle is None:
                sites.append(static_site(component))
            else:
                skipped |= {reader.layer: f"{obstacle}; sampler: dynamic can select its inputs" for reader in component}
            continue
        for reader in component:
            if reader.request.groups > 1:
                skipped[reader.layer] = "a grouped convolution has no selection of its own; sampler: static cuts it"
            else:
                sites.append(_dynamic(channels, reader))
    if not sites:
        reasons = "; ".join(f"{layer}: {reason}" for layer, reason in list(skipped.items())[:3])
        raise RecipeError(f"reconstruct: no layer can be thinned ({reasons}); see `show layers` and reconstruct.layers")
    order = {layer: index for index, layer in enumerate(readers)}
    sites.sort(key=lambda site: order[site.readers[0].layer])
    return Plan(channels, tuple(sites), skipped)


def find_readers(
    network: fx.GraphModule,
    channels: Channels,
    input_shape: Shape,
    layers: Iterable[str],
    *,
    from_input: bool = False,
    several: bool = False,
) -> tuple[dict[str, Reader], dict[str, str]]:
    """The layers that can be fitted again to fewer inputs, and why others cannot. from_input: the network's, too.
    several: also those that are called several times, to all their calls together."""
    shapes = node_shapes(network, input_shape)
    readers, skipped = {}, {}
    for layer in layers:
        reason = refusal(network, channels, layer, from_input, several)
        if reason is None:
            readers[layer] = _reader(network, channels, layer, shapes)
        else:
            skipped[layer] = reason
    return readers, skipped


def refusal(
    network: fx.GraphModule, channels: Channels, layer: str, from_input: bool, several: bool = False
) -> str | None:
    """Why a layer cannot be fitted again to fewer inputs; None where it can."""
    calls = len(calls_of(network, layer))
    if calls > 1 and not several:
        return f"it is called {calls} times"
    if calls and layer not in channels.reads:
        return "each output reads one channel, so there is none to drop"
    if (reason := without_moments(network, layer)) is not None:
        return reason
    if len(channels.reads[layer]) == 1:
        return "it reads a single channel"
    if _reads_the_input(channels, layer) and not from_input:
        return "it reads the network's input; input_sampler: true thins that, too"
    return None


def _of_other_kinds(network: fx.GraphModule, channels: Channels) -> dict[str, str]:
    """Layers that read channels and that selectors do not mean, and why they are no readers."""
    known = set(select(network, ("re:.*",)))
    reasons = {layer: refusal(network, channels, layer, True) for layer in channels.reads if layer not in known}
    return {layer: reason for layer, reason in reasons.items() if reason is not None}


def _reads_the_input(channels: Channels, layer: str) -> bool:
    return bool(torch.isin(channels.reads[layer], channels.inputs).any())


def _reader(network: fx.GraphModule, channels: Channels, layer: str, shapes: dict[str, tuple[int, ...]]) -> Reader:
    request = request_of(network, layer, shapes)
    atoms = channels.reads[layer]
    taps = prod(weighted(network, layer).weight.shape[2:])
    by_feature = atoms.view(request.groups, -1).repeat_interleave(taps, dim=1)
    return Reader(layer, request, by_feature, atoms)


def connected(readers: Iterable[Reader]) -> list[list[Reader]]:
    """Readers that share atoms, directly or through others, in the order of the network."""
    found: list[tuple[set[int], list[Reader]]] = []
    for reader in readers:
        atoms, members = set(reader.atoms.tolist()), [reader]
        touching = [entry for entry in found if entry[0] & atoms]
        for entry in touching:
            found.remove(entry)
        merged = [member for entry in touching for member in entry[1]]
        found.append((atoms.union(*(entry[0] for entry in touching)), merged + members))
    return [members for _, members in found]


def _obstacle(channels: Channels, component: list[Reader], options: Reconstruct) -> str | None:
    """Why what these readers drop cannot be cut from the layers that made it, or should not be."""
    atoms = torch.cat([reader.atoms for reader in component]).unique()
    for atom in atoms.tolist():
        if atom in channels.frozen:
            return channels.frozen[atom]
    inside = {reader.layer for reader in component}
    others = [layer for layer, read in channels.reads.items() if layer not in inside and torch.isin(read, atoms).any()]
    if others:
        return f"{others[0]}, which is left alone, reads the same activation"
    if bool(summed(channels)[atoms].any()) and (options.sampler, options.chaining) != ("static", "top-down"):
        return "norms or attention sum over its inputs, so that a cut changes the others; chaining: top-down allows it"
    return None


def static_site(component: Sequence[Reader]) -> Site:
    """Of layers that read atoms which go from the layers that made them, too."""
    atoms = torch.cat([reader.atoms for reader in component]).unique()
    readers = tuple(replace(reader, groups=torch.searchsorted(atoms, reader.groups)) for reader in component)
    return Site("+".join(reader.layer for reader in readers), readers, False, len(atoms), atoms)


def _dynamic(channels: Channels, reader: Reader) -> Site:
    """Of one layer: its own inputs, but whole channels where a linear layer reads a map that may be cut."""
    stays = summed(channels)
    stays[list(channels.frozen)] = True
    if reader.request.patches is None and not bool(stays[reader.atoms].any()):
        return replace(static_site([reader]), dynamic=True)
    inputs = len(reader.atoms)
    own = torch.arange(inputs).repeat_interleave(reader.groups.numel() // inputs)[None]
    return Site(reader.layer, (replace(reader, groups=own),), True, inputs, None)
