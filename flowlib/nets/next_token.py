"""Next-token generation of continuous tokens: a causal transformer, and a small flow for each token."""

import torch
from torch import Tensor, nn

from flowlib.kernels import FrameCache
from flowlib.nets.dit import image_to_patches, patches_to_image, sine_cosine_2d
from flowlib.nets.embeddings import LabelEmbedding, TimeEmbedding, check_input
from flowlib.nets.transformer import BlockTransformer

__all__ = ["FlowHead", "NextToken"]


class FlowHead(nn.Module):
    """A residual MLP for one token, every block modulated by time and a condition (adaLN-zero).

    Args:
        dim: Entries of a token.
        condition: Size of the condition.
        width: Hidden width.
        depth: Number of blocks.

    Example:
        >>> head = FlowHead(dim=4, condition=8, width=16, depth=2)
        >>> head(torch.zeros(5, 4), torch.tensor(0.5), torch.zeros(5, 8)).shape
        torch.Size([5, 4])
    """

    def __init__(self, dim: int, condition: int, width: int = 256, depth: int = 3) -> None:
        super().__init__()
        self.event = (dim,)
        self.time, self.condition = TimeEmbedding(width), nn.Linear(condition, width)
        self.first = nn.Linear(dim, width)
        self.blocks = nn.ModuleList(_HeadBlock(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation, self.last = nn.Linear(width, 2 * width), nn.Linear(width, dim)
        for layer in (self.modulation, self.last):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, t: Tensor, z: Tensor) -> Tensor:
        """Predict for tokens `[n, dim]` at times 0-d or `[n]` under conditions `[n, condition]`."""
        t = check_input(x, t, self.event, None, None, like=self.first.weight)
        condition = nn.functional.silu(self.time(t) + self.condition(z))
        h = self.first(x)
        for block in self.blocks:
            h = block(h, condition)
        shift, scale = self.modulation(condition).chunk(2, -1)
        out: Tensor = self.last(self.norm(h) * (1 + scale) + shift)
        return out


class _HeadBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.modulation = nn.Linear(width, 3 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(condition).chunk(3, -1)
        out: Tensor = h + gate * self.mlp(self.norm(h) * (1 + scale) + shift)
        return out


class NextToken(nn.Module):
    r"""Patches of an image one after another, row by row: $p(x \mid y) = \prod_i p(x^i \mid x^{<i}, y)$.

    A causal transformer reads the class and the tokens before and gives a vector $z_i$ for the next one; a `FlowHead`
    is the velocity of a flow from noise to $x^i$ given $z_i$ (the diffusion loss of Li et al., 2024, with flow
    matching). Training shows a token of noise level $t$ as a state of its own, so path, field and objective are those
    of any flow: `x` holds rows, in the order image, token, draw, and the condition `clean` the clean tokens of the same
    rows. `draws` noises a token use the costly $z_i$ several times.

    Args:
        size: Height and width of the image, a multiple of `patch`.
        channels: Channels of the image.
        patch: Side of a patch.
        width: Size of the transformer's tokens, a multiple of 4 and an even multiple of `heads`.
        depth: Number of transformer blocks.
        heads: Attention heads.
        head_width: Width of the flow head.
        head_depth: Blocks of the flow head.
        classes: Number of classes; `None` for none.
        draws: Noisy copies of each token in training.

    Raises:
        ValueError: If sizes do not divide.

    Example:
        >>> net = NextToken(size=8, channels=1, patch=4, width=16, depth=1, heads=2, classes=10)
        >>> rows = net.rows(torch.zeros(3, 1, 8, 8))                      # 3 images of 4 tokens of 16 numbers
        >>> net(torch.randn(12, 16), torch.rand(12), clean=rows, y=torch.zeros(12).long()).shape
        torch.Size([12, 16])
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
        head_width: int = 64,
        head_depth: int = 3,
        classes: int | None = None,
        draws: int = 1,
    ) -> None:
        super().__init__()
        if size % patch:
            raise ValueError(f"patch must divide size, got {patch} and {size}")
        if width % 4 or draws < 1:
            raise ValueError(f"width must be a multiple of 4 and draws positive, got {width} and {draws}")
        self.image, self.patch, self.classes, self.draws = (channels, size, size), patch, classes, draws
        self.tokens, dim = (size // patch) ** 2, channels * patch**2
        self.event = (dim,)
        self.labels = LabelEmbedding(classes or 0, width)  # of no class: the null vector alone, which is the start
        self.first = nn.Linear(dim, width)
        self.register_buffer("positions", sine_cosine_2d(size // patch, size // patch, width))
        self.backbone = BlockTransformer(width, depth, heads, frame=1)
        self.norm = nn.LayerNorm(width)
        self.head = FlowHead(dim, width, head_width, head_depth)

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer's layers, for sharding and activation checkpoints."""
        return self.backbone.blocks

    def forward(self, x: Tensor, t: Tensor, clean: Tensor, y: Tensor | None = None) -> Tensor:
        """Predict for noisy tokens.

        Args:
            x: Rows `[images * tokens * draws, dim]`.
            t: Their times, 0-d or one each.
            clean: The clean tokens of the same rows; a prediction depends on those of earlier tokens only.
            y: Labels, one a row; an image has that of its first row. -1 is no class.

        Raises:
            ValueError: If rows are not whole images, or shapes differ.
        """
        if x.shape[0] % (self.tokens * self.draws):
            raise ValueError(
                f"x must hold whole images of {self.tokens} tokens times {self.draws} draws, got {x.shape[0]} rows"
            )
        if clean.shape != x.shape:
            raise ValueError(f"clean must have the shape of x, {list(x.shape)}; got {list(clean.shape)}")
        tokens = clean.reshape(-1, self.tokens, self.draws, *self.event)[:, :, 0]
        z = self.conditions(tokens, None if y is None else y.reshape(len(tokens), -1)[:, 0])
        out: Tensor = self.head(x, t, z.flatten(0, 1).repeat_interleave(self.draws, 0))
        return out

    def conditions(self, tokens: Tensor, y: Tensor | None = None) -> Tensor:
        """The vectors $z_i$ `[images, tokens, width]` of clean tokens `[images, tokens, dim]` and labels `[images]`."""
        start = self.labels(y, len(tokens))[:, None]
        h = torch.cat([start, self.first(tokens[:, :-1])], 1) + self.positions
        out: Tensor = self.norm(self.backbone(h, nn.functional.silu(start)))
        return out

    def caches(self, batch: int) -> list[FrameCache]:
        """Empty caches for `batch` images."""
        return self.backbone.caches(batch, slots=self.tokens)

    @torch.no_grad()
    def advance(self, token: Tensor | None, caches: list[FrameCache], y: Tensor | None = None) -> Tensor:
        """The vector `[images, width]` of the next token.

        Args:
            token: The token just finished, `[images, dim]`; `None` at the start.
            caches: Of the tokens before; they grow by one.
            y: Labels `[images]`.

        Raises:
            ValueError: If the image is finished.
        """
        place = caches[0].frames
        if place >= self.tokens:
            raise ValueError(f"the image is finished: the caches hold all of its {self.tokens} tokens")
        start = self.labels(y, caches[0].table.shape[0])[:, None]
        h = start if token is None else self.first(token)[:, None]
        condition = nn.functional.silu(start)
        out: Tensor = self.norm(self.backbone.step(h + self.positions[place], condition, caches, keep=True))[:, 0]
        return out

    def rows(self, images: Tensor) -> Tensor:
        """Images `[n, channels, size, size]` as clean rows, each token `draws` times."""
        return image_to_patches(images, self.patch).flatten(0, 1).repeat_interleave(self.draws, 0)

    def images(self, tokens: Tensor) -> Tensor:
        """Tokens `[n, tokens, dim]` as images."""
        return patches_to_image(tokens, self.image, self.patch)
