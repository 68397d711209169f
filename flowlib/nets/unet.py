"""A U-Net for small images (Ronneberger et al., 2015, with the residual blocks of Ho et al., 2020)."""

import torch
from torch import Tensor, nn

from flowlib.nets.attention import SelfAttention
from flowlib.nets.embeddings import LabelEmbedding, TimeEmbedding, check_input

__all__ = ["UNet"]


class UNet(nn.Module):
    """Residual blocks at resolutions size, size/2, ..., with skips across, and attention at the coarsest.

    Time and class enter every block as a scale and shift after its second normalisation.

    Args:
        channels: Image channels.
        size: Height and width, a multiple of `2 ** (len(multipliers) - 1)`.
        width: Channels at the finest level, a multiple of 8.
        multipliers: Channels of each level as multiples of `width`, finest first.
        classes: Number of classes for conditioning; `None` for none.
        dropout: Dropout rate inside the blocks.

    Raises:
        ValueError: If `size` cannot be halved often enough or `width` is not a multiple of 8.

    Example:
        >>> net = UNet(channels=1, size=8, width=16, classes=10)
        >>> net(torch.zeros(2, 1, 8, 8), torch.zeros(2), y=torch.tensor([3, -1])).shape
        torch.Size([2, 1, 8, 8])
    """

    def __init__(
        self,
        channels: int = 1,
        size: int = 8,
        width: int = 32,
        multipliers: tuple[int, ...] = (1, 2),
        classes: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        factor = 2 ** (len(multipliers) - 1)
        if not multipliers or size % factor:
            raise ValueError(f"size must be a multiple of {factor} for {len(multipliers)} levels, got {size}")
        if width % 8:
            raise ValueError(f"width must be a multiple of 8, got {width}")
        self.event = (channels, size, size)
        self.classes = classes
        embedding = 4 * width
        self.time = TimeEmbedding(embedding)
        self.labels = LabelEmbedding(classes, embedding) if classes is not None else None
        widths = [width * m for m in multipliers]

        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.down = nn.ModuleList()
        here = width
        for there in widths:
            self.down.append(_ResidualBlock(here, there, embedding, dropout))
            here = there
        self.middle = nn.ModuleList(
            [
                _ResidualBlock(here, here, embedding, dropout),
                _ImageAttention(here),
                _ResidualBlock(here, here, embedding, dropout),
            ]
        )
        self.up = nn.ModuleList()
        for there in reversed(widths):
            self.up.append(_ResidualBlock(here + there, there, embedding, dropout))
            here = there
        self.last = nn.Sequential(nn.GroupNorm(8, here), nn.SiLU(), _zeroed(nn.Conv2d(here, channels, 3, padding=1)))

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Predict for images `[batch, channels, size, size]` at times 0-d or `[batch]`; returns the shape of `x`."""
        t = check_input(x, t, self.event, y, self.classes, like=self.first.weight)
        embedding = self.time(t)
        if self.labels is not None:
            embedding = embedding + self.labels(y, x.shape[0])
        embedding = nn.functional.silu(embedding)

        h = self.first(x)
        skips = []
        for level, block in enumerate(self.down):
            if level:
                h = nn.functional.avg_pool2d(h, 2)
            h = block(h, embedding)
            skips.append(h)
        first, attention, second = self.middle
        h = second(attention(first(h, embedding)), embedding)
        for level, block in enumerate(self.up):
            if level:
                h = nn.functional.interpolate(h, scale_factor=2.0, mode="nearest")
            h = block(torch.cat([h, skips.pop()], 1), embedding)
        out: Tensor = self.last(h)
        return out


class _ResidualBlock(nn.Module):
    """GroupNorm-SiLU-conv twice, modulated by the embedding, plus a skip; the second convolution starts at zero."""

    def __init__(self, inputs: int, outputs: int, embedding: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(8, inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.modulation = nn.Linear(embedding, 2 * outputs)
        self.norm2 = nn.GroupNorm(8, outputs)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = _zeroed(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(nn.functional.silu(self.norm1(x)))
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, 1)  # (B, C, 1, 1) each
        h = self.norm2(h) * (1 + scale) + shift
        out: Tensor = self.skip(x) + self.conv2(self.dropout(nn.functional.silu(h)))
        return out


class _ImageAttention(nn.Module):
    """Self-attention over pixels with a skip."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, channels)
        self.attention = SelfAttention(channels, heads=4)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # (B, HW, C)
        out: Tensor = x + self.attention(tokens).transpose(1, 2).reshape(x.shape)
        return out


def _zeroed(layer: nn.Conv2d) -> nn.Conv2d:
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
