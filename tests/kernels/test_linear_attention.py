"""Chunkwise gated linear attention equals its recurrence, forward and backward."""

import pytest
import torch
from kernel_checks import DTYPES, assert_agrees, random, strided
from torch import Tensor

from flowlib.kernels import gated_linear_attention


def operands(
    batch: int, heads: int, tokens: int, keys: int, values: int, dtype: torch.dtype, decay: float = 1.0
) -> dict[str, Tensor]:
    """Random tensors; decays between none and `exp(-decay)` a token, an initial state."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    rates = torch.sigmoid(random(batch, heads, tokens, keys, dtype=torch.float64, seed=3))
    return {
        "q": random(batch, heads, tokens, keys, dtype=dtype),
        "k": random(batch, heads, tokens, keys, dtype=dtype, seed=1),
        "v": random(batch, heads, tokens, values, dtype=dtype, seed=2),
        "log_decay": (-decay * rates).to(wide),
        "state": random(batch, heads, keys, values, dtype=wide, seed=4),
    }


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("batch", "heads", "tokens", "keys", "values"), [(1, 2, 70, 5, 18), (2, 1, 20, 16, 3), (1, 1, 1, 1, 1)]
)
def test_kernel_equals_reference(
    batch: int, heads: int, tokens: int, keys: int, values: int, dtype: torch.dtype
) -> None:
    """Sizes that fill neither chunks nor blocks; several chunks; a state that enters and one that leaves."""
    assert_agrees(gated_linear_attention, operands(batch, heads, tokens, keys, values, dtype), factor=2)


def test_values_wider_than_a_block() -> None:
    assert_agrees(gated_linear_attention, operands(1, 1, 5, 3, 70, torch.float32))


@pytest.mark.parametrize("decay", [0.0, 0.01, 30.0])
def test_no_decay_is_too_weak_or_too_strong(decay: float) -> None:
    """exp(-30) a token: over a chunk 10^-800, whose inverse no format holds; the levels never form it."""
    assert_agrees(gated_linear_attention, operands(1, 1, 40, 4, 4, torch.float32, decay), factor=2)


def test_strides_do_not_matter() -> None:
    """Tokens before heads in memory, as other libraries have them, and every axis strided."""
    plain = operands(2, 2, 9, 4, 5, torch.float32)
    views = {name: x.transpose(1, 2).contiguous().transpose(1, 2) for name, x in plain.items()}
    assert_agrees(gated_linear_attention, views)
    assert_agrees(gated_linear_attention, {name: strided(x) for name, x in plain.items()})


def test_gradients_are_those_of_finite_differences() -> None:
    """Through outputs and the last state, to every argument."""
    named = operands(1, 1, 2, 2, 1, torch.float64)
    leaves = [x.requires_grad_() for x in named.values()]
    assert torch.autograd.gradcheck(lambda *x: gated_linear_attention(*x, implementation="triton"), leaves)


@pytest.mark.parametrize("implementation", ["reference", "triton"])
def test_a_sequence_may_be_cut_anywhere(implementation: str) -> None:
    """The state carries all that the second part needs of the first."""
    named = operands(1, 2, 30, 4, 6, torch.float64)
    state = named.pop("state")
    whole, last = gated_linear_attention(**named, state=state, implementation=implementation)
    first = {name: x[:, :, :11] for name, x in named.items()}
    second = {name: x[:, :, 11:] for name, x in named.items()}
    left, state = gated_linear_attention(**first, state=state, implementation=implementation)
    right, state = gated_linear_attention(**second, state=state, implementation=implementation)
    torch.testing.assert_close(torch.cat([left, right], 2), whole)
    torch.testing.assert_close(state, last)


def test_without_decay_it_is_linear_attention() -> None:
    """o = K^(-1/2) tril(q k^T) v, from a zero state."""
    named = operands(1, 2, 40, 8, 5, torch.float64, decay=0.0) | {"state": None}
    o, _ = gated_linear_attention(**named, implementation="triton")
    expected = (named["q"] @ named["k"].transpose(-1, -2)).tril() @ named["v"] / 8**0.5
    torch.testing.assert_close(o, expected)


def test_one_decay_for_all_features_is_a_decayed_mask() -> None:
    """With log decay g everywhere, o_i = K^(-1/2) sum_j e^(g (i - j)) (q_i k_j) v_j."""
    named = operands(1, 1, 20, 4, 3, torch.float64) | {"state": None}
    rate = -0.3
    named["log_decay"] = torch.full_like(named["log_decay"], rate)
    o, _ = gated_linear_attention(**named, implementation="triton")
    t = torch.arange(20, dtype=torch.float64, device=o.device)
    mask = torch.exp(rate * (t[:, None] - t)).tril()
    torch.testing.assert_close(o, (named["q"] @ named["k"].transpose(-1, -2) * mask) @ named["v"] / 2)


@pytest.mark.bad_input
def test_errors_name_the_argument() -> None:
    named = operands(1, 1, 4, 3, 2, torch.float32)
    with pytest.raises(ValueError, match="k must have shape"):
        gated_linear_attention(**named | {"k": named["k"][..., :2]})
    with pytest.raises(ValueError, match="v must have shape"):
        gated_linear_attention(**named | {"v": named["v"][:, :, :2]})
    with pytest.raises(TypeError, match="log_decay must have the dtype"):
        gated_linear_attention(**named | {"log_decay": named["log_decay"].half()})
    with pytest.raises(ValueError, match="state must have shape"):
        gated_linear_attention(**named | {"state": named["state"][:, 0]})
    with pytest.raises(ValueError, match="at most 128 features, got 129"):
        gated_linear_attention(**operands(1, 1, 2, 129, 2, torch.float32))
    if named["q"].device.type == "cpu":
        with pytest.raises(ValueError, match="log_decay must be at most 0"):
            gated_linear_attention(**named | {"log_decay": -named["log_decay"]})
