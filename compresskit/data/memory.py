"""Sets that fit in memory: tensors that move to the device once, when it has room, and are augmented by the batch."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from compresskit.data.augmentation.augment import Augment
from compresskit.data.dataset import AnySet, DataSet, corrupt, digest, generator, partition, shares
from compresskit.data.stored.normalization import AsStored, Normalization, Served, identity, measure
from compresskit.data.stored.oddities import class_notes, constant_notes
from compresskit.errors import DataError
from compresskit.options import option
from compresskit.shapes import Shape

ROOM = 4  # a device takes a set only with so many times its size free: the network and its activations need the rest


@option
class InMemory(AnySet):
    """Options of the sets that live in memory."""

    normalize: Literal["auto", "none"] = "auto"  # auto: mean 0 and standard deviation 1 for each channel
    augment: Augment | None = None  # random changes to the training images


class Examples(NamedTuple):
    """Inputs (N, C, ...) as stored, uint8, bool, float16 or float32; targets int64 (N,) or float32 (N, outputs).

    Of several inputs a tuple. Inputs that are tokens are of any type of whole numbers.
    """

    inputs: Tensor | tuple[Tensor, ...]
    targets: Tensor

    @property
    def each(self) -> tuple[Tensor, ...]:
        """The inputs, be they one or several."""
        return self.inputs if isinstance(self.inputs, tuple) else (self.inputs,)

    @property
    def shape(self) -> Shape:
        """Of one sample."""
        shapes = tuple(tuple(one.shape[1:]) for one in self.each)
        return shapes if isinstance(self.inputs, tuple) else shapes[0]

    def mapped(self, change: Callable[[Tensor], Tensor]) -> "Examples":
        """With every tensor changed."""
        return Examples(self.as_stored(tuple(map(change, self.each))), change(self.targets))

    def as_stored(self, each: tuple[Tensor, ...]) -> Any:
        """A tuple where the inputs are one, else the only tensor."""
        return each if isinstance(self.inputs, tuple) else each[0]

    def take(self, index: Tensor) -> "Examples":
        return self.mapped(lambda tensor: tensor[index])


class MemorySplit:
    """Split held as tensors. served: how each input is; augment: of the one input that is of images."""

    in_memory = True

    def __init__(self, examples: Examples, served: Served | tuple[Served, ...], augment: Augment | None = None) -> None:
        self._examples = examples
        self._served = served if isinstance(served, tuple) else (served,)
        self._augment = augment
        self._copies: dict[torch.device, Examples] = {}
        self.fingerprint = digest(*examples.each, examples.targets, *self._served, augment)

    def __len__(self) -> int:
        return len(self._examples.targets)

    def sample(self, count: int) -> "MemorySplit":
        """See Split."""
        chosen = torch.randperm(len(self), generator=generator("sample", 0))[:count]
        return MemorySplit(self._examples.take(chosen.sort().values), self._served)

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
    ) -> Iterator[tuple[Any, Tensor]]:
        """See Split."""
        near = self._near(device)
        serve = [one.on(device, inputs) for one, inputs in zip(self._served, near.each, strict=True)]
        order, draws = self._shuffled(seed, near.targets.device, device)
        for share in shares(len(self), batch_size, rank, world, drop_last, start):
            picked = share if order is None else order[share]
            batch = [inputs[picked].to(device, non_blocking=True) for inputs in near.each]
            if self._augment is not None and draws is not None:
                (place,) = pictures(near, self._served)
                batch[place] = self._augment(batch[place], draws[share])
            made = tuple(each(inputs) for each, inputs in zip(serve, batch, strict=True))
            yield near.as_stored(made), near.targets[picked].to(device, non_blocking=True)

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
            size = sum(tensor.nbytes for tensor in (*self._examples.each, self._examples.targets))
            if torch.cuda.mem_get_info(device)[0] <= ROOM * size:
                return self._examples
            self._copies[device] = self._examples.mapped(lambda tensor: tensor.to(device))
        return self._copies[device]


def pictures(examples: Examples, served: tuple[Served, ...]) -> list[int]:
    """Which of the inputs are images: (N, channels, height, width), and no tokens."""
    pairs = enumerate(zip(examples.each, served, strict=True))
    return [n for n, (inputs, one) in pairs if inputs.ndim == 4 and not isinstance(one, AsStored)]


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
    tokens: Sequence[bool] = (False,),
    stated: bool = True,
    classes: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> DataSet:
    """Data set with the validation part held out, the labels corrupted and the inputs normalised as `options` say.

    normalization: the known one of a named set; None measures that of the training split. tokens: for each
    input whether it is served as it is stored, as whole numbers.
    stated: the number of classes is known, not counted. classes: their names, where they are known. notes: those on
    the data as they were read.
    """
    parts = {"train": train, "test": test} | ({"validation": validation} if validation is not None else {})
    targets = {name: part.targets for name, part in parts.items()}
    odd = class_notes(targets, outputs, stated=stated) if task == "classification" else []
    kept, held = partition(len(train.targets), options)
    if len(held):
        validation = train.take(held)
    if len(kept) < len(train.targets):
        train = train.take(kept)
    odd += _constant(train, tokens)
    if options.label_noise:
        train = train._replace(targets=_corrupted(train.targets, options.label_noise, task, outputs, seed))
    served = tuple(
        AsStored() if token else _normalization(options, inputs, normalization)
        for inputs, token in zip(train.each, tokens, strict=True)
    )
    _check_augment(options.augment, train, served, task)
    splits = (
        MemorySplit(train, served, options.augment),
        MemorySplit(validation, served) if validation is not None else None,
        MemorySplit(test, served),
    )
    return DataSet(
        *splits,
        task=task,
        outputs=outputs,
        input_shape=train.shape,
        mean=tuple(value for one in served for value in one.mean),
        std=tuple(value for one in served for value in one.std),
        fingerprint=digest(*(split and split.fingerprint for split in splits)),
        tokens=tuple(tokens),
        scaled=tuple(one.scales(inputs) for one, inputs in zip(served, train.each, strict=True)),
        of_bytes=tuple(inputs.dtype == torch.uint8 for inputs in train.each),
        classes=tuple(classes),
        consistency=0.0 if options.augment is None else options.augment.consistency,
        notes=(*notes, *odd),
    )


def _normalization(options: InMemory, inputs: Tensor, known: Normalization | None) -> Normalization:
    if options.normalize == "none":
        return identity(inputs.shape[1])
    return known or measure(inputs)


def _constant(train: Examples, tokens: Sequence[bool]) -> list[str]:
    """Notes on what never changes; the places of tokens have no meaning of their own."""
    notes = []
    for place, (inputs, token) in enumerate(zip(train.each, tokens, strict=True)):
        which = f"training input {place + 1}" if len(tokens) > 1 else "the training inputs"
        notes += [] if token else constant_notes(f"channels of {which}", inputs)
    return notes + constant_notes("training targets", train.targets)


def _check_augment(augment: Augment | None, train: Examples, served: tuple[Served, ...], task: str) -> None:
    """Raises DataError where not exactly one input is of images, or where they are none that can be changed so."""
    if augment is None:
        return
    found, several = pictures(train, served), len(served) > 1
    if several and len(found) != 1:
        raise DataError(
            f"data.augment: it changes the images of one input, and {len(found) or 'none'} of the {len(served)} "
            f"{'are' if found else 'is'} of images (channels, height, width); leave augment out"
        )
    if several and augment.consistency:
        raise DataError("data.augment.consistency: it compares views of an only input; leave it out")
    if isinstance(served[0], AsStored) and not several:
        raise DataError("data.augment: tokens are no images; leave augment out")
    inputs = train.each[found[0] if found else 0]
    shape, dtype = tuple(inputs.shape[1:]), inputs.dtype
    if not found:
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
