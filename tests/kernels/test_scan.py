"""The selective scan equals its recurrence, forward and backward."""

import pytest
import torch
from kernel_checks import DTYPES, assert_agrees, random, strided
from torch import Tensor

from flowlib.kernels import selective_scan


def operands(batch: int, tokens: int, channels: int, states: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """A model's values: positive steps, decaying states."""
    return {
        "u": random(batch, tokens, channels, dtype=dtype),
        "delta": torch.nn.functional.softplus(random(batch, tokens, channels, seed=1) - 1).to(dtype),
        "a": -random(channels, states, seed=2).exp().to(dtype),
        "b": random(batch, tokens, states, dtype=dtype, seed=3),
        "c": random(batch, tokens, states, dtype=dtype, seed=4),
        "d": random(channels, dtype=dtype, seed=5),
    }


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("batch", "tokens", "channels", "states"), [(2, 37, 5, 3), (1, 1, 2, 1), (1, 64, 18, 2), (1, 40, 3, 16)]
)
def test_kernel_equals_reference(batch: int, tokens: int, channels: int, states: int, dtype: torch.dtype) -> None:
    """Tokens, channels and states that do not fill their tiles; several chunks and several blocks."""
    assert_agrees(selective_scan, operands(batch, tokens, channels, states, dtype), factor=2)


def test_strides_do_not_matter() -> None:
    views = {name: strided(x) for name, x in operands(2, 9, 5, 3, torch.float32).items()}
    assert_agrees(selective_scan, views)


def test_gradients_are_those_of_finite_differences() -> None:
    named = operands(1, 3, 2, 2, torch.float64)
    leaves = [x.requires_grad_() for x in named.values()]
    assert torch.autograd.gradcheck(lambda *x: selective_scan(*x, implementation="triton"), leaves)


@pytest.mark.parametrize("implementation", ["reference", "triton"])
def test_constant_coefficients_give_a_geometric_series(implementation: str) -> None:
    """With u = B = C = 1 and one step size, y_t = Delta (1 - r^t) / (1 - r) + D, where r = exp(Delta A)."""
    ones = torch.ones_like(random(1, 50, 1, dtype=torch.float64))
    step, rate = 0.1, -2.0
    y = selective_scan(ones, step * ones, rate * ones[0, :1], ones, ones, 3 * ones[0, 0], implementation=implementation)
    r = torch.exp(torch.tensor(step * rate, dtype=torch.float64))
    t = torch.arange(1, 51, dtype=torch.float64, device=y.device)
    torch.testing.assert_close(y.flatten(), step * (1 - r**t) / (1 - r) + 3)


def test_the_future_does_not_reach_the_past() -> None:
    named = operands(1, 40, 3, 2, torch.float64)
    u = named["u"].requires_grad_()
    y = selective_scan(**named, implementation="triton")
    y[:, 20].sum().backward()
    assert u.grad is not None
    assert bool((u.grad[:, 21:] == 0).all())
    assert bool((u.grad[:, :21] != 0).all())


def test_steps_so_large_that_decay_underflows_are_exact() -> None:
    """exp(Delta A) is zero in float32: the state is the last input alone, gradients stay finite."""
    named = operands(1, 40, 3, 2, torch.float32)
    named["delta"] = named["delta"] + 200
    assert_agrees(selective_scan, named)


@pytest.mark.bad_input
def test_errors_name_the_argument() -> None:
    named = operands(1, 4, 3, 2, torch.float32)
    with pytest.raises(ValueError, match="delta must have shape"):
        selective_scan(**named | {"delta": named["delta"][:, :2]})
    with pytest.raises(ValueError, match="a must have shape"):
        selective_scan(**named | {"a": named["a"].T})
    with pytest.raises(TypeError, match="c must have the dtype"):
        selective_scan(**named | {"c": named["c"].half()})
    with pytest.raises(ValueError, match="at most 64 states"):
        selective_scan(**operands(1, 2, 3, 65, torch.float32))
