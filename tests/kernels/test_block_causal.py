"""Block-causal attention: its definition, a peer, what frames may see, and decoding frame by frame."""

import pytest
import torch
from kernel_checks import DEVICE, DTYPES, TOLERANCE, assert_agrees, error, random, strided
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from flowlib.kernels import FrameCache, block_causal_attention, block_causal_mask, paged_attention, visible_pairs

CASES = [
    (40, {"frame": 7, "window": 2, "sink": 1}),
    (33, {"frame": 4, "window": 3, "sink": 2}),
    (40, {"frame": 50}),
    (37, {"frame": 1, "window": 5}),
    (20, {"frame": 6, "window": 1}),
    (2, {"frame": 3, "window": 2, "sink": 5}),
]


def operands(batch: int, heads: int, tokens: int, dim: int, dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: random(batch, heads, tokens, dim, dtype=dtype, seed=i) for i, name in enumerate("qkv")}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("tokens", "frames"), CASES[:3])
def test_kernel_equals_reference(tokens: int, frames: dict[str, int], dtype: torch.dtype) -> None:
    """Tokens that fill neither tile nor frame; a head dimension that is no power of two."""
    assert_agrees(block_causal_attention, operands(1, 2, tokens, 12, dtype), factor=2, **frames)


@pytest.mark.parametrize(("tokens", "frames"), CASES[3:])
def test_kernel_equals_reference_at_extreme_frames(tokens: int, frames: dict[str, int]) -> None:
    """Frames of one token; windows of one frame; two tokens with more sink frames than there are."""
    assert_agrees(block_causal_attention, operands(1, 1, tokens, 5, torch.float32), **frames)


def test_strides_do_not_matter() -> None:
    """Tokens before heads in memory, as a fused projection gives them, and every axis strided."""
    views = {
        name: x.transpose(1, 2).contiguous().transpose(1, 2) for name, x in operands(2, 2, 9, 8, torch.float32).items()
    }
    assert_agrees(block_causal_attention, views, frame=4, window=2)
    views = {name: strided(x) for name, x in views.items()}
    assert_agrees(block_causal_attention, views, frame=4, window=2)


@pytest.mark.parametrize("implementation", ["reference", "triton"])
@pytest.mark.parametrize(("tokens", "frames"), CASES)
def test_result_is_that_of_torch_with_the_mask(tokens: int, frames: dict[str, int], implementation: str) -> None:
    q, k, v = operands(1, 1, tokens, 8, torch.float64).values()
    mask = block_causal_mask(tokens, **frames, device=DEVICE)
    expected = scaled_dot_product_attention(q, k, v, attn_mask=mask)
    torch.testing.assert_close(block_causal_attention(q, k, v, **frames, implementation=implementation), expected)


@pytest.mark.parametrize(("tokens", "frames"), CASES)
def test_mask_is_the_definition_and_pairs_are_counted(tokens: int, frames: dict[str, int]) -> None:
    mask = block_causal_mask(tokens, **frames)
    size, window, sink = frames["frame"], frames.get("window", tokens), frames.get("sink", 0)
    for i in range(tokens):
        for j in range(tokens):
            f, g = i // size, j // size
            assert bool(mask[i, j]) == (g <= f and (f - g < window or g < sink))
    assert visible_pairs(tokens, **frames) == int(mask.sum())


def test_gradients_are_those_of_finite_differences() -> None:
    leaves = [x.requires_grad_() for x in operands(1, 1, 5, 2, torch.float64).values()]

    def run(*x: Tensor) -> Tensor:
        return block_causal_attention(*x, frame=2, window=1, sink=1, implementation="triton")

    assert torch.autograd.gradcheck(run, leaves)


def test_large_scores_do_not_overflow() -> None:
    """Scores of thousands: the weight of the largest is one."""
    q, k, v = operands(1, 1, 20, 8, torch.float32).values()
    named = {"q": 100 * q, "k": 100 * k, "v": v}
    out = block_causal_attention(**named, frame=20, implementation="triton")
    winner = (q.double() @ k.double().transpose(-1, -2)).argmax(-1)[0, 0]
    torch.testing.assert_close(out[0, 0], v[0, 0, winner], atol=1e-3, rtol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("window", "sink"), [(2, 1), (3, 0), (1, 2)])
