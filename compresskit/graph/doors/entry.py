"""How a network came in: kept beside its graph as `network.meta["entry"]`."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from torch import fx


@dataclass
class Entry:
    """door: torch.fx's symbolic trace, or torch.export. seconds: it took, checks included.

    assumed: what the graph takes for granted, and what it was not compared in, a sentence each.
    """

    door: Literal["fx", "export"]
    seconds: float = 0.0
    assumed: list[str] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        return asdict(self) | {"seconds": round(self.seconds, 3)}


def entry_of(network: fx.GraphModule) -> Entry | None:
    """None for a network that was read from a checkpoint."""
    found = network.meta.get("entry")
    return found if isinstance(found, Entry) else None
