"""Sets that fit in memory: tensors that move to the device once, when it has room, and are augmented by the batch."""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from compresskit.data.augmentation.augment import Augment
from compresskit.data.dataset import AnySet, DataSet, corrupt, digest, generator, partition, shares
from compresskit.data.normalization import AsStored, Normalization, Served, identity, measure
from compresskit.data.oddities import class_notes, constant_notes
from compresskit.errors import DataError
from compresskit.options import option

ROOM = 4  # a device takes a set only with so many times its size free: the network and its activations need the rest


@option
class InMemory(AnySet):
    """Options of the sets that live in memory."""

    normalize: Literal["auto", "none"] = "auto"  # auto: mean 0 and standard deviation 1 for each channel
    augment: Augment | None = None  # random changes to the training images


class Examples(NamedTuple):
    """Inputs (N, C, ...) as stored, uint8, bool, float16 or float32; targets int64 (N,) or float32 (N, outputs).

    Inputs that are tokens are of any type of whole numbers.
    """

    inputs: Tensor
    targets: Tensor

    def take(self, index: Tensor) -> "Examples":
        return Examples(self.inputs[index], self.targets[index])


class MemorySplit:
    """Split held as two tensors."""

    def __init__(self, examples: Examples, normalization: Served, augment: Augment | None = None) -> None:
        self._examples = examples
        self._normalization = normalization
        self._augment = augment
        self._copies: dict[torch.device, Examples] = {}
        self.fingerprint = digest(*examples, normalization, augment)

    def __len__(self) -> int:
        return len(self._examples.targets)

    def sample(self, count: int) -> "MemorySplit":
        """See Split."""
        chosen = torch.randperm(len(self), generator=generator("sample", 0))[:count]
        return MemorySplit(self._examples.take(chosen.sort().values), self._normalization)

    def batches(
        self,
        batch_size: int,
        device: torch.device,
        *,
        seed: int | None = None,
        rank: int = 0,
        world: int = 1,
        drop_last: bool = False,
        start: int = 0,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """See Split."""
        inputs, targets = self._near(device)
        normalize = self._normalization.on(device, inputs)
        order, draws = self._shuffled(seed, inputs.device, device)
        for share in shares(len(self), batch_size, rank, world, drop_last, start):
            picked = share if order is None else order[share]
            batch = inputs[picked].to(device, non_blocking=True)
            if self._augment is not None and draws is not None:
                batch = self._augment(batch, draws[share])
            yield normalize(batch), targets[picked].to(device, non_blocking=True)

    def _shuffled(
        self, seed: int | None, home: torch.device, device: torch.device
    ) -> tuple[Tensor | None, Tensor | None]:
        """Order of the whole epoch and the draws of its augmentation, made on the CPU: equal on every device."""
        if seed is None:
            return None, None
        random = generator("epoch", seed)
        order = torch.randperm(len(self), generator=random).to(home)
        return order, None if self._augment is None else self._augment.draw(len(self), random).to(device)

    def _near(self, device: torch.device) -> Examples:
        """The tensors on `device` when it has room for them, else where they are."""
        if device.type != "cuda":
            return self._examples
        if device not in self._copies:
            size = sum(tensor.nbytes for tensor in self._examples)
            if torch.cuda.mem_get_info(device)[0] <= ROOM * size:
                return self._examples
            self._copies[device] = Examples(*(tensor.to(device) for tensor in self._examples))
        return self._copies[device]


def assemble(
    options: InMemory,
    train: Examples,
    test: Examples,
    validation: Examples | None = None,
    *,
    task: str,
    outputs: int,
    seed: int,
    normalization: Normalization | None = None,
    tokens: bool = False,
    stated: bool = True,
    notes: Sequence[str] = (),
) -> DataSet:
    """Data set with the validation part held out, the labels corrupted and the inputs normalised as `options` say.

    normalization: the known one of a named set; None measures that of the training split. tokens: inputs are served as
    they are stored, as whole numbers.
    stated: the number of classes is known, not counted. notes: those on the data as they were read.
    """
    parts = {"train": train, "test": test} | ({"validation": validation} if validation is not None else {})
    targets = {name: part.targets for name, part in parts.items()}
    odd = class_notes(targets, outputs, stated=stated) if task == "classification" else []
    _check_augment(options.augment, tuple(train.inputs.shape[1:]), train.inputs.dtype, task, tokens=tokens)
    kept, held = partition(len(train.targets), options)
    if len(held):
        validation = train.take(held)
    if len(kept) < len(train.targets):
        train = train.take(kept)
    odd += constant_notes(None if tokens else train.inputs, train.targets)
    if options.label_noise:
        train = train._replace(targets=_corrupted(train.targets, options.label_noise, task, outputs, seed))
    served = AsStored() if tokens else _normalization(options, train.inputs, normalization)
    splits = (
        MemorySplit(train, served, options.augment),
        MemorySplit(validation, served) if validation is not None else None,
        MemorySplit(test, served),
    )
    return DataSet(
        *splits,
        task=task,
        outputs=outputs,
        input_shape=tuple(train.inputs.shape[1:]),
        mean=served.mean,
        std=served.std,
        fingerprint=digest(*(split and split.fingerprint for split in splits)),
        tokens=(tokens,),
        scaled=(served.scales(train.inputs),),
        consistency=0.0 if options.augment is None else options.augment.consistency,
        notes=(*notes, *odd),
    )


def _normalization(options: InMemory, inputs: Tensor, known: Normalization | None) -> Normalization:
    if options.normalize == "none":
        return identity(inputs.shape[1])
    return known or measure(inputs)


def _check_augment(
    augment: Augment | None, shape: tuple[int, ...], dtype: torch.dtype, task: str, *, tokens: bool
) -> None:
    if augment is None:
        return
    if tokens:
        raise DataError("data.augment: tokens are no images; leave augment out")
    if len(shape) != 3:
        raise DataError(
            f"data.augment: inputs of shape {shape} are no images; images are (channels, height, width), "
            "set data.add_channel or leave augment out"
        )
    if augment.crop >= min(shape[1:]):
        raise DataError(f"data.augment.crop: {augment.crop} shifts images of shape {shape} out of sight; lower it")
    bytes_only = "augmix" if augment.augmix is not None else "auto" if augment.auto is not None else None
    if bytes_only and dtype != torch.uint8:
        raise DataError(f"data.augment.{bytes_only}: it takes images of bytes, these are {dtype}; store them as uint8")
    if augment.consistency and task != "classification":
        raise DataError(f"data.augment.consistency: it compares classes, but the task is {task}; leave it out")


def _corrupted(targets: Tensor, fraction: float, task: str, outputs: int, seed: int) -> Tensor:
    if task != "classification":
        raise DataError(f"data.label_noise: {fraction} needs classes, but the task is {task}; leave label_noise out")
    return corrupt(targets, fraction, outputs, seed)