def test_decoding_frame_by_frame_is_attention_over_all_frames(window: int, sink: int, dtype: torch.dtype) -> None:
    """The cache holds what the newest frame sees: rows of the full attention, long after pages were overwritten."""
    frame, frames = 5, 6
    q, k, v = operands(2, 2, frame * frames, 8, dtype).values()
    full = block_causal_attention(
        q.double(), k.double(), v.double(), frame=frame, window=window, sink=sink, implementation="reference"
    )
    for implementation in ("reference", "triton") if dtype == torch.float32 else ("triton",):
        cache = FrameCache(2, 2, frame, 8, window=window, sink=sink, dtype=dtype, device=DEVICE)
        for f in range(frames):
            part = slice(f * frame, (f + 1) * frame)
            cache.append(k[:, :, part], v[:, :, part])
            if f in (0, frames - 2, frames - 1):
                out = cache.attend(q[:, :, part], implementation=implementation)
                assert error(out, full[:, :, part]) < TOLERANCE[dtype]
        assert cache.kept() == sorted({*range(sink), *range(frames - window, frames)})


@pytest.mark.parametrize("implementation", ["reference", "triton"])
def test_pages_may_be_shared_and_in_any_order(implementation: str) -> None:
    """Softmax does not know the order of its keys; a sample without pages gets zero."""
    q, keys, values = random(3, 1, 4, 8), random(5, 1, 6, 8, seed=1), random(5, 1, 6, 8, seed=2)
    table = torch.tensor([[4, 0, -1, 2], [-1, 2, 4, 0], [-1, -1, -1, -1]], dtype=torch.int32, device=DEVICE)
    out = paged_attention(q, keys, values, table, implementation=implementation)
    k, v = (pages[[0, 2, 4]].transpose(0, 1).flatten(1, 2)[None] for pages in (keys, values))
    torch.testing.assert_close(out[:2], scaled_dot_product_attention(q[:2], k, v), atol=1e-5, rtol=1e-4)
    assert bool((out[2] == 0).all())


@pytest.mark.bad_input
def test_errors_name_the_argument() -> None:
    named = operands(1, 1, 6, 4, torch.float32)
    with pytest.raises(ValueError, match="k must have shape"):
        block_causal_attention(**named | {"k": named["k"][:, :, :3]}, frame=2)
    with pytest.raises(TypeError, match="v must have the dtype"):
        block_causal_attention(**named | {"v": named["v"].half()}, frame=2)
    with pytest.raises(ValueError, match="frame must be positive"):
        block_causal_attention(**named, frame=0)
    with pytest.raises(ValueError, match="window must be positive, got -1"):
        block_causal_attention(**named, frame=2, window=-1)
    with pytest.raises(ValueError, match="sink must not be negative, got -2"):
        block_causal_attention(**named, frame=2, sink=-2)
    with pytest.raises(TypeError, match="sink must be an int"):
        block_causal_mask(4, frame=2, sink=1.5)
    with pytest.raises(ValueError, match="head dimension of at most 128"):
        block_causal_attention(**operands(1, 1, 2, 129, torch.float32), frame=2)


@pytest.mark.bad_input
def test_errors_of_the_cache() -> None:
    cache = FrameCache(1, 1, 2, 4, window=1, sink=1, rolling=False, device=DEVICE)
    q = random(1, 1, 2, 4)
    with pytest.raises(ValueError, match="cache is empty"):
        cache.attend(q)
    with pytest.raises(ValueError, match="k must have shape"):
        cache.append(q[:, :, :1], q[:, :, :1])
    cache.append(q, q)
    cache.append(q, q)
    with pytest.raises(ValueError, match="cache is full: 2 frames in 2 slots"):
        cache.append(q, q)
    with pytest.raises(ValueError, match="must not require a gradient"):
        cache.attend(q.requires_grad_())
    q, table = q.detach(), cache.table
    with pytest.raises(TypeError, match="table must be int32"):
        paged_attention(q, cache.keys, cache.values, table.long())
    with pytest.raises(ValueError, match="table must have shape"):
        paged_attention(q, cache.keys, cache.values, table[0])
    if DEVICE == "cpu":
        with pytest.raises(ValueError, match="pages below 2"):
            paged_attention(q, cache.keys, cache.values, table + 1)
