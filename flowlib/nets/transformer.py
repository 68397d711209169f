"""A causal transformer over blocks of tokens: the backbone of autoregressive image and video models."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from flowlib.kernels import FrameCache, block_causal_attention

__all__ = ["Attention", "BlockTransformer", "CausalBlock", "rotate", "spread"]

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From queries, keys and values `[batch, heads, tokens, dim]` to attended values."""


def rotate(x: Tensor, positions: Tensor) -> Tensor:
    r"""Rotary positions (Su et al., 2021): turn pairs of features by angles proportional to the position.

    The product of a query at $i$ and a key at $j$ then depends on $i - j$ only, so that keys in a cache keep their
    meaning however far a rollout goes.

    Args:
        x: Queries or keys `[..., tokens, dim]`, an even number of features.
        positions: `[tokens]`.

    Example:
        >>> q, k = torch.randn(2, 1, 8)
        >>> here = (rotate(q, torch.tensor([3])) * rotate(k, torch.tensor([1]))).sum()
        >>> there = (rotate(q, torch.tensor([103])) * rotate(k, torch.tensor([101]))).sum()
        >>> torch.allclose(here, there, atol=1e-4)
        True
    """
    half = x.shape[-1] // 2
    rates = 10000.0 ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angles = positions.to(torch.float32)[:, None] * rates  # (T, D/2)
    cosine, sine = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cosine - second * sine, first * sine + second * cosine], -1)


def spread(x: Tensor, tokens: int) -> Tensor:
    """What belongs to blocks, `[batch, blocks, ...]`, for each of their tokens; one block stays as it is.

    Example:
        >>> spread(torch.tensor([[[1.0], [2.0]]]), 4).flatten()
        tensor([1., 1., 2., 2.])
    """
    return x if x.shape[1] in (1, tokens) else x.repeat_interleave(tokens // x.shape[1], 1)


class CausalBlock(nn.Module):
    """Attention and MLP, each normalised, shifted, scaled and gated by the condition of a token's block (adaLN-zero).

    Args:
        width: Token size.
        heads: Attention heads; an even number of features each.
        expansion: Hidden width of the MLP as a multiple of `width`.

    Raises:
        ValueError: If `heads` does not divide `width` evenly.
    """

    def __init__(self, width: int, heads: int, expansion: int = 4) -> None:
        super().__init__()
        if width % (2 * heads):
            raise ValueError(f"width must be an even multiple of heads, got {width} and {heads}")
        self.heads = heads
        self.norm1, self.norm2 = (nn.LayerNorm(width, elementwise_affine=False) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, expansion * width), nn.GELU(approximate="tanh"), nn.Linear(expansion * width, width)
        )
        self.modulation = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, h: Tensor, condition: Tensor, attend: Attention) -> Tensor:
        """Transform tokens `[B, T, W]`; `attend` does q, k, v to values.

        Conditions `[B, N, W]` are those of N blocks of T / N tokens: one for all, or up to one for each.
        """
        batch, tokens, width = h.shape
        changes = spread(self.modulation(condition), tokens)  # the product once a block, not once a token
        shift1, scale1, gate1, shift2, scale2, gate2 = changes.chunk(6, -1)
        qkv = self.qkv(self.norm1(h) * (1 + scale1) + shift1).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, T, W/H)
        h = h + gate1 * self.out(attend(q, k, v).transpose(1, 2).reshape(batch, tokens, width))
        out: Tensor = h + gate2 * self.mlp(self.norm2(h) * (1 + scale2) + shift2)
        return out


class _BlockCausal:
    """Block-causal attention of a whole sequence, with rotary positions by block.

    Args:
        frame: Tokens of a block.
        window: Blocks seen, the own one included; `None` for all.
        sink: First blocks, seen by all.
    """

    def __init__(self, frame: int, window: int | None, sink: int) -> None:
        self.frame, self.window, self.sink = frame, window, sink

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        positions = torch.arange(q.shape[2], device=q.device) // self.frame
        q, k = rotate(q, positions), rotate(k, positions)
        return block_causal_attention(
            q.contiguous(), k.contiguous(), v.contiguous(), frame=self.frame, window=self.window, sink=self.sink
        )


