"""Dry runs: one batch through the whole of a command's work, and what it would take, without a file written."""

import copy
from typing import Any

import torch
from torch import fx

from compresskit.commands.result import Figure, Result, Table, by
from compresskit.commands.session import Session, run_path
from compresskit.commands.trials import check_room, check_training
from compresskit.errors import ConvergenceError
from compresskit.graph.counting import count
from compresskit.graph.masks import Masks, of_layer
from compresskit.shapes import Shape
from compresskit.training.options import Training
from compresskit.training.tasks.losses import first_view, loss_for


def plan_training(
    current: Session, network: fx.GraphModule, options: Training, original: fx.GraphModule | None = None
) -> Result:
    """One batch, or a part that is accumulated, forward and backward on a copy, and the size of what lies ahead.

    original: see `train_network`.
    """
    data = current.data
    check_room(current, [network], run_path(current), epochs=options.kept_epochs)
    steps = check_training(current, network, options, original) * options.epochs
    trial = copy.deepcopy(network).train()
    size = min(-(-options.batch_size // options.accumulate), len(data.train))
    inputs, targets = next(data.train.batches(size, current.device, seed=0))
    loss = loss_for(data.task, options.loss, data.anchors)(first_view(trial(inputs), targets), targets)
    torch.autograd.backward(loss)
    loss = loss.detach()
    if not torch.isfinite(loss):
        raise ConvergenceError(
            f"{current.verb}: the loss of the first batch is {float(loss)}; check the data and the model"
        )
    counts = count(network, data.input_shape)
    result = Result(current.verb, f"{current.recipe.name} (dry run)")
    result.figures = [
        Figure("parameters", (), (counts.parameters,), "count"),
        Figure("MACs", (), (counts.macs,), "count"),
        Figure("training samples", (), (len(data.train),), "count"),
        Figure("steps", (), (steps * current.recipe.trials,), "count"),
        Figure("loss of the first batch", (), (float(loss),)),
    ]
    result.tables = [layer_table(network, data.input_shape)]
    result.notes = ["nothing was written"]
    return result


def layer_table(network: fx.GraphModule, input_shape: Shape, masks: Masks | None = None) -> Table:
    """A row for each layer that has parameters or multiplies; with masks, the share of its weights that they keep."""
    counts = count(network, input_shape)
    rows: list[tuple[Any, ...]] = [
        (layer.name, layer.kind, by(layer.weight_shape), by(layer.output_shape), layer.parameters, layer.macs)
        for layer in counts.layers
    ]
    columns: tuple[str, ...] = ("layer", "kind", "weight", "output", "parameters", "MACs")
    if masks:
        found = [of_layer(layer.name, masks) for layer in counts.layers]
        shares = [f"{float(torch.cat([mask.flatten() for mask in own]).double().mean()):.2%}" if own else ""
                  for own in found]  # fmt: skip
        rows, columns = [(*row, part) for row, part in zip(rows, shares, strict=True)], (*columns, "not masked")
    return Table("layers", columns, rows)
