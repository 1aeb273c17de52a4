"""Repairs by gradients for a command: their images, their progress, and what an interrupted run goes on from."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import fx

from compresskit.commands.moments import allowed_memory
from compresskit.commands.session import Session
from compresskit.errors import RecipeError
from compresskit.graph.masks import Masks
from compresskit.passes.repair.blocks import Blocks, Blockwise
from compresskit.passes.repair.matching import Judging, Match, Matching, Places
from compresskit.storage.atomic import write_tensors
from compresskit.training import state
from compresskit.training.seeds import epoch_seed

VERSION = 3  # of what the files hold
# of the weights on disk: present and best ones and two moments of Adam's, in a file that replaces one of six, where two
# losses are tried: these four of the first, and the two that the second starts from
COPIES = 10


class Fits(Protocol):
    """The keys of a section that ask for them."""

    @property
    def blocks(self) -> Blocks | None: ...

    @property
    def match(self) -> Match | None: ...


def copies(options: Fits) -> int:
    """Of the weights, that lie on the disk for a while."""
    return COPIES * (options.blocks is not None or options.match is not None)


def check_fits(current: Session, options: Fits) -> None:
    """Raises RecipeError where a batch does not reach all processes."""
    world, sizes = current.group.world, dict[str, int]()
    if options.blocks is not None:
        sizes["blocks"] = current.recipe.moments.batch_size
    if options.match is not None:
        sizes["match"] = options.match.batch_size
    for name, size in sizes.items():
        images = min(size, len(current.data.train))
        if images < world:
            raise RecipeError(f"{name}: a batch has {images} images, too few for {world} processes; start fewer")


@dataclass
class Fitting:
    """original: what outputs should be. folder: of the files. label: of the progress. places, masks: see `Matching`.
    told: what is to be said of the last work."""

    current: Session
    original: fx.GraphModule
    folder: Path
    seed: int
    label: str
    places: Places
    masks: Masks
    told: str = field(default="", init=False)

    def blocks(self, network: fx.GraphModule, options: Blocks) -> fx.GraphModule:
        current, size = self.current, self.current.recipe.moments.batch_size
        memory = allowed_memory(current)
        work = Blockwise(network, self.original, options, memory, self.places, self.masks, current.group)
        current.progress.start(f"{self.label}: blocks", len(work.blocks))
        found = self._resumed("blocks", options, network, work, lambda save: work.run(
            lambda number: self._batches(size, number), current.progress.update, save,
        ))  # fmt: skip
        taken, images = sum(one.taken for one in work.found), min((one.images for one in work.found), default=0)
        self.told = f"{len(work.found)} blocks, {taken} of {options.steps * len(work.found)} steps taken"
        if left := [one for one in work.found if one.left]:
            self.told += f"; {len(left)} left alone, the first, {left[0].block}, for {left[0].left}"
        if not work.found:
            self.told = "no block was found that one value enters and one leaves"
        elif images < min(options.images, len(current.data.train)):
            self.told += f", with {images} images in the place of {options.images}, for more memory is not allowed"
        return found

    def match(self, network: fx.GraphModule, options: Match, judge: Judging) -> fx.GraphModule:
        """judge: how far a network is from the original, on held-out images."""
        current = self.current
        work = Matching(network, self.original, judge, options, self.places, self.masks, current.group)
        current.progress.start(f"{self.label}: match", options.steps)
        found = self._resumed("match", options, network, work, lambda save: work.run(
            lambda epoch, served: self._batches(options.batch_size, epoch, served, drop_last=True),
            lambda step, least: current.progress.update(step, f"divergence {least:.4g}"), save,
        ))  # fmt: skip
        self.told = f"held-out divergence {work.found.told}"
        return found

    def _resumed(
        self, name: str, options: Blocks | Match, network: fx.GraphModule, work: Blockwise | Matching,
        run: Callable[[Callable[[dict[str, Any]], None]], fx.GraphModule],
    ) -> fx.GraphModule:  # fmt: skip
        """Runs the work, from where an interrupted run was, if that was the same."""
        current, path = self.current, self.folder / f"{name}.pt"
        made_for = {
            "version": VERSION,
            "processes": current.group.world,
            **asdict(options),
            "seed": self.seed,
            "data": current.data.fingerprint,
            "masks": state.weights_digest(self.masks),
            "weights": [state.weights_digest(one.state_dict()) for one in (network, self.original)],
        }
        kept = state.read(path) if current.arguments.resume and path.exists() else None
        if current.group.share(kept is not None and kept["made_for"] == made_for):  # the main process's word
            assert kept is not None
            work.load(kept["work"])
        elif kept is not None:
            current.progress.log(f"{self.label}: {path} is of other weights, data or options; {name} starts anew")
        current.group.barrier()  # all have read before it is written

        def save(work: dict[str, Any]) -> None:
            if current.group.is_main:
                write_tensors(path, {"made_for": made_for, "work": work})

        return run(save)

    def clear(self) -> None:
        """Removes the files, several times the weights, once all is done: until then a later one stands on them."""
        if self.current.group.is_main:
            for name in ("blocks", "match"):
                (self.folder / f"{name}.pt").unlink(missing_ok=True)

    def _batches(self, size: int, epoch: int, served: int = 0, drop_last: bool = False) -> Any:
        """Of the training images, as this epoch shuffles them, from the one behind those that were served."""
        group, train = self.current.group, self.current.data.train
        if not epoch:  # what has not been seen needs no augmentation, and is nearer to what is judged
            train = train.sample(len(train))
        return train.batches(
            size, self.current.device, seed=epoch_seed(self.seed, epoch), rank=group.rank, world=group.world,
            drop_last=drop_last and len(train) >= size, start=served,
        )  # fmt: skip
