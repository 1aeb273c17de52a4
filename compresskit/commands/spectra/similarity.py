"""Similarity of what layers make of the same images: `spectra.cka`."""

from pathlib import Path

import torch
from torch import fx, nn

from compresskit.commands.parents import check_fits, checkpoint_file
from compresskit.commands.result import Result
from compresskit.commands.session import Progress
from compresskit.commands.spectra.section import CKA
from compresskit.data.dataset import DataSet
from compresskit.errors import RecipeError
from compresskit.graph.selectors import Layer, as_layer, pick
from compresskit.graph.trace import traced
from compresskit.jobs.lanes import Counter
from compresskit.numerics.spectra.cka import LEAST
from compresskit.passes.spectra.outputs import outputs_of
from compresskit.passes.spectra.similarity import similarity
from compresskit.plots.spectra import heat_maps
from compresskit.storage.checkpoint import load
from compresskit.storage.run_folder import RunFolder


class Similarity:
    """CKA of a network's outputs, and of another one's beside; checked before any work."""

    def __init__(self, network: nn.Module | None, options: CKA, data: DataSet, device: torch.device) -> None:
        if network is None:
            raise RecipeError("spectra.cka: a state dict has no layers to run; give the recipe its `model`")
        self._options, self._device = options, device
        networks: list[fx.GraphModule] = [traced(network)]
        if options.other is not None:
            file = checkpoint_file(Path(options.other))
            checkpoint = load(file)
            check_fits(checkpoint, file, data)
            networks.append(checkpoint.network)
        self._networks = [network.to(device, torch.float32) for network in networks]
        self._outputs = [_chosen(network, options) for network in networks]
        self._samples = data.test.sample(options.samples)
        self._batch = min(options.batch_size, len(self._samples))
        if self._batch < LEAST:
            raise RecipeError(f"spectra.cka: {self._batch} test images are too few; it takes {LEAST} at least")

    def measure(self, folder: RunFolder, progress: Progress, result: Result, *, drawn: bool) -> None:
        """Adds to the report, and draws heat maps: of each network with itself, and of one with the other."""
        steps = len(self._samples) // self._batch
        progress.start("cka", steps)
        served = self._samples.batches(self._batch, self._device, drop_last=True)
        inputs, counted = (inputs for inputs, _ in served), Counter(progress)
        found = similarity(self._networks, self._outputs, inputs, self._options.estimator, counted).cpu()
        (own, *_), names = self._outputs, [list(outputs) for outputs in self._outputs]
        first, last, split = names[0], names[-1], len(own)
        parts = {"first": (found[:split, :split], first, first)}
        if len(names) > 1:
            parts["other"] = (found[split:, split:], last, last)
            parts["first and other"] = (found[:split, split:], first, last)
        details = {"layers": first, "other layers": last, "images": steps * self._batch}
        details["similarity"] = list(parts.values())[-1][0].tolist()
        if len(names) > 1:
            details |= {f"of the {name}": parts[name][0].tolist() for name in ("first", "other")}
        result.details["cka"] = details
        if drawn:
            drawings = {name: (part.numpy(), rows, columns) for name, (part, rows, columns) in parts.items()}
            heat_maps(folder.path / "cka.png", drawings)


def _chosen(network: fx.GraphModule, options: CKA) -> dict[str, str]:
    """Of the outputs that are to be compared, those that the selectors mean."""
    outputs = outputs_of(network, options.outputs)
    if not outputs:
        raise RecipeError(f"spectra.cka.outputs: the network has none of {', '.join(options.outputs)}")
    nodes = {node.name: node for node in network.graph.nodes}
    layers = {}
    for name, node in outputs.items():
        module = network.get_submodule(str(nodes[node].target)) if nodes[node].op == "call_module" else None
        layers[name] = (as_layer(module) if module is not None else None) or Layer("")
    return {name: outputs[name] for name in pick(layers, options.layers)}
