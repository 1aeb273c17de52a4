"""What is refused before the first step: batches, devices and inputs that a network cannot be trained with."""

import math

import torch
from torch import Tensor, fx

from compresskit.data.dataset import DataSet
from compresskit.data.own.targets import OWN
from compresskit.distributed import Group
from compresskit.errors import RecipeError
from compresskit.graph.operations import NORMS
from compresskit.graph.shapes import evaluating, node_shapes
from compresskit.numerics.outputs import mapped
from compresskit.training.inputs import check_types
from compresskit.training.options import Training
from compresskit.training.tasks.losses import Loss, loss_for
from compresskit.training.tasks.own import OwnLoss, OwnMetrics, blamed, number


def checked_steps(network: fx.GraphModule, data: DataSet, options: Training, device: torch.device, group: Group) -> int:
    """Steps of an epoch. Raises RecipeError where device, processes, data and network do not go together."""
    steps = _count_steps(data, options, device, group)
    check_types(network, data)
    _check_norms(network, data, options, group)
    return steps


def drops_last(samples: int, batch_size: int, world: int) -> bool:
    """Whether to leave out a smaller last batch: processes need equal shares, and batch norm more than one sample."""
    return world > 1 or (samples > batch_size and samples % batch_size == 1)


def largest_part(options: Training, group: Group) -> int:
    """Samples of which a process computes gradients at a time."""
    return -(-options.batch_size // (group.world * options.accumulate))


def check_own(network: fx.GraphModule, data: DataSet, loss: Loss | None, metrics: OwnMetrics) -> None:
    """Tries the loss and metrics of the user's on two test samples, or one. Raises RecipeError for what they raise."""
    device = next(network.parameters()).device
    inputs, targets = next(data.test.batches(min(2, len(data.test)), device))
    if isinstance(loss, OwnLoss):
        with torch.no_grad(), evaluating(network, training_outputs=True):
            output = network(inputs)
        with blamed(f"loss: {loss.target}"):
            value = loss_for(data.task, loss)(mapped(_asked, output), targets)
        if not value.requires_grad:
            raise RecipeError(
                f"loss: {loss.target} has no gradient by the outputs; compute it of tensors, without detach"
            )
    with torch.no_grad(), evaluating(network):
        output = mapped(Tensor.cpu, network(inputs))
    lists = data.task == OWN
    for name, metric in metrics.items():  # of so few samples it need not be finite
        number(name, metric, *(([output], [targets.cpu()]) if lists else (output[:1], targets[:1].cpu())))


def _asked(output: Tensor) -> Tensor:
    return output.clone().requires_grad_(output.is_floating_point())


def _count_steps(data: DataSet, options: Training, device: torch.device, group: Group) -> int:
    """Raises RecipeError if the device, the processes or the data cannot do what is asked."""
    samples, batch_size, world = len(data.train), options.batch_size, group.world
    if options.precision == "float16" and device.type != "cuda":
        raise RecipeError("precision: float16 needs --device cuda; on the CPU use float32 or bfloat16")
    if batch_size % world:
        raise RecipeError(f"batch_size: {batch_size} cannot be shared by {world} processes; use a multiple of {world}")
    if batch_size // world < options.accumulate:
        raise RecipeError(
            f"accumulate: {options.accumulate} parts cannot be made of {batch_size // world} samples, the batch of a "
            f"process; use {batch_size // world} or less"
        )
    if options.accumulate > 1 and data.task == OWN:
        raise RecipeError(
            f"accumulate: {options.accumulate} was given, and a batch whose targets are of any structure cannot be "
            "divided; leave it out, and lower batch_size"
        )
    if options.gradient_confusion is not None and samples < 2:
        raise RecipeError(
            "gradient_confusion: a pair of batches needs two training samples; give more, or leave it out"
        )
    whole = drops_last(samples, batch_size, world)
    steps = samples // batch_size if whole else math.ceil(samples / batch_size)
    if steps == 0:
        raise RecipeError(f"batch_size: {batch_size} is more than the {samples} training samples; use a smaller one")
    return steps


def _check_norms(network: fx.GraphModule, data: DataSet, options: Training, group: Group) -> None:
    """Raises RecipeError where a batch norm would see a single value of each channel, which has no variance."""
    samples, batch_size, world = len(data.train), options.batch_size, group.world
    views = 3 if data.consistency else 1
    rest = 0 if drops_last(samples, batch_size, world) else samples % batch_size
    part = largest_part(options, group)
    if views * min(part, rest or batch_size) > 1:
        return
    given = f"{batch_size} for {world} processes leaves one sample to each" if world > 1 else f"{batch_size} was given"
    given = (
        f"{batch_size // world} in {options.accumulate} parts has one sample in each"
        if part == 1 < options.accumulate
        else given
    )
    given = "there is one training sample" if samples == 1 else given
    shapes = node_shapes(network, data.input_shape)
    for node in network.graph.nodes:
        module = network.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, NORMS) and math.prod(shapes[node.name][2:]) == 1:
            raise RecipeError(
                f"batch_size: {given}, and batch norm {node.target} needs two samples at least to have a variance; "
                "give more, or a model without batch norm"
            )
