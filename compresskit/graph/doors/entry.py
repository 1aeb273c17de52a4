"""How a network came in: kept beside its graph as `network.meta["entry"]`."""

from dataclasses import dataclass, field
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
        """For a checkpoint: without the time, which would make the files of equal runs differ."""
        return {"door": self.door, "assumed": self.assumed}

    def __str__(self) -> str:
        through = {"fx": "torch.fx", "export": "torch.export"}[self.door]
        assumed = f"; it takes for granted: {'; '.join(self.assumed)}" if self.assumed else ""
        taken = f" in {self.seconds:.1f} s" if self.seconds else ""
        return f"the model came in through {through}{taken}{assumed}"


def entry_of(network: fx.GraphModule) -> Entry | None:
    """None for a network that was read from a checkpoint."""
    found = network.meta.get("entry")
    return found if isinstance(found, Entry) else None
