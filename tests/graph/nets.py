"""Small nets of every shape that surgery meets, in float64, with batch norms that are not fresh."""

import torch
from torch import nn
from torch.nn import functional as F


class Plain(nn.Module):
    """conv, pool, conv, flatten, linear, with calls of functions and methods as users write them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 3, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(3)
        self.conv2 = nn.Conv2d(3, 4, 3, padding=1)
        self.fc1 = nn.Linear(4 * 4 * 4, 5)
        self.fc2 = nn.Linear(5, 3)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.norm1(self.conv1(x))), 2)
        x = F.relu(self.conv2(x))
        return self.fc2(F.relu(self.fc1(x.view(x.size(0), -1))))


class Block(nn.Module):
    """Residual block with a projection on the shortcut."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels_out)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels_out)
        self.shortcut = nn.Conv2d(channels_in, channels_out, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x):
        out = self.relu(self.norm1(self.conv1(x)))
        out = self.norm2(self.conv2(out))
        return self.relu(out + self.shortcut(x))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.block1 = Block(4, 4, 1)
        self.block2 = Block(4, 6, 2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        x = self.block2(self.block1(self.stem(x)))
        return self.head(torch.flatten(self.pool(x), 1))


class Depthwise(nn.Module):
    """Two grouped convolutions in a row, with nothing between them that mixes channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(4, 4, 3, padding=1, groups=2)
        self.relu = nn.ReLU()
        self.pool = nn.AvgPool1d(2)
        self.conv2 = nn.Conv1d(4, 8, 3, padding=1, groups=2)
        self.head = nn.Linear(8 * 4, 3)

    def forward(self, x):
        return self.head(self.conv2(self.pool(self.relu(self.conv1(x)))).flatten(1))


class Shared(nn.Module):
    """One layer called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.fc(torch.relu(self.fc(x))))


INPUTS = {Plain: (2, 8, 8), Residual: (2, 8, 8), Depthwise: (4, 8), Shared: (4,)}


def make(kind: type[nn.Module], seed: int = 0) -> nn.Module:
    """The net in float64 and eval mode, each batch norm with statistics and affine parameters of its own."""
    torch.manual_seed(seed)
    net = kind().double()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return net.eval()


def batch(kind: type[nn.Module], count: int = 6, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, *INPUTS[kind], generator=torch.Generator().manual_seed(seed)).double()
