"""Small nets of every family, written as their users write them."""

import math

import torch
from torch import nn
from torch.nn import functional as F


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.act, self.drop, self.fc2 = (
            nn.Linear(width, hidden),
            nn.GELU(),
            nn.Dropout(0.1),
            nn.Linear(hidden, width),
        )

    def forward(self, x):
        return self.fc2(self.drop(self.act(self.fc1(x))))


class Attention(nn.Module):
    """Fused query, key and value; torch's call, or by hand; norms of query and key."""

    def __init__(self, width: int, heads: int, by_hand: bool, qk_norm: bool = False) -> None:
        super().__init__()
        self.heads, self.by_hand = heads, by_hand
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.q_norm = nn.LayerNorm(width // heads) if qk_norm else nn.Identity()
        self.k_norm = nn.RMSNorm(width // heads) if qk_norm else nn.Identity()

    def forward(self, x):
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        if self.by_hand:
            attention = ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(dim=-1)
            x = attention @ v
        else:
            x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(B, N, C))


class ViT(nn.Module):
    def __init__(self, by_hand: bool = False, heads: int = 2, qk_norm: bool = False) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 12, 4, 4)
        self.cls, self.registers = nn.Parameter(torch.zeros(1, 1, 12)), nn.Parameter(torch.zeros(1, 2, 12))
        self.pos = nn.Parameter(torch.zeros(1, 5, 12))
        self.norm1, self.norm2, self.norm = (
            nn.LayerNorm(12),
            nn.LayerNorm(12, bias=False),
            nn.LayerNorm(12, elementwise_affine=False),
        )
        self.attention, self.mlp, self.head = Attention(12, heads, by_hand, qk_norm), Mlp(12, 20), nn.Linear(12, 5)
        self.gamma = nn.Parameter(torch.ones(12))

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], dim=1) + self.pos
        x = torch.cat([self.registers.expand(x.shape[0], -1, -1), x], dim=1)
        x = x + self.gamma * self.attention(self.norm1(x))
        x = x + self.mlp(self.norm2(x))
        return self.head(self.norm(x)[:, 0])


