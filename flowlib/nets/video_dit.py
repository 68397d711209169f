"""A causal diffusion transformer for video: frames in order, each with its own time."""

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from flowlib.kernels import FrameCache, block_causal_attention
from flowlib.nets.dit import image_to_patches, patches_to_image, sine_cosine_2d
from flowlib.nets.embeddings import LabelEmbedding, TimeEmbedding, check_input
from flowlib.nets.transformer import BlockTransformer, rotate, spread

__all__ = ["VideoDiT"]


class VideoDiT(nn.Module):
    r"""Frames as blocks of patch tokens; a frame sees itself and the frames before it.

    A clip is `frames` consecutive rows of the batch, so that path, field and objective treat every frame as a state
    with a time of its own. Independent times are *diffusion forcing* (Chen et al., 2024). With `clean` frames the
    network is trained by *teacher forcing*: a noisy frame sees itself and the clean frames before it, in one pass over
    both. Sampling goes frame by frame: `predict` for the solver, `remember` for the finished frame.

    Args:
        frames: Frames of a training clip.
        size: Height and width of a frame, multiples of `patch`; one number for both.
        channels: Channels of a frame.
        patch: Side of a patch.
        width: Token size.
        depth: Number of blocks.
        heads: Attention heads.
        classes: Number of classes of clips; `None` for none.
        window: Frames that a frame sees, its own included; `None` for all.
        sink: First frames, which every frame sees.

    Raises:
        ValueError: If sizes do not divide.

    Example:
        >>> net = VideoDiT(frames=3, size=8, width=32, depth=1, heads=2)
        >>> net(torch.zeros(6, 1, 8, 8), torch.rand(6)).shape         # two clips of three frames
        torch.Size([6, 1, 8, 8])
    """

    positions: Tensor

    def __init__(
        self,
        frames: int,
        size: int | tuple[int, int] = 16,
        channels: int = 1,
        patch: int = 4,
        width: int = 64,
        depth: int = 4,
        heads: int = 4,
        classes: int | None = None,
        window: int | None = None,
        sink: int = 0,
    ) -> None:
        super().__init__()
        height, wide = (size, size) if isinstance(size, int) else size
        if height % patch or wide % patch:
            raise ValueError(f"patch must divide size, got {patch} and {size}")
        rows, columns = height // patch, wide // patch
        self.frames, self.event, self.patch, self.classes = frames, (channels, height, wide), patch, classes
        self.time = TimeEmbedding(width)
        self.labels = LabelEmbedding(classes, width) if classes is not None else None
        self.first = nn.Linear(channels * patch**2, width)
        self.register_buffer("positions", sine_cosine_2d(rows, columns, width))
        self.backbone = BlockTransformer(width, depth, heads, rows * columns, window, sink)
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width)
        self.last = nn.Linear(width, channels * patch**2)
        for layer in (self.modulation, self.last):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    @property
    def blocks(self) -> nn.ModuleList:
        """The layers, for sharding and activation checkpoints."""
        return self.backbone.blocks

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None, clean: Tensor | None = None) -> Tensor:
        """Predict for whole clips.

        Args:
            x: Noisy frames `[clips * frames, channels, height, width]`.
            t: Their times, 0-d or one each.
            y: Labels, one each; a clip has that of its first frame. -1 is no class.
            clean: Clean frames of the same shape, for teacher forcing.

        Raises:
            ValueError: If rows are not whole clips, or shapes differ.
        """
        t = check_input(x, t, self.event, y, self.classes, like=self.first.weight)
        if x.shape[0] % self.frames:
            raise ValueError(f"x must hold whole clips of {self.frames} frames, got {x.shape[0]} rows")
        condition, h = (self._clips(value) for value in (self._condition(t, y, self.frames), self._tokens(x)))
        if clean is None:
            return self._image(self.backbone(h, condition), condition, x.shape[0])
        if clean.shape != x.shape:
            raise ValueError(f"clean must have the shape of x, {list(x.shape)}; got {list(clean.shape)}")
        known = self._clips(self._condition(torch.ones_like(t), y, self.frames))
        both = torch.cat([self._clips(self._tokens(clean)), h], 1)
        conditions = torch.cat([known, condition], 1)
        attend = _TeacherForcing(self.frames, self.backbone)
        h = self.backbone(both, conditions, attend)[:, h.shape[1] :]
        return self._image(h, condition, x.shape[0])

    def caches(self, batch: int, *, slots: int | None = None) -> list[FrameCache]:
        """Empty caches for `batch` clips; `slots` frames if the network has no window."""
        return self.backbone.caches(batch, slots=slots)

    def predict(self, x: Tensor, t: Tensor, caches: list[FrameCache], y: Tensor | None = None) -> Tensor:
        """Predict for the next frame `[clips, channels, height, width]` of clips in the caches, which do not change."""
        return self._next(x, t, caches, y, keep=False)

    def remember(self, x: Tensor, caches: list[FrameCache], y: Tensor | None = None) -> None:
        """Put a finished frame into the caches."""
        self._next(x, torch.ones((), dtype=x.dtype, device=x.device), caches, y, keep=True)

    @torch.no_grad()
    def _next(self, x: Tensor, t: Tensor, caches: list[FrameCache], y: Tensor | None, *, keep: bool) -> Tensor:
        t = check_input(x, t, self.event, y, self.classes, like=self.first.weight)
        condition = self._condition(t, y, 1)
        return self._image(self.backbone.step(self._tokens(x), condition, caches, keep=keep), condition, x.shape[0])

    def _tokens(self, x: Tensor) -> Tensor:
        out: Tensor = self.first(image_to_patches(x, self.patch)) + self.positions
        return out

    def _condition(self, t: Tensor, y: Tensor | None, frames: int) -> Tensor:
        """Of every frame, `[frames in all, 1, W]`."""
        condition: Tensor = self.time(t)
        if self.labels is not None:
            if y is not None:
                y = y.reshape(-1, frames)[:, :1].expand(-1, frames).flatten()
            condition = condition + self.labels(y, t.shape[0])
        return nn.functional.silu(condition)[:, None]

    def _clips(self, h: Tensor) -> Tensor:
        """Rows of frames `[clips * frames, P, W]` to sequences `[clips, frames * P, W]`."""
        return h.reshape(-1, self.frames * h.shape[1], h.shape[2])

    def _image(self, h: Tensor, condition: Tensor, rows: int) -> Tensor:
        shift, scale = spread(self.modulation(condition), h.shape[1]).chunk(2, -1)
        tokens = self.last(self.norm(h) * (1 + scale) + shift)
        return patches_to_image(tokens.reshape(rows, -1, tokens.shape[-1]), self.event, self.patch)


