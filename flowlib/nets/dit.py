"""The diffusion transformer with adaLN-zero conditioning (Peebles and Xie, 2023)."""

import torch
from torch import Tensor, nn

from flowlib.nets.attention import SelfAttention
from flowlib.nets.embeddings import LabelEmbedding, TimeEmbedding, check_input

__all__ = ["DiT", "DiTBlock", "image_to_patches", "patches_to_image", "sine_cosine_2d"]


class DiT(nn.Module):
    """Patches as tokens, fixed 2-D sine-cosine positions, transformer blocks modulated by time and class.

    At initialisation every block is the identity and the output is zero, because gates and last layer start at zero.

    Args:
        size: Height and width of the image, a multiple of `patch`.
        channels: Image channels.
        patch: Side of a patch.
        width: Token size, a multiple of 4 and of `heads`.
        depth: Number of blocks.
        heads: Attention heads.
        classes: Number of classes for conditioning; `None` for none.

    Raises:
        ValueError: If sizes do not divide.

    Example:
        >>> net = DiT(size=8, channels=1, patch=2, width=32, depth=2, heads=4, classes=10)
        >>> net(torch.zeros(2, 1, 8, 8), torch.zeros(2), y=torch.tensor([1, -1])).abs().max().item()
        0.0
    """

    positions: Tensor

    def __init__(
        self,
        size: int = 8,
        channels: int = 1,
        patch: int = 2,
        width: int = 64,
        depth: int = 4,
        heads: int = 4,
        classes: int | None = None,
    ) -> None:
        super().__init__()
        if size % patch:
            raise ValueError(f"patch must divide size, got {patch} and {size}")
        if width % 4:
            raise ValueError(f"width must be a multiple of 4, got {width}")
        self.event = (channels, size, size)
        self.classes = classes
        self.patch = patch
        self.time = TimeEmbedding(width)
        self.labels = LabelEmbedding(classes, width) if classes is not None else None
        self.first = nn.Linear(channels * patch**2, width)
        self.register_buffer("positions", sine_cosine_2d(size // patch, size // patch, width))
        self.blocks = nn.ModuleList(DiTBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = _zeroed(nn.Linear(width, 2 * width))
        self.last = _zeroed(nn.Linear(width, channels * patch**2))

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Predict for images `[batch, channels, size, size]` at times 0-d or `[batch]`; returns the shape of `x`."""
        t = check_input(x, t, self.event, y, self.classes, like=self.first.weight)
        condition = self.time(t)
        if self.labels is not None:
            condition = condition + self.labels(y, x.shape[0])
        condition = nn.functional.silu(condition)[:, None]  # (B, 1, W)
        h = self.first(image_to_patches(x, self.patch)) + self.positions  # (B, T, W)
        for block in self.blocks:
            h = block(h, condition)
        shift, scale = self.modulation(condition).chunk(2, -1)
        return patches_to_image(self.last(self.norm(h) * (1 + scale) + shift), self.event, self.patch)


class DiTBlock(nn.Module):
    """Attention and MLP, each normalised, shifted, scaled and gated by the condition (adaLN-zero).

    Args:
        width: Token size.
        heads: Attention heads.
        expansion: Hidden width of the MLP as a multiple of `width`.

    Example:
        >>> block = DiTBlock(32, 4)
        >>> h = torch.randn(2, 9, 32)
        >>> torch.equal(block(h, torch.randn(2, 1, 32)), h)     # the identity at initialisation
        True
    """

    def __init__(self, width: int, heads: int, expansion: int = 4) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False)
        self.attention = SelfAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False)
        self.mlp = nn.Sequential(
            nn.Linear(width, expansion * width), nn.GELU(approximate="tanh"), nn.Linear(expansion * width, width)
        )
        self.modulation = _zeroed(nn.Linear(width, 6 * width))

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        """Transform tokens `[B, T, W]` under a condition `[B, 1, W]`."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition).chunk(6, -1)  # (B, 1, W) each
        h = h + gate1 * self.attention(self.norm1(h) * (1 + scale1) + shift1)
        out: Tensor = h + gate2 * self.mlp(self.norm2(h) * (1 + scale2) + shift2)
        return out


def image_to_patches(x: Tensor, patch: int) -> Tensor:
    """Images `[B, C, H, W]` to tokens `[B, H W / p^2, C p^2]`, row by row.

    Example:
        >>> image_to_patches(torch.arange(16.0).reshape(1, 1, 4, 4), 2)[0, 0]
        tensor([0., 1., 4., 5.])
    """
    batch, channels, height, width = x.shape
    x = x.reshape(batch, channels, height // patch, patch, width // patch, patch)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * patch**2)


def patches_to_image(tokens: Tensor, event: tuple[int, ...], patch: int) -> Tensor:
    """The inverse of `image_to_patches`, for images of shape `event`, `(C, H, W)`."""
    channels, height, width = event
    x = tokens.reshape(-1, height // patch, width // patch, channels, patch, patch)
    return x.permute(0, 3, 1, 4, 2, 5).reshape(-1, channels, height, width)


def sine_cosine_2d(rows: int, columns: int, width: int) -> Tensor:
    """Positions `[rows * columns, width]`: a quarter of the width each for sine and cosine of row and of column."""
    frequencies = 10000.0 ** -(torch.arange(width // 4) / (width // 4))

    def one(side: int) -> Tensor:
        angles = torch.arange(side)[:, None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], 1)  # (S, W/2)

    row, column = one(rows)[:, None].expand(-1, columns, -1), one(columns)[None].expand(rows, -1, -1)
    return torch.cat([row, column], -1).reshape(rows * columns, width)


def _zeroed(layer: nn.Linear) -> nn.Linear:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
