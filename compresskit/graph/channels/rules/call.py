"""A call of the graph with labels in the place of its tensors."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from compresskit.graph.operations import called


@dataclass(frozen=True)
class Call:
    """touched: the tensors among the arguments. loose: of each, whether it is made of parameters alone of which it is
    not known yet along which dimension their channels lie. run: the call itself, on labels."""

    node: fx.Node
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    touched: list[Tensor]
    loose: list[bool]
    run: Callable[[], Any]

    @property
    def name(self) -> str:
        return called(self.node)

    def given(self, *names: str) -> dict[str, Any]:
        """The arguments by name, in the order in which the function takes them; None where there is none."""
        return dict.fromkeys(names) | dict(zip(names, self.args, strict=False)) | self.kwargs

    def is_loose(self, labels: Tensor) -> bool:
        return any(free for x, free in zip(self.touched, self.loose, strict=True) if x is labels)
