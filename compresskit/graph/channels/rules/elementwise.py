"""What meets in one place of an activation is one channel."""

import torch
from torch import Tensor

from compresskit.graph.channels.labels import broadcast, compact
from compresskit.graph.channels.record import Record


def meet(record: Record, name: str, found: list[Tensor], loose: list[bool]) -> Tensor:
    """Unites labels that are broadcast over each other.

    What has a single entry where others have channels is none of them, and stays; a parameter of which is not known
    yet along which dimension its channels lie (loose) has positions there.
    """
    if len(found) == 1:
        return found[0]
    shape, narrow = broadcast(found), [compact(x) for x in found]
    firm = [y for x, y, free in zip(found, narrow, loose, strict=True) if not free and x.numel() > 1]
    varying = torch.broadcast_shapes(*(y.shape for y in firm))
    meeting = []
    for place, (x, free) in enumerate(zip(found, loose, strict=True)):
        if free and firm and varying.numel() == 1:
            record.freeze([x], f"{name}: it meets what has no channels")
        elif not _lacks(x.shape, varying) and (x.numel() > 1 or shape.numel() == 1):
            meeting.append(place)
        elif not free:
            record.freeze([x], f"{name}: it is broadcast over channels")
    if not meeting:
        return record.frozen(shape, f"{name}: channels along one dimension meet channels along another")
    first, *others = sorted(meeting, key=lambda place: loose[place])
    for other in others:
        common = torch.broadcast_shapes(narrow[first].shape, narrow[other].shape)
        record.labels.unite(narrow[first].expand(common), narrow[other].expand(common))
    return found[first].expand(shape)


def _lacks(shape: torch.Size, varying: torch.Size) -> bool:
    """Whether a value of this shape has a single entry along a dimension in which the labels that it meets vary."""
    own = (1,) * (len(varying) - len(shape)) + tuple(shape)
    return any(size == 1 < others for size, others in zip(own[len(own) - len(varying) :], varying, strict=True))