class BlockTransformer(nn.Module):
    """Blocks of `frame` tokens in causal order: within a block all tokens see each other.

    Args:
        width: Token size.
        depth: Number of layers.
        heads: Attention heads.
        frame: Tokens of a block: 1 for next-token models, the tokens of a frame for video.
        window: Blocks that a block sees, its own included; `None` for all.
        sink: First blocks, which every block sees.

    Example:
        >>> net = BlockTransformer(width=16, depth=2, heads=2, frame=3)
        >>> net(torch.randn(2, 9, 16), torch.zeros(2, 1, 16)).shape
        torch.Size([2, 9, 16])
    """

    def __init__(
        self, width: int, depth: int, heads: int, frame: int, window: int | None = None, sink: int = 0
    ) -> None:
        super().__init__()
        self.heads, self.width, self.frame, self.window, self.sink = heads, width, frame, window, sink
        self.blocks = nn.ModuleList(CausalBlock(width, heads) for _ in range(depth))

    def forward(self, h: Tensor, condition: Tensor, attend: Attention | None = None) -> Tensor:
        """Transform a whole sequence `[B, T, W]`, T a multiple of the block.

        Conditions `[B, N, W]`: one for all tokens, for each block, or for each token.
        """
        if h.shape[1] % self.frame:
            raise ValueError(f"h must hold whole blocks of {self.frame} tokens, got {h.shape[1]} tokens")
        if condition.shape[1] < 1 or h.shape[1] % condition.shape[1]:
            raise ValueError(
                f"condition must hold one row for equal shares of {h.shape[1]} tokens, got {condition.shape[1]}"
            )
        attend = attend or _BlockCausal(self.frame, self.window, self.sink)
        for block in self.blocks:
            h = block(h, condition, attend)
        return h

    def caches(self, batch: int, *, slots: int | None = None, like: Tensor | None = None) -> list[FrameCache]:
        """Empty caches for decoding, one a layer.

        Args:
            batch: Sequences.
            slots: Blocks to keep if the network has no window.
            like: A tensor with the dtype and device of keys and values; the weights by default.

        Raises:
            ValueError: If neither the network nor the caller says how many blocks to keep.
        """
        own: Any = self.blocks[0]
        place: Tensor = own.qkv.weight if like is None else like
        window = self.window if self.window is not None else slots
        if window is None:
            raise ValueError("slots must be given: the network sees all blocks, so a cache must be told its length")
        return [
            FrameCache(
                batch, self.heads, self.frame, self.width // self.heads,
                window=window, sink=self.sink, dtype=place.dtype, device=place.device, rolling=self.window is not None,
            )
            for _ in self.blocks
        ]  # fmt: skip

    @torch.no_grad()
    def step(self, h: Tensor, condition: Tensor, caches: list[FrameCache], *, keep: bool) -> Tensor:
        """Transform the next block `[B, frame, W]` given the blocks in the caches.

        Args:
            h: The block's tokens.
            condition: `[B, frame, W]` or `[B, 1, W]`.
            caches: Of the blocks before; see `caches`.
            keep: Whether the block's keys and values stay there; otherwise the block can be tried again.
        """
        for block, cache in zip(self.blocks, caches, strict=True):
            h = block(h, condition, _Cached(cache, keep))
        return h


class _Cached:
    """Attention of the newest block to a cache."""

    def __init__(self, cache: FrameCache, keep: bool) -> None:
        self.cache, self.keep = cache, keep

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        position = torch.full((q.shape[2],), self.cache.frames, device=q.device)
        q, k = rotate(q, position), rotate(k, position)
        self.cache.append(k.contiguous(), v.contiguous())
        out = self.cache.attend(q.contiguous())
        if not self.keep:
            self.cache.drop()
        return out
