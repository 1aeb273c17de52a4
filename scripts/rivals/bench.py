"""A trained net with its data, and what all methods share: images, sizes, judging and files."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, fx, nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy

from compresskit.cli.app import app
from compresskit.commands.recipe import load_recipe
from compresskit.data.dataset import Split
from compresskit.data.layout import load_set
from compresskit.errors import RecipeError
from compresskit.graph.counting import count
from compresskit.graph.shapes import evaluating
from compresskit.graph.trace import trace
from compresskit.passes.prune.criteria.gradients import mean_gradients
from compresskit.storage.checkpoint import load, save
from compresskit.storage.reading import file_hash
from compresskit.training.tasks.evaluation import evaluate

CPU = torch.device("cpu")
BATCH = 250
SECTIONS = ("model", "data", "prune", "finetune")


class Refused(Exception):
    """A size that a method cannot reach."""


class Bench:
    """recipe: with the sections `SECTIONS`. checkpoint: the trained net's. Raises OSError where there is none."""

    def __init__(self, recipe: Path, checkpoint: Path, overrides: Sequence[str] = ()) -> None:
        self.recipe, self.checkpoint, self.overrides = recipe, checkpoint, tuple(overrides)
        self._sections = load_recipe(recipe, overrides, require=SECTIONS)
        self.name, self.label = self._sections.name, self._sections.description or self._sections.name
        self.data = load_set(self._sections.section("data"), self._sections.seed)
        if self.data.validation is None:
            raise SystemExit(f"{recipe}: data.validation is missing: rivals' settings are judged on these images")
        self._trained = load(checkpoint)
        self.network, self.shape = self._trained.network, self.data.input_shape
        self.whole = count(self.network, self.shape)

    @property
    def original(self) -> dict[str, Any]:
        """What is told of the trained net."""
        counts = {"parameters": self.whole.parameters, "macs": self.whole.macs}
        accuracy = self.accuracy(self.network)
        return {"label": self.label, "accuracy": accuracy, **counts, "made_of": self.made_of}

    @property
    def made_of(self) -> str:
        """A digest of the weights, the data, and what the recipe and its changes say of the sections behind cells."""
        written = yaml.safe_load(self.recipe.read_text())
        changes = [change for change in self.overrides if not change.startswith("data")]
        parts = [file_hash(self.checkpoint), self.data.fingerprint, written["prune"], written["finetune"], changes]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    @property
    def samples(self) -> int:
        """Training images that everything about a net is measured on, before it is fine-tuned or matched."""
        return int(self._sections.section("prune").samples)

    @property
    def images(self) -> Split:
        return self.data.train.sample(self.samples)

    def module(self) -> nn.Module:
        """The net as its author wrote it, with the trained weights: what a rival is given."""
        module = self._sections.section("model").build(self.shape, self.data.outputs)
        module.load_state_dict(self.network.state_dict())
        return module.eval()

    def macs(self, module: nn.Module) -> float:
        """As a share of the whole net's, all counted alike."""
        return count(trace(module, self.shape), self.shape).macs / self.whole.macs

    def accuracy(self, network: fx.GraphModule) -> float:
        return round(evaluate(network, self.data.test, task="classification", device=CPU)["accuracy"], 4)

    def held_out(self, network: fx.GraphModule) -> float:
        """Accuracy on the validation images, by which settings are chosen."""
        return round(evaluate(network, self.data.validation, task="classification", device=CPU)["accuracy"], 4)

    @cached_property
    def gradients(self) -> dict[str, Tensor]:
        """By parameter, of the mean loss over the images."""
        return mean_gradients(self.network, list(self.images.batches(BATCH, CPU)), cross_entropy)

    @cached_property
    def squared_gradients(self) -> dict[str, Tensor]:
        """By parameter, the mean over the images of the square of one image's gradient."""
        parameters = {name: p.detach() for name, p in self.network.named_parameters()}
        buffers = dict(self.network.named_buffers())

        def loss(weights: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
            output = functional_call(self.network, (weights, buffers), (image[None],))
            return cross_entropy(output, label[None])

        each, sums = vmap(grad(loss), (None, 0, 0)), {name: torch.zeros_like(p) for name, p in parameters.items()}
        with evaluating(self.network):
            for images, labels in self.images.batches(BATCH // 10, CPU):
                for name, found in each(parameters, images, labels).items():
                    sums[name] += found.square().sum(0)
        return {name: total / len(self.images) for name, total in sums.items()}

    def save(self, network: fx.GraphModule, path: Path) -> None:
        """A checkpoint of the same net made smaller, that the verbs can go on from."""
        path.parent.mkdir(parents=True, exist_ok=True)
        save(replace(self._trained, network=network), path)

    def run(self, verb: str, checkpoint: Path, out: Path, *overrides: str) -> None:
        """A verb as a user starts it, by the net's recipe; goes on where it was stopped.

        Raises Refused where it does not begin, and SystemExit where it ends in any other way but well.
        """
        changes = (*self.overrides, "report.plots=false", "report.latency_repeats=1", *overrides)
        options = ("--checkpoint", checkpoint, "--out", out, "--resume", "--force", "--quiet")
        words = [verb, *map(str, (self.recipe, *changes, *options))]
        try:
            app(words, standalone_mode=False)
        except SystemExit as ended:
            if ended.code == RecipeError.exit_status:
                raise Refused(f"compresskit {verb} refused; it says why above") from ended
            raise