class Windows(nn.Module):
    """Shifted windows as timm writes them, with a table of position biases and a mask between regions."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.attn_norm = nn.Conv2d(3, 8, 2, 2), nn.LayerNorm(8), nn.LayerNorm(8)
        self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8)
        self.table = nn.Parameter(torch.zeros(9, 2))
        place = torch.stack(torch.meshgrid(torch.arange(2), torch.arange(2), indexing="ij")).flatten(1)
        offsets = place[:, :, None] - place[:, None] + 1
        self.register_buffer("index", offsets[0] * 3 + offsets[1])
        self.register_buffer("mask", torch.zeros(4, 4, 4))
        self.merge_norm, self.merge, self.head = nn.LayerNorm(32), nn.Linear(32, 16, bias=False), nn.Linear(16, 5)

    def forward(self, x):
        x = self.embed(x).permute(0, 2, 3, 1)
        B, H, W, C = x.shape
        shortcut = x
        x = torch.roll(self.norm(x), shifts=(-1, -1), dims=(1, 2))
        x = x.view(B, H // 2, 2, W // 2, 2, C).permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, 4, C)
        x = self.windows(x)
        x = x.view(-1, H // 2, W // 2, 2, 2, C).permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, H, W, C)
        x = shortcut + torch.roll(x, shifts=(1, 1), dims=(1, 2))
        x = self.attn_norm(x).reshape(B, H // 2, 2, W // 2, 2, C).permute(0, 1, 3, 4, 2, 5).flatten(3)
        return self.head(self.merge(self.merge_norm(x)).mean((1, 2)))

    def windows(self, x):
        B, N, C = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, 2, C // 2).permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.table[self.index.view(-1)].view(4, 4, -1).permute(2, 0, 1).contiguous().unsqueeze(0)
        attention = q * (C // 2) ** -0.5 @ k.transpose(-2, -1) + bias
        attention = attention.view(-1, 4, 2, N, N) + self.mask.unsqueeze(1).unsqueeze(0)
        attention = torch.softmax(attention.view(-1, 2, N, N), dim=-1)
        return self.proj((attention @ v).transpose(1, 2).reshape(B, N, C))


class ConvNeXt(nn.Module):
    """Norms behind permutes, of the last dimension, and of calls; layer scale."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, 8, 2, 2), nn.LayerNorm(8)
        self.depthwise, self.norm, self.mlp = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.LayerNorm(8), Mlp(8, 16)
        self.gamma = nn.Parameter(torch.ones(8, 1, 1))
        self.weight, self.bias = nn.Parameter(torch.ones(8)), nn.Parameter(torch.zeros(8))
        self.down, self.head = nn.Conv2d(8, 12, 2, 2), nn.Linear(12, 5)

    def forward(self, x):
        x = self.stem_norm(self.stem(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        y = self.mlp(self.norm(self.depthwise(x).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        x = x + self.gamma * y
        x = F.layer_norm(x.permute(0, 2, 3, 1), (8,), self.weight, self.bias, 1e-6).permute(0, 3, 1, 2)
        return self.head(self.down(x).mean((2, 3)))


class Grouped(nn.Module):
    """Group norms of modules and calls, one of a group for each channel, instance norms, a norm of whole maps."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8)
        self.conv2, self.norm2 = nn.Conv2d(8, 6, 3, padding=1), nn.GroupNorm(6, 6)
        self.conv3, self.norm3 = nn.Conv2d(6, 8, 3, padding=1), nn.InstanceNorm2d(8, affine=True)
        self.conv4, self.norm4 = nn.Conv2d(8, 6, 3, padding=1), nn.InstanceNorm2d(6)
        self.conv5, self.norm5 = nn.Conv2d(6, 6, 3, padding=1), nn.LayerNorm([6, 6, 6])
        self.conv6, self.conv7 = nn.Conv2d(6, 4, 1), nn.Conv2d(4, 4, 1)
        self.weight = nn.Parameter(torch.ones(4))
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        x = F.relu(self.norm1(self.conv1(x)))
        x = F.relu(self.norm2(self.conv2(x)))
        x = F.relu(self.norm3(self.conv3(x)))
        x = F.relu(self.norm4(self.conv4(x)))
        x = F.relu(self.norm5(self.conv5(x)))
        x = F.relu(F.group_norm(self.conv6(x), 1, self.weight))
        x = F.normalize(F.group_norm(self.conv7(x), 4), dim=1)
        return self.head(x.mean((2, 3)))


class UNet(nn.Module):
    """Transposed convolutions: plain, in groups, depthwise with a multiplier; skips, and a pixel shuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 12, 3, 2, 1)
        self.up1, self.up2 = nn.ConvTranspose2d(12, 6, 2, 2), nn.ConvTranspose2d(14, 8, 3, 1, 1, groups=2)
        self.depthwise = nn.ConvTranspose2d(8, 16, 3, 1, 1, groups=8, bias=False)
        self.wide, self.shuffle, self.unshuffle = nn.Conv2d(16, 16, 1), nn.PixelShuffle(2), nn.PixelUnshuffle(2)
        self.last, self.head = nn.Conv2d(16, 4, 1), nn.Linear(4, 5)

    def forward(self, x):
        x = F.relu(self.down1(x))
        y = F.relu(self.up1(F.relu(self.down2(x))))
        x = F.relu(self.up2(torch.cat([x, y], 1)))
        x = self.unshuffle(self.shuffle(self.wide(self.depthwise(x))))
        return self.head(self.last(x).mean((2, 3)))


class Gpt(nn.Module):
    """A nanoGPT block: embeddings, a causal mask, query, key and value split."""

    def __init__(self) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(10, 12), nn.Embedding(6, 12)
        self.ln_1, self.ln_2, self.ln_f = nn.LayerNorm(12), nn.LayerNorm(12), nn.LayerNorm(12)
        self.c_attn, self.c_proj, self.mlp = nn.Linear(12, 36), nn.Linear(12, 12), Mlp(12, 20)
        self.register_buffer("bias", torch.tril(torch.ones(8, 8)).view(1, 1, 8, 8))
        self.lm_head = nn.Linear(12, 10, bias=False)

    def forward(self, tokens):
        x = self.wte(tokens) + self.wpe(torch.arange(0, tokens.size(1)))
        x = x + self.attend(self.ln_1(x))
        x = x + self.mlp(self.ln_2(x))
        return self.lm_head(self.ln_f(x))

    def attend(self, x):
        B, T, C = x.size()
        q, k, v = self.c_attn(x).split(12, dim=2)
        k, q, v = (y.view(B, T, 3, C // 3).transpose(1, 2) for y in (k, q, v))
        attention = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(4))
        attention = attention.masked_fill(self.bias[:, :, :T, :T] == 0, float("-inf"))
        y = F.softmax(attention, dim=-1) @ v
        return self.c_proj(y.transpose(1, 2).contiguous().view(B, T, C))


class Multihead(nn.Module):
    """torch's layer, of one value and of three."""

    def __init__(self, batch_first: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.embed, self.norm, self.other = nn.Linear(3, 12), nn.LayerNorm(12), nn.Linear(12, 12)
        self.own = nn.MultiheadAttention(12, 3, dropout=dropout, batch_first=batch_first)
        self.cross = nn.MultiheadAttention(12, 2, batch_first=batch_first, bias=False)
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        x = self.embed(x.flatten(2).transpose(1, 2) if self.batch_first else x.flatten(2).permute(2, 0, 1))
        y = self.norm(x)
        y, _ = self.own(y, y, y, need_weights=False)
        x = x + y
        x = x + self.cross(self.other(x), x, x)[0]
        return self.head(x.mean(1 if self.batch_first else 0))


class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm1, self.norm2 = nn.Conv2d(3, 8, 2, 2), nn.LayerNorm(8), nn.LayerNorm(8)
        self.tokens, self.channels, self.head = Mlp(9, 6), Mlp(8, 12), nn.Linear(8, 5)

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return self.head((x + self.channels(self.norm2(x))).mean(1))


class Llama(nn.Module):
    """RMSNorm, one key for all heads, products in einsum, a gated unit, weights that are arguments of calls."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm1, self.norm2 = nn.Linear(3, 12), nn.RMSNorm(12), nn.RMSNorm(12)
        self.weight = nn.Parameter(torch.ones(12))
        self.q, self.k, self.v, self.o = (nn.Linear(12, 12, bias=False) for _ in range(4))
        self.gate, self.up, self.down = nn.Linear(12, 16), nn.Linear(12, 16), nn.Linear(16, 12)
        self.projection, self.matrix = nn.Parameter(torch.zeros(7, 12)), nn.Parameter(torch.zeros(7, 6))
        self.other, self.bias = nn.Parameter(torch.zeros(6, 8)), nn.Parameter(torch.zeros(8))
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.embed(x.flatten(2).transpose(1, 2))
        y = self.norm1(x)
        q, k, v = (layer(y).unflatten(-1, (3, 4)) for layer in (self.q, self.k, self.v))
        logits = torch.einsum("bihd,bjhd->bhij", q, k) / math.sqrt(4)
        y = torch.einsum("bhij,bjhd->bihd", logits.softmax(-1), v).flatten(2)
        x = x + self.o(y)
        y = self.norm2(x)
        x = x + self.down(F.silu(self.gate(y)) * self.up(y))
        x = F.rms_norm(x, (12,), self.weight, 1e-6)
        x = F.linear(x, self.projection).mean(1) @ self.matrix
        return self.head(torch.addmm(self.bias, x, self.other))


class Shared(nn.Module):
    """Two maps through one body, one tower for both, norms and an MLP that are called again; as detectors have them."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU())
        self.down = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.tower = nn.Sequential(nn.Conv2d(8, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 1))
        self.norm = nn.LayerNorm(4)
        self.mlp = nn.Sequential(nn.Linear(4, 10), nn.GELU(), nn.Linear(10, 4))
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        first, second = self.body(x), self.body(x.flip(-1))
        small = self.down(self.depthwise(first) + self.depthwise(second))
        maps = (self.tower(first), self.tower(small))
        tokens = torch.cat([one.flatten(2).transpose(1, 2) for one in maps], 1)
        for _ in range(2):
            tokens = tokens + self.mlp(self.norm(tokens))
        return self.head(self.norm(tokens).mean(1))
