r"""Block-causal attention for video: frames in order, a sliding window, sink frames, and a paged cache for decoding.

Tokens of one frame see each other; between frames attention is causal. With `window` $w$ and `sink` $s$, frame $f$ sees
frame $g$ if

$$ g \le f \quad\text{and}\quad (f - g < w \ \text{ or }\ g < s) . $$

The kernel is flash attention (Dao, 2023): a tile of queries stays in registers while tiles of keys and values pass; a
running maximum and a running sum make the softmax exact, and only the logarithm of the sum, one number a query, is kept
for the backward pass, which makes the weights again. Tiles of keys that no query of the tile sees are never loaded: a
tile of queries reads its window, and the sink where the window does not cover it.

**Roofline.** With $D$ features a head, a pair costs $4D$ operations forward and $14D$ backward: five products, of which
two, the scores and the gradient of the weights, are made in each of the two kernels. A tile of 128 queries uses each
loaded key and value, $4D$ bytes in bfloat16, $128$ times: 128 operations a byte from cache, and keys and values leave
memory about once, so the tensor cores are the limit: $4 D \cdot(\text{pairs})$ operations at 989 TFLOP/s (H200, dense
bfloat16). `visible_pairs` counts the pairs. Exponentials are second: one a pair, 16 a cycle and multiprocessor, takes
as long as $4D = 256$ operations on tensor cores, so at $D = 64$ both units must overlap to come near the limit.

**Decoding.** `FrameCache` keeps keys and values of the frames that the newest frame sees, a page a frame; a table gives
the page of each slot, so a new frame overwrites the oldest page and nothing moves. The order of slots does not matter
to a softmax; positions are in the keys. A frame of $F$ queries reads $4D$ bytes a key for $4DF$ operations, $F$
operations a byte: a frame of a few hundred tokens is at the ridge of the roofline, a single token far below it.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flowlib._checks import check_positive
from flowlib.kernels._dispatch import check_operand, compute_dtype, use_triton

__all__ = ["FrameCache", "block_causal_attention", "block_causal_mask", "paged_attention", "visible_pairs"]

MAX_HEAD_DIM = 128
"""A tile of queries and one of results are held in registers."""


def block_causal_attention(
    q: Float[Tensor, "batch heads tokens dim"],
    k: Float[Tensor, "batch heads tokens dim"],
    v: Float[Tensor, "batch heads tokens dim"],
    *,
    frame: int,
    window: int | None = None,
    sink: int = 0,
    implementation: str = "auto",
) -> Float[Tensor, "batch heads tokens dim"]:
    r"""Attention with the scale $D^{-1/2}$ under `block_causal_mask`; differentiable in all three tensors.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        frame: Tokens of a frame; the last frame may be incomplete.
        window: Frames that a frame sees, its own included; `None` for all.
        sink: First frames, which every frame sees.
        implementation: `"auto"` (Triton on a GPU), `"reference"` or `"triton"`.

    Returns:
        The attended values, in the dtype of `q`.

    Raises:
        TypeError: If dtypes differ or are not floating, or a size is no integer.
        ValueError: If shapes or devices do not fit, the head dimension exceeds 128, or a size is out of range.
        RuntimeError: If Triton is asked for and cannot run.

    Example:
        >>> q, k, v = torch.randn(3, 1, 2, 6, 8)
        >>> one = block_causal_attention(q, k, v, frame=3, window=1)
        >>> first = torch.nn.functional.scaled_dot_product_attention(q[:, :, :3], k[:, :, :3], v[:, :, :3])
        >>> torch.allclose(one[:, :, :3], first, atol=1e-6)
        True
    """
    check_operand("q", q, ("batch", "heads", "tokens", "dim"))
    check_operand("k", k, tuple(q.shape), q)
    check_operand("v", v, tuple(q.shape), q)
    _check_head_dim(q)
    _check_frames(frame, window, sink)
    if not use_triton(implementation, q, q.shape[0] * q.shape[1]):
        mask = block_causal_mask(q.shape[2], frame=frame, window=window, sink=sink, device=q.device)
        return masked_attention_reference(q, k, v, mask)
    from flowlib.kernels._triton.block_causal import BlockCausalAttention

    out: Tensor = BlockCausalAttention.apply(q, k, v, frame, window, sink)
    return out


def masked_attention_reference(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """The definition, in plain PyTorch; a query that sees nothing gets zero."""
    wide = compute_dtype(q.dtype)
    scores = q.to(wide) @ k.to(wide).transpose(-1, -2) * q.shape[-1] ** -0.5
    weights = torch.softmax(scores.masked_fill(~mask, -torch.inf), -1).nan_to_num(0.0)
    return (weights @ v.to(wide)).to(q.dtype)


def block_causal_mask(
    tokens: int, *, frame: int, window: int | None = None, sink: int = 0, device: torch.device | str = "cpu"
) -> Tensor:
    """Boolean mask `[tokens, tokens]`: which key (column) each query (row) sees; arguments as in the attention.

    Example:
        >>> block_causal_mask(4, frame=1, window=2, sink=1).int()
        tensor([[1, 0, 0, 0],
                [1, 1, 0, 0],
                [1, 1, 1, 0],
                [1, 0, 1, 1]], dtype=torch.int32)
    """
    check_positive("tokens", tokens, integer=True)
    _check_frames(frame, window, sink)
    frames = torch.arange(tokens, device=device) // frame
    query, key = frames[:, None], frames[None, :]
    near = query - key < (tokens if window is None else window)
    return (key <= query) & (near | (key < sink))


def visible_pairs(tokens: int, *, frame: int, window: int | None = None, sink: int = 0) -> int:
    """Number of pairs that `block_causal_mask` lets through, without the mask; for counting operations.

    Example:
        >>> visible_pairs(4, frame=1, window=2, sink=1)
        9
    """
    check_positive("tokens", tokens, integer=True)
    _check_frames(frame, window, sink)
    frames = -(-tokens // frame)
    size = [min(frame, tokens - f * frame) for f in range(frames)]
    total = 0
    for f in range(frames):
        first = 0 if window is None else max(0, f - window + 1)
        total += size[f] * (sum(size[first : f + 1]) + sum(size[: min(sink, first)]))
    return total


def paged_attention(
    q: Float[Tensor, "batch heads queries dim"],
    keys: Float[Tensor, "pages heads frame dim"],
    values: Float[Tensor, "pages heads frame dim"],
    table: Int[Tensor, "batch slots"],
    *,
    implementation: str = "auto",
) -> Float[Tensor, "batch heads queries dim"]:
    r"""Attention of each sample to the pages that its row of `table` lists, for decoding: no gradient.

    Args:
        q: Queries.
        keys: Pages of keys; samples may share pages.
        values: Pages of values.
        table: int32 page numbers; -1 is an empty slot. Their range is checked on the CPU only: on a GPU it would make
            the CPU wait.
        implementation: `"auto"` (Triton on a GPU), `"reference"` or `"triton"`.

    Returns:
        The attended values; zero for a sample without pages.

    Raises:
        TypeError: If dtypes do not fit.
        ValueError: If shapes, devices or page numbers do not fit, or a gradient is asked for.
        RuntimeError: If Triton is asked for and cannot run.

    Example:
        >>> q, keys, values = torch.randn(1, 2, 3, 8), torch.randn(5, 2, 3, 8), torch.randn(5, 2, 3, 8)
        >>> out = paged_attention(q, keys, values, torch.tensor([[4, 0, -1]], dtype=torch.int32))
        >>> out.shape
        torch.Size([1, 2, 3, 8])
    """
    check_operand("q", q, ("batch", "heads", "queries", "dim"))
    batch, heads, _, dim = q.shape
    check_operand("keys", keys, ("pages", heads, "frame", dim), q)
    check_operand("values", values, tuple(keys.shape), q)
    _check_head_dim(q)
    if table.dtype != torch.int32:
        raise TypeError(f"table must be int32, got {table.dtype}")
    if table.ndim != 2 or table.shape[0] != batch or table.shape[1] == 0:
        raise ValueError(f"table must have shape [{batch}, slots], got {list(table.shape)}")
    if table.device != q.device:
        raise ValueError(f"table must be on the device of the other arguments, {q.device}; got {table.device}")
    if table.device.type == "cpu" and not -1 <= int(table.min()) <= int(table.max()) < keys.shape[0]:
        raise ValueError(
            f"table must hold -1 or pages below {keys.shape[0]}, got {int(table.min())} to {int(table.max())}"
        )
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q, keys, values)):
        raise ValueError("q, keys and values must not require a gradient: decoding has none (use torch.no_grad())")
    if not use_triton(implementation, q, q.shape[0] * q.shape[1]):
        return paged_attention_reference(q, keys, values, table)
    from flowlib.kernels._triton.block_causal import paged

    return paged(q, keys, values, table)


def paged_attention_reference(q: Tensor, keys: Tensor, values: Tensor, table: Tensor) -> Tensor:
    """The definition, in plain PyTorch: gather the pages, then attend."""
    index = table.clamp_min(0).long()
    k, v = (pages[index].transpose(1, 2).flatten(2, 3) for pages in (keys, values))  # (B, H, slots * frame, D)
    mask = (table >= 0).repeat_interleave(keys.shape[2], 1)[:, None, None, :]
    return masked_attention_reference(q, k, v, mask)


class FrameCache:
    r"""Keys and values of the frames that the newest frame sees, one page a frame and sample.

    Frame $g < s$ has slot $g$ for good; a later frame has slot $s + (g - s) \bmod w$, so it takes the place of the
    frame that just left the window.

    Args:
        batch: Samples.
        heads: Heads.
        frame: Tokens of a frame.
        dim: Features of a head.
        window: Frames that a frame sees, its own included.
        sink: First frames, which every frame sees.
        rolling: If `False`, a frame that would overwrite another is an error.
        dtype: Of keys and values.
        device: Where pages live.

    Raises:
        TypeError: If a size is no integer.
        ValueError: If a size is out of range.

    Example:
        >>> cache = FrameCache(1, 2, 3, 8, window=2, sink=1)
        >>> for _ in range(5):
        ...     q, k, v = torch.randn(3, 1, 2, 3, 8)
        ...     cache.append(k, v)
        ...     out = cache.attend(q)
        >>> cache.frames, cache.kept(), out.shape
        (5, [0, 3, 4], torch.Size([1, 2, 3, 8]))
    """

    def __init__(
        self,
        batch: int,
        heads: int,
        frame: int,
        dim: int,
        *,
        window: int,
        sink: int = 0,
        rolling: bool = True,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        for name, size in (("batch", batch), ("heads", heads), ("dim", dim)):
            check_positive(name, size, integer=True)
        _check_frames(frame, window, sink)
        self.window, self.sink, self.rolling = window, sink, rolling
        slots = window + sink
        self.keys = torch.zeros(batch * slots, heads, frame, dim, dtype=dtype, device=device)
        self.values = torch.zeros_like(self.keys)
        self.pages = torch.arange(batch * slots, dtype=torch.int32, device=device).reshape(batch, slots)
        self.table = torch.full_like(self.pages, -1)
        self.frames = 0
        """Frames seen."""

    def append(self, k: Float[Tensor, "batch heads frame dim"], v: Float[Tensor, "batch heads frame dim"]) -> None:
        """Store the next frame, in the place of the one that no later frame sees.

        Raises:
            TypeError: If dtypes differ from the cache's.
            ValueError: If shapes or devices do, or a cache that does not roll is full.
        """
        shape = (self.table.shape[0], *self.keys.shape[1:])
        check_operand("k", k, shape, self.keys)
        check_operand("v", v, shape, self.keys)
        slots = self.table.shape[1]
        if self.frames >= slots and not self.rolling:
            raise ValueError(f"the cache is full: {self.frames} frames in {slots} slots, and rolling=False")
        slot = self._slot(self.frames)
        pages = self.pages[:, slot]
        self.keys[pages], self.values[pages] = k.detach(), v.detach()
        self.table[:, slot] = pages
        self.frames += 1

    def attend(
        self, q: Float[Tensor, "batch heads queries dim"], *, implementation: str = "auto"
    ) -> Float[Tensor, "batch heads queries dim"]:
        """Attend from queries of the newest frame to all that is kept; errors as in `paged_attention`."""
        if self.frames == 0:
            raise ValueError("the cache is empty: append the frame's keys and values before attending")
        return paged_attention(q, self.keys, self.values, self.table, implementation=implementation)

    def drop(self) -> None:
        """Forget the newest frame, to append it again in another state; the frame it had replaced is gone.

        Raises:
            ValueError: If the cache is empty.
        """
        if self.frames == 0:
            raise ValueError("the cache is empty: there is no frame to drop")
        self.frames -= 1
        self.table[:, self._slot(self.frames)] = -1

    def kept(self) -> list[int]:
        """Numbers of the frames kept."""
        first = max(self.sink, self.frames - self.window)
        return [*range(min(self.sink, self.frames)), *range(first, self.frames)]

    def _slot(self, frame: int) -> int:
        return frame if frame < self.sink else self.sink + (frame - self.sink) % self.window


def _check_head_dim(q: Tensor) -> None:
    if q.shape[-1] > MAX_HEAD_DIM:
        raise ValueError(f"q must have a head dimension of at most {MAX_HEAD_DIM}, got {q.shape[-1]}")


def _check_frames(frame: int, window: int | None, sink: int) -> None:
    check_positive("frame", frame, integer=True)
    if window is not None:
        check_positive("window", window, integer=True)
    if not isinstance(sink, int) or isinstance(sink, bool):
        raise TypeError(f"sink must be an int, got {type(sink).__name__}")
    if sink < 0:
        raise ValueError(f"sink must not be negative, got {sink}")
