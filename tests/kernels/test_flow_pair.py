"""The fused pair: Philox against known answers, the same noise everywhere, and the definition of path and target."""

import math

import pytest
import torch
from kernel_checks import DEVICE, DTYPES, TOLERANCE, assert_agrees, error, random, strided
from scipy import stats
from torch import Tensor

from flowlib import paths
from flowlib.kernels import flow_matching_pair, philox, philox_normal

# Random123, tests/kat_vectors: "philox4x32 10", counter, key, result
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


def operands(shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, Tensor]:
    """Data, and coefficients of a cosine path at random times."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    t = torch.linspace(0.1, 0.8, shape[0], dtype=wide, device=DEVICE)
    angle = math.pi / 2 * t
    rate = math.pi / 2
    coefficients = (angle.sin(), angle.cos(), rate * angle.cos(), -rate * angle.sin())
    names = ("alpha", "sigma", "alpha_dot", "sigma_dot")
    return {"x1": random(*shape, dtype=dtype), **dict(zip(names, coefficients, strict=True))}


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN)
def test_philox_gives_the_known_answers(counter: str, key: str, result: str) -> None:
    k0, k1 = words(key)
    assert philox(torch.tensor(words(counter)), (k0, k1)).tolist() == words(result)


def pair(operands: dict[str, Tensor], implementation: str, seed: int = 5, step: int = 0) -> tuple[Tensor, Tensor]:
    return flow_matching_pair(**operands, seed=seed, step=step, implementation=implementation)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 1), (3, 7), (2, 2, 3, 5), (1, 1030)])
def test_kernel_equals_reference(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Sizes that are no multiple of four or of the tile; gradients too."""
    named = operands(shape, dtype)
    measured = pair(named, "triton")
    expected = pair({name: x.double() for name, x in named.items()}, "reference")
    for a, b in zip(measured, expected, strict=True):
        assert a.dtype == dtype
        assert error(a, b) < TOLERANCE[dtype]

    def of_data(x1: Tensor, implementation: str) -> tuple[Tensor, Tensor]:
        wide = torch.float64 if x1.dtype == torch.float64 else torch.float32
        return pair({name: x.to(wide) for name, x in named.items()} | {"x1": x1}, implementation)

    assert_agrees(of_data, {"x1": named["x1"]})


@pytest.mark.parametrize("seed", [0, 7, 2**32 + 1, 2**64 - 1])
@pytest.mark.parametrize("step", [0, 2**31, 2**63 + 5])
def test_kernel_and_reference_draw_the_same_noise(seed: int, step: int) -> None:
    """With alpha 0 and sigma 1 the kernel returns its noise; another stream would differ by about one."""
    x1 = random(2, 9)
    one, zero = torch.ones(2, device=DEVICE), torch.zeros(2, device=DEVICE)
    x0, _ = flow_matching_pair(x1, zero, one, one, zero, seed=seed, step=step, implementation="triton")
    assert error(x0, philox_normal((2, 9), seed=seed, step=step, dtype=torch.float64, device=DEVICE)) < 1e-6


def test_noise_depends_on_seed_step_and_sample_but_not_on_the_batch() -> None:
    x0 = philox_normal((3, 8), seed=1, step=4)
    assert torch.equal(x0[:2], philox_normal((2, 8), seed=1, step=4))
    assert torch.equal(x0, philox_normal((3, 2, 4), seed=1, step=4).flatten(1))
    others = [philox_normal((3, 8), seed=2, step=4), philox_normal((3, 8), seed=1, step=5), x0.roll(1, 0)]
    assert all((x0 - other).abs().min() > 0 for other in others)


def test_noise_is_standard_normal_and_its_neighbours_are_independent() -> None:
    """200 000 numbers: Kolmogorov and Smirnov's test, and correlations within four standard errors."""
    x0 = philox_normal((50, 4000), seed=3, dtype=torch.float64)
    assert stats.kstest(x0.flatten().numpy(), "norm").pvalue > 1e-3
    for shift, axis in [(1, 1), (2, 1), (3, 1), (1, 0)]:
        assert abs(float((x0 * x0.roll(shift, axis)).mean())) < 4 / math.sqrt(x0.numel())
        assert abs(float((x0**2 * x0.roll(shift, axis) ** 2).mean()) - 1) < 4 * math.sqrt(8 / x0.numel())


def test_pair_is_that_of_the_library_s_path() -> None:
    path = paths.cosine()
    t = torch.linspace(0.1, 0.8, 3, dtype=torch.float64, device=DEVICE)
    schedule = path.schedule
    coefficients = (schedule.alpha(t), schedule.sigma(t), schedule.alpha_dot(t), schedule.sigma_dot(t))
    x1 = random(3, 2, 5, dtype=torch.float64)
    x0 = philox_normal((3, 2, 5), seed=9, step=2, dtype=torch.float64, device=DEVICE)
    x_t, v = flow_matching_pair(x1, *coefficients, seed=9, step=2, implementation="triton")
    torch.testing.assert_close(x_t, path.interpolate(x0, x1, t))
    torch.testing.assert_close(v, path.target("velocity", x0, x1, t))


def test_strides_do_not_matter() -> None:
    named = operands((2, 3, 5), torch.float32)
    plain, view = pair(named, "triton"), pair(named | {"x1": strided(named["x1"])}, "triton")
    assert torch.equal(plain[0], view[0])
    assert torch.equal(plain[1], view[1])


def test_gradient_is_that_of_finite_differences() -> None:
    named = operands((2, 3), torch.float64)
    x1 = named.pop("x1").requires_grad_()
    assert torch.autograd.gradcheck(lambda x1: pair({"x1": x1, **named}, "triton"), x1)


@pytest.mark.bad_input
def test_errors_name_the_argument() -> None:
    named = operands((2, 3), torch.float32)
    with pytest.raises(ValueError, match="x1 must have shape"):
        pair(named | {"x1": random(2)}, "auto")
    with pytest.raises(ValueError, match="sigma must have shape"):
        pair(named | {"sigma": random(3)}, "auto")
    with pytest.raises(TypeError, match="alpha must have the dtype"):
        pair(named | {"alpha": named["alpha"].half()}, "auto")
    with pytest.raises(TypeError, match="alpha_dot must not require a gradient"):
        pair(named | {"alpha_dot": named["alpha_dot"].requires_grad_()}, "auto")
    with pytest.raises(ValueError, match=r"seed must lie in \[0, 2\*\*64\), got -1"):
        pair(operands((2, 3), torch.float32), "auto", seed=-1)
    with pytest.raises(TypeError, match="step must be an int"):
        philox_normal((2, 3), seed=0, step=1.5)
