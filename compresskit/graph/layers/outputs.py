"""What a network returns that is no single tensor, or another value in training mode than in eval mode."""

from typing import Any

from torch import nn


class Outputs(nn.Module):
    """The last call of a graph: passes on the first value in eval mode, in training mode the second, if there is one.

    Both are what forward returned: tensors, or lists, tuples and dicts of them.
    """

    def forward(self, value: Any, in_training: Any = None) -> Any:
        return in_training if self.training and in_training is not None else value
