"""Layers of our own as they stand in written files, where those of the package are made for speed, in more lines."""

import torch
from torch import Tensor, nn


class GroupedStack(nn.Module):
    """Layers x -> act(W x + b), in which block g of W reads inputs g, g + groups, ...

    weight: (layers, features, features / groups), in each layer the rows of block 0, of
    block 1, ...; bias: (layers x features,).
    """

    def __init__(
        self,
        features: int,
        groups: int,
        layers: int,
        activation: str = "tanh",
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.groups, self.layers = groups, layers
        self.act = torch.tanh if activation == "tanh" else torch.relu
        shape = (layers, features, features // groups)
        self.weight = nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.empty(layers * features)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        value = x.flatten(0, -2).t()
        for layer, weight in enumerate(self.weight.unflatten(1, (self.groups, -1))):
            blocks = value.unflatten(0, (-1, self.groups)).transpose(0, 1)
            found = torch.bmm(weight, blocks.reshape(self.groups, -1, value.shape[1]))
            if self.bias is not None:
                bias = self.bias.view(self.layers, self.groups, -1, 1)[layer]
                found = torch.baddbmm(bias, weight, blocks)
            value = self.act(found).flatten(0, 1)
        return value.t().reshape(x.shape)
