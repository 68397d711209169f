"""Measurements are what their matrix says: adjoints, pseudo-inverses, projections and proximal points, exactly."""

import pytest
import torch
from torch import Tensor

from flowlib.control import measurements
from flowlib.control.measurements import Measurement

EVENT = (2, 6, 8)


def gaussian_kernel(size: int = 5, width: float = 1.0) -> Tensor:
    axis = torch.arange(size, dtype=torch.float64) - size // 2
    line = torch.exp(-(axis**2) / (2 * width**2))
    return (line[:, None] * line) / line.sum() ** 2


def make(name: str) -> Measurement:
    generator = torch.Generator().manual_seed(0)
    if name == "mask":
        return measurements.mask(torch.rand(EVENT, generator=generator) < 0.4)
    if name == "blur":
        return measurements.blur(gaussian_kernel(), EVENT)
    if name == "lossy blur":
        return measurements.blur(torch.full((1, 2), 0.5, dtype=torch.float64), EVENT)  # loses the highest frequency
    if name == "downsample":
        return measurements.downsample(2, EVENT)
    return measurements.radial_kspace(3, EVENT)


NAMES = ["mask", "blur", "lossy blur", "downsample", "k-space"]


def draw(m: Measurement, n: int = 3, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, *m.event, generator=generator, dtype=torch.float64)
    y = torch.randn(n, *m.shape, generator=generator, dtype=torch.complex128 if m.complex else torch.float64)
    return x, y