class _TeacherForcing:
    """Clean frames, then noisy ones: a noisy frame sees itself and the clean frames before it.

    Clean frames attend in one block-causal call, noisy ones frame by frame to just what they see: no pair is hidden,
    so no mask of the square of the clip's tokens is made.
    """

    def __init__(self, frames: int, backbone: BlockTransformer) -> None:
        self.frames, self.backbone = frames, backbone

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        size, sink = self.backbone.frame, self.backbone.sink
        window = self.backbone.window if self.backbone.window is not None else self.frames
        frame = torch.arange(self.frames, device=q.device).repeat_interleave(size).repeat(2)
        (q, noisy_q), (k, noisy_k), (v, noisy_v) = (x.chunk(2, 2) for x in (rotate(q, frame), rotate(k, frame), v))
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        out = [block_causal_attention(q, k, v, frame=size, window=self.backbone.window, sink=sink)]
        for f in range(self.frames):
            own, first = slice(f * size, (f + 1) * size), max(0, f - window + 1)
            past = (slice(0, min(sink, first) * size), slice(first * size, f * size))
            keys, values = (
                torch.cat([*(clean[:, :, part] for part in past), noisy[:, :, own]], 2)
                for clean, noisy in ((k, noisy_k), (v, noisy_v))
            )
            out.append(scaled_dot_product_attention(noisy_q[:, :, own], keys, values))
        return torch.cat(out, 2)
