"""Online Sinkhorn: the definition, two peers, and the envelope theorem."""

import pytest
import torch
from kernel_checks import DEVICE, DTYPES, TOLERANCE, error, random, run, strided
from torch import Tensor

from flowlib import couplings
from flowlib.kernels import sinkhorn


def clouds(n: int, m: int, dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Two clouds and unequal weights."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    x0, x1 = random(n, dim, dtype=dtype), random(m, dim, dtype=dtype, seed=1) + 0.5
    a, b = (torch.softmax(random(size, dtype=torch.float64, seed=2), 0).to(wide) for size in (n, m))
    return x0, x1, a, b


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "m", "dim"), [(70, 33, 2), (5, 130, 17)])
def test_kernel_equals_reference(n: int, m: int, dim: int, dtype: torch.dtype) -> None:
    """Sizes that do not fill the tiles; a feature block that is not full; gradients of value only."""
    x0, x1, a, b = clouds(n, m, dim, dtype)

    def value(x0: Tensor, x1: Tensor, implementation: str) -> Tensor:
        wide = torch.float64 if x0.dtype == torch.float64 else torch.float32
        out = sinkhorn(
            x0, x1, 8.0, a=a.to(wide), b=b.to(wide), tolerance=1e-4, implementation=implementation, iterations=20
        )
        return torch.cat([out[0][None], out[1].detach(), out[2].detach()])

    kernel = run(value, {"x0": x0, "x1": x1}, "triton")
    reference = run(value, {"x0": x0.double(), "x1": x1.double()}, "reference")
    assert error(kernel["output 0"], reference["output 0"]) < 1e-5  # half types are computed in float32
    for name in ("gradient of x0", "gradient of x1"):
        assert kernel[name].dtype == dtype
        assert error(kernel[name], reference[name]) < TOLERANCE[dtype]


@pytest.mark.parametrize("implementation", ["reference", "triton"])
def test_potentials_are_those_of_the_library_s_online_solver(implementation: str) -> None:
    """Two algorithms, one optimum: the potentials agree up to the constant that moves between f and g."""
    x0, x1, a, b = clouds(40, 30, 3, torch.float64)
    value, f, g = sinkhorn(x0, x1, 2.0, a=a, b=b, tolerance=1e-10, implementation=implementation)
    plan = couplings.sinkhorn_potentials(x0, x1, 2.0, a=a, b=b, tolerance=1e-10)
    assert abs(float(value - plan.value())) < 1e-9
    torch.testing.assert_close(f - f[0], plan.f - plan.f[0], atol=1e-7, rtol=0)
    torch.testing.assert_close(g + f[0], plan.g + plan.f[0], atol=1e-7, rtol=0)


@pytest.mark.parametrize("implementation", ["reference", "triton"])
def test_value_and_gradient_are_those_of_geomloss(implementation: str) -> None:
    """Its cost is half the squared distance and its regularisation blur^2, so value and gradient are halved.

    It stops after a fixed schedule, close to the optimum, where the value is flat and the gradient is not.
    """
    from geomloss import SamplesLoss

    x0, x1, a, b = clouds(30, 20, 2, torch.float64)
    x0.requires_grad_()
    loss = SamplesLoss("sinkhorn", p=2, blur=1.0, scaling=0.999, debias=False, backend="tensorized")
    expected = 2 * loss(a, x0, b, x1)
    (expected_gradient,) = torch.autograd.grad(expected, x0)
    value, _, _ = sinkhorn(x0, x1, 2.0, a=a, b=b, tolerance=1e-9, implementation=implementation)
    (gradient,) = torch.autograd.grad(value, x0)
    assert error(value.detach(), expected.detach()) < 1e-5
    assert error(gradient, expected_gradient) < 5e-3


@pytest.mark.parametrize("implementation", ["reference", "triton"])
def test_gradient_by_the_envelope_theorem_is_that_of_finite_differences(implementation: str) -> None:
    """Finite differences solve again for each moved point; the envelope theorem never does."""
    x0, x1, a, b = clouds(2, 3, 1, torch.float64)

    def value(x0: Tensor, x1: Tensor) -> Tensor:
        return sinkhorn(x0, x1, 8.0, a=a, b=b, tolerance=1e-10, implementation=implementation)[0]

    assert torch.autograd.gradcheck(value, (x0.requires_grad_(), x1.requires_grad_()), atol=1e-5)


def test_translation_moves_the_value_as_the_closed_form_says() -> None:
    """For a cloud and its translate by u the plan of u = 0 stays optimal, and the value grows by |u|^2."""
    x0 = random(20, 2, dtype=torch.float64)
    u = torch.tensor([3.0, -1.0], dtype=torch.float64, device=DEVICE)
    values = [sinkhorn(x0, x0 + s * u, 8.0, tolerance=1e-9, implementation="triton")[0] for s in (0.0, 1.0)]
    assert abs(float(values[1] - values[0] - u @ u)) < 1e-7


def test_a_small_epsilon_and_distant_clouds_do_not_overflow() -> None:
    """Scores are about -10^6, far beyond what exp can hold."""
    x0 = random(20, 2) + 1000
    value, f, g = sinkhorn(x0, x0 + 1, 1.0, tolerance=1e-3, implementation="triton")
    assert all(bool(torch.isfinite(x).all()) for x in (value, f, g))
    far, _, _ = sinkhorn(x0, x0 + 1000, 1.0, tolerance=0.05, implementation="triton")
    assert abs(float(far) / 2e6 - 1) < 1e-4


def test_strides_do_not_matter() -> None:
    x0, x1, a, b = clouds(9, 7, 3, torch.float32)
    plain = sinkhorn(x0, x1, 8.0, a=a, b=b, implementation="triton")
    view = sinkhorn(strided(x0), strided(x1), 8.0, a=a, b=b, implementation="triton")
    assert all(torch.equal(x, y) for x, y in zip(plain, view, strict=True))


@pytest.mark.bad_input
def test_errors_name_the_argument() -> None:
    x0, x1, a, b = clouds(5, 4, 2, torch.float32)
    with pytest.raises(ValueError, match=r"x1 must have shape \[m, 2\]"):
        sinkhorn(x0, x1[:, :1], 1.0)
    with pytest.raises(ValueError, match="epsilon must be positive"):
        sinkhorn(x0, x1, 0.0)
    with pytest.raises(ValueError, match="a must be positive and sum to 1"):
        sinkhorn(x0, x1, 1.0, a=a + 1)
    with pytest.raises(TypeError, match="b must not require a gradient"):
        sinkhorn(x0, x1, 1.0, b=b.requires_grad_())
    with pytest.raises(ValueError, match="did not reach tolerance"):
        sinkhorn(x0, x1, 0.01, iterations=2, implementation="reference")