@pytest.mark.parametrize("name", NAMES)
def test_adjoint_moves_across_the_inner_product(name: str) -> None:
    m = make(name)
    x, y = draw(m)
    left = (m.flat(m(x)) * m.flat(y)).sum(1)
    right = (x * m.adjoint(y)).flatten(1).sum(1)
    torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_matrix_is_the_operator(name: str) -> None:
    m = make(name)
    x, y = draw(m)
    torch.testing.assert_close(x.flatten(1) @ m.matrix().mT, m.flat(m(x)), rtol=0, atol=1e-12)
    torch.testing.assert_close(m.flat(y) @ m.matrix(), m.adjoint(y).flatten(1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_pseudo_inverse_is_that_of_the_matrix(name: str) -> None:
    m = make(name)
    _, y = draw(m)
    expected = m.flat(y) @ torch.linalg.pinv(m.matrix()).mT
    torch.testing.assert_close(m.pseudo_inverse(y).flatten(1), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_projection_explains_the_data_and_moves_at_right_angles_to_the_null_space(name: str) -> None:
    m = make(name)
    (x, _), (other, _) = draw(m), draw(m, seed=2)
    y = m(other)
    z = m.project(x, y)
    torch.testing.assert_close(m.flat(m(z)), m.flat(y), rtol=0, atol=1e-10)
    null = other - m.pseudo_inverse(m(other))  # A null = 0
    torch.testing.assert_close(((z - x) * null).flatten(1).sum(1), torch.zeros(3, dtype=x.dtype), rtol=0, atol=1e-9)
    torch.testing.assert_close(m.project(z, y), z, rtol=0, atol=1e-10)


@pytest.mark.parametrize("weight", [0.1, 3.0, 1e6])
@pytest.mark.parametrize("name", NAMES)
def test_proximal_point_solves_the_normal_equations(name: str, weight: float) -> None:
    m = make(name)
    x, y = draw(m)
    matrix = m.matrix()
    system = weight * matrix.mT @ matrix + torch.eye(matrix.shape[1], dtype=x.dtype)
    expected = torch.linalg.solve(system, (weight * m.flat(y) @ matrix + x.flatten(1)).mT).mT
    torch.testing.assert_close(m.prox(x, y, weight).flatten(1), expected, rtol=0, atol=1e-8)


def test_blur_is_a_periodic_convolution() -> None:
    """Against shifts added by hand, with an asymmetric kernel."""
    generator = torch.Generator().manual_seed(0)
    kernel = torch.randn(3, 2, generator=generator, dtype=torch.float64)
    x = torch.randn(2, *EVENT, generator=generator, dtype=torch.float64)
    by_hand = sum(
        (kernel[i, j] * x.roll((i - 1, j - 1), (-2, -1)) for i in range(3) for j in range(2)), torch.zeros_like(x)
    )
    torch.testing.assert_close(measurements.blur(kernel, EVENT)(x), by_hand, rtol=0, atol=1e-12)


def test_downsampling_is_average_pooling() -> None:
    x = torch.randn(2, *EVENT, dtype=torch.float64)
    torch.testing.assert_close(measurements.downsample(2, EVENT)(x), torch.nn.functional.avg_pool2d(x, 2))


def test_lines_of_k_space_pass_the_centre_and_come_in_conjugate_pairs() -> None:
    """One line sees the row of horizontal frequencies, all lines see everything, and A'A is a projection."""
    x = torch.randn(2, 8, 8, dtype=torch.float64)
    one = measurements.radial_kspace(1, (8, 8))
    torch.testing.assert_close(one(x), torch.fft.fft(x.sum(1)) / 8)
    every = measurements.radial_kspace(64, (8, 8))
    assert every.shape[0] > 55
    for lines in (1, 2, 5):
        m = measurements.radial_kspace(lines, (8, 8))
        gram = m.matrix().mT @ m.matrix()
        torch.testing.assert_close(gram @ gram, gram, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_code_follows_float32_and_lets_gradients_through(name: str) -> None:
    m = make(name)
    x, y = (value.to(torch.complex64 if value.is_complex() else torch.float32) for value in draw(m))
    x.requires_grad_()
    assert m(x).dtype == (torch.complex64 if m.complex else torch.float32)
    assert m.project(x, y).dtype == torch.float32
    (gradient,) = torch.autograd.grad(m.flat(m(x)).square().sum() / 2, x)
    torch.testing.assert_close(gradient, m.adjoint(m(x)), rtol=1e-4, atol=1e-5)


def test_one_measurement_serves_many_images() -> None:
    m = make("downsample")
    x, y = draw(m)
    torch.testing.assert_close(m.prox(x, y[:1], 2.0), m.prox(x, y[:1].expand_as(y), 2.0))


@pytest.mark.bad_input
def test_bad_input() -> None:
    m = make("mask")
    x, y = draw(m)
    with pytest.raises(ValueError, match=r"x must have shape \['batch', 2, 6, 8\]"):
        m(x[:, :1])
    with pytest.raises(ValueError, match="y must have shape"):
        m.adjoint(y[:, :1])
    with pytest.raises(ValueError, match="as many as x"):
        m.project(x, y[:2])
    with pytest.raises(TypeError, match="matching dtypes"):
        m.project(x.float(), y)
    with pytest.raises(TypeError, match="y must be real"):
        m.adjoint(y.to(torch.complex128))
    with pytest.raises(TypeError, match="y must be complex"):
        make("k-space").adjoint(torch.zeros(1, 2, 20))
    with pytest.raises(ValueError, match="weight must be positive"):
        m.prox(x, y, 0.0)
    with pytest.raises(ValueError, match="limit of a hard constraint"):
        m.prox(x, y, float("inf"))
    with pytest.raises(TypeError, match="keep must be boolean"):
        measurements.mask(torch.ones(2, 2))
    with pytest.raises(ValueError, match="at least one pixel"):
        measurements.mask(torch.zeros(2, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="does not fit"):
        measurements.blur(torch.ones(9, 1), EVENT)
    with pytest.raises(ValueError, match="not all zero"):
        measurements.blur(torch.zeros(3, 3), EVENT)
    with pytest.raises(ValueError, match="factor must divide"):
        measurements.downsample(4, EVENT)
    with pytest.raises(ValueError, match="event must be a shape"):
        measurements.radial_kspace(3, (8,))
    with pytest.raises(ValueError, match="lines must be positive"):
        measurements.radial_kspace(0, EVENT)
