"""Small nets as users and libraries write them, each with what used to stop or to fool a trace."""

from collections import namedtuple

import torch
from torch import nn
from torch.nn import functional as F


class DropPath(nn.Module):
    """As timm and others have it: a Python branch on `training`."""

    def __init__(self, drop_prob: float, scale_by_keep: bool = True) -> None:
        super().__init__()
        self.drop_prob, self.scale_by_keep = drop_prob, scale_by_keep

    def forward(self, x):
        if self.drop_prob == 0.0 or not self.training:
            return x
        kept = x.new_empty([len(x)] + [1] * (x.ndim - 1)).bernoulli_(1 - self.drop_prob)
        return x * (kept.div_(1 - self.drop_prob) if self.scale_by_keep else kept)


class NormAct(nn.BatchNorm2d):
    """A batch norm with its activation inside, which calls the function by itself."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-3, momentum=0.2)
        self.drop, self.act = nn.Identity(), nn.PReLU()

    def forward(self, x):
        if self.training:
            self.num_batches_tracked.add_(1)
        x = F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum, self.eps
        )
        return self.act(self.drop(x))


class ChannelNorm(nn.LayerNorm):
    """A layer norm over the channels of a map."""

    def forward(self, x):
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class SameSize(nn.Conv2d):
    """Padding computed from the size in Python, as TensorFlow pads."""

    def forward(self, x):
        short = max(self.kernel_size[0] - self.stride[0] - (x.shape[-1] % self.stride[0]), 0)
        x = F.pad(x, (short // 2, short - short // 2, short // 2, short - short // 2))
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class Standardised(nn.Conv2d):
    """A convolution with a weight that is computed."""

    def forward(self, x):
        deviation, mean = torch.std_mean(self.weight, dim=(1, 2, 3), keepdim=True)
        return F.conv2d(x, (self.weight - mean) / (deviation + 1e-5), self.bias, self.stride, self.padding)


class Named(nn.Linear):
    """A subclass that changes nothing."""


class Ours(nn.Sequential):
    """Stem, normalisation, attention-free body and head, all by other names than torch's."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 3, padding=1, bias=False),
            NormAct(8),
            Standardised(8, 8, 3, padding=1),
            ChannelNorm(8),
            DropPath(0.5),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            Named(8, 4),
        )


class Branching(nn.Module):
    """Python branches on sizes; padding by numbers; a table of positions; values made of the batch size."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = SameSize(3, 8, 3, stride=2), NormAct(8)
        self.drop, self.fc = nn.Dropout(0.3), nn.Linear(8, 4)
        self.register_buffer("order", torch.arange(7, -1, -1), persistent=False)

    def forward(self, x):
        x = self.norm(self.stem(x))
        if x.shape[-1] > 3:
            x = x + torch.linspace(0, 1, x.shape[-1])
        state = torch.zeros(x.size(0), 8, device=x.device)
        with torch.no_grad():
            shift = torch.arange(8.0) / 8
        x = x.flatten(2).mean(2)[:, self.order] + state + shift
        return self.fc(F.dropout(self.drop(x), 0.2, self.training))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.fc = nn.LSTM(6, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x):
        hidden, (last, _) = self.lstm(x)
        return self.fc(hidden[:, -1] + last[0])


class Two(nn.Module):
    """Tokens and numbers in; a mapping out."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.fc, self.head = nn.Embedding(11, 6), nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, tokens, numbers):
        hidden = self.table(tokens).mean(1) + self.fc(numbers)
        return {"logits": self.head(hidden), "hidden": hidden}


class Caching(nn.Module):
    """Keeps what it computes of its weights for eval mode, and forgets it when it trains."""

    def __init__(self) -> None:
        super().__init__()
        self.bias, self.kept = nn.Parameter(torch.ones(4)), {}

    def train(self, mode: bool = True):
        if mode:
            self.kept = {}
        return super().train(mode)

    def forward(self, x):
        if self.training:
            return x + self.bias.exp()
        if "bias" not in self.kept:
            self.kept["bias"] = self.bias.exp()
        return x + self.kept["bias"]


class OnlyInTraining(nn.Module):
    """Does in training mode what no module of torch does."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        return self.fc(x) * 2 if self.training else self.fc(x)


class Auxiliary(nn.Module):
    """A second head in training mode."""

    Outputs = namedtuple("Outputs", ["logits", "aux"])

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.aux = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        found = self.fc(x)
        return self.Outputs(found, self.aux(x)) if self.training else found
