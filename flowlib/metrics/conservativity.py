r"""Is a field a gradient, and if not, does it matter for a density?

The tests take plain functions `(x, t, **conditions)`, for example `field.function("score")`. A score, a noise
prediction, a data prediction and the velocity of a Gaussian path are all gradients when they are exact. For a network,
report the head it predicts, or the noise: conversions add multiples of the identity to the Jacobian, so ratios of
different heads cannot be compared.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from flowlib._checks import batch_time, check_positive, check_same, check_state
from flowlib.fields import StateFunction
from flowlib.solvers import divergence

__all__ = [
    "circulation",
    "helmholtz_fit",
    "jacobian_asymmetry",
    "jacobian_norms",
    "line_integral",
    "weighted_divergence",
]


def jacobian_norms(
    f: StateFunction,
    x: Float[Tensor, "batch *event"],
    t: float | Tensor,
    *,
    probes: int | None = None,
    generator: torch.Generator | None = None,
    **conditions: Any,
) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
    r"""The squared norms $\frac14\|J - J^\top\|_F^2$ and $\|J\|_F^2$ of the Jacobian $J = \partial f/\partial x$.

    The first is the part of the second that no gradient has. Without `probes`, $J$ is built by $d$ backward passes.
    With random signs $z$, $E\|(J - J^\top)z\|^2 = \|J - J^\top\|_F^2$ and $E\|Jz\|^2 = \|J\|_F^2$: both estimates are
    unbiased, and a probe costs one product $J^\top z$ and one product $Jz$, whatever $d$.

    Args:
        f: A function `(x, t, **conditions)` acting on each sample alone, twice differentiable by autograd.
        x: States.
        t: Time in [0, 1].
        probes: Number of probes; `None` for the dense Jacobian.
        generator: Random generator of the probes.
        **conditions: Passed to `f`.

    Returns:
        Two tensors `[batch]`: skew part and whole.

    Raises:
        TypeError: If `x` or `t` has the wrong type.
        ValueError: If an argument is invalid, or `f(x, t)` does not depend on `x`.

    Example:
        >>> A = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
        >>> skew, whole = jacobian_norms(lambda x, t: 2 * x + x @ A.T, torch.zeros(1, 2), 0.5)
        >>> skew, whole                                 # J = 2 I + A
        (tensor([2.]), tensor([10.]))
    """
    check_state("x", x)
    t = batch_time(t, x)
    if probes is not None:
        check_positive("probes", probes, integer=True)
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        out = f(x, t, **conditions)
        check_same("f(x, t)", out, "x", x)
        if not out.requires_grad:
            raise ValueError("f(x, t) does not depend on x: it has no Jacobian")
        if probes is None:
            size = x[0].numel()
            unit = torch.eye(size, dtype=x.dtype, device=x.device).reshape(size, 1, *x.shape[1:]).expand(size, *x.shape)
            (rows,) = torch.autograd.grad(out, x, unit, is_grads_batched=True)
            jacobian = rows.flatten(2).transpose(0, 1)  # (B, d, d)
            skew = (jacobian - jacobian.mT) / 2
            return skew.square().sum((1, 2)), jacobian.square().sum((1, 2))
        shape = (probes, *x.shape)
        z = torch.randint(0, 2, shape, generator=generator, device=x.device).to(x.dtype) * 2 - 1
        u = torch.zeros_like(out, requires_grad=True)
        (pulled,) = torch.autograd.grad(out, x, u, create_graph=True)  # J^T u, linear in u: its derivative is J
        (forward,) = torch.autograd.grad(pulled, u, z, is_grads_batched=True, retain_graph=True)  # J z
        (backward,) = torch.autograd.grad(out, x, z, is_grads_batched=True)  # J^T z
    skew = (forward - backward).flatten(2).square().sum(2).mean(0) / 4
    return skew, forward.flatten(2).square().sum(2).mean(0)


def jacobian_asymmetry(
    f: StateFunction,
    x: Float[Tensor, "batch *event"],
    t: float | Tensor,
    *,
    probes: int | None = None,
    generator: torch.Generator | None = None,
    **conditions: Any,
) -> Float[Tensor, " batch"]:
    r"""$\|J - J^\top\|_F/(2\|J\|_F)$ for each state: 0 for a gradient, 1 for a rotation.

    With `probes` this is a ratio of two unbiased estimates: consistent as the number of probes grows, but biased
    for few. To average over states, average the two norms of `jacobian_norms` first and divide then.

    Args:
        f: See `jacobian_norms`.
        x: States.
        t: Time in [0, 1].
        probes: Number of probes; `None` for the dense Jacobian.
        generator: Random generator of the probes.
        **conditions: Passed to `f`.

    Returns:
        Numbers in [0, 1] (with probes, not negative), `[batch]`; NaN where $J = 0$.

    Raises:
        TypeError: As `jacobian_norms`.
        ValueError: As `jacobian_norms`.

    Example:
        >>> A = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
        >>> jacobian_asymmetry(lambda x, t: x @ A.T, torch.zeros(1, 2), 0.5)
        tensor([1.])
    """
    skew, whole = jacobian_norms(f, x, t, probes=probes, generator=generator, **conditions)
    return (skew / whole).sqrt()


def circulation(
    f: StateFunction,
    x: Float[Tensor, "batch *event"],
    t: float | Tensor,
    radius: float,
    *,
    plane: Tensor | None = None,
    points: int = 64,
    normalise: bool = False,
    generator: torch.Generator | None = None,
    **conditions: Any,
) -> Float[Tensor, " batch"]:
    r"""$\oint f\cdot\mathrm dx$ around a circle centred at each state: zero for a gradient.

    The circle runs through $x + \rho(u\cos\theta + w\sin\theta)$ with orthonormal $u, w$. The trapezoid rule is
    spectrally accurate on it. For small circles the value is $\pi\rho^2\,(w^\top Ju - u^\top Jw) + O(\rho^4)$.

    Args:
        f: A function `(x, t, **conditions)`.
        x: Centres.
        t: Time in [0, 1].
        radius: $\rho$, positive.
        plane: Two directions `[2, *event]` for all circles or `[2, batch, *event]`, made orthonormal here; random
            ones for each state if `None`.
        points: Points on the circle, at least three; each is one evaluation of `f` for the whole batch.
        normalise: Divide by the length times the root mean square of $\|f\|$ on the circle; the result lies in [-1, 1].
        generator: Random generator of the planes.
        **conditions: Passed to `f`.

    Returns:
        One number for each state.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is invalid, or the two directions are parallel.

    Example:
        >>> A = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
        >>> circulation(lambda x, t: x @ A.T, torch.zeros(1, 2), 0.5, 1.0, plane=torch.eye(2))     # 2 pi
        tensor([6.2832])
    """
    check_state("x", x)
    check_positive("radius", radius)
    t = batch_time(t, x)
    if points < 3:
        raise ValueError(f"points must be at least 3, got {points}")
    first, second = _orthonormal(x, plane, generator)
    total, squares = x.new_zeros(x.shape[0]), x.new_zeros(x.shape[0])
    for i in range(points):
        angle = 2 * math.pi * i / points
        value = f(x + radius * (math.cos(angle) * first + math.sin(angle) * second), t, **conditions)
        tangent = math.cos(angle) * second - math.sin(angle) * first
        total = total + (value * tangent).flatten(1).sum(1)
        squares = squares + value.flatten(1).square().sum(1)
    length = 2 * math.pi * radius
    return total / (points * squares).sqrt() if normalise else length * total / points


def line_integral(
    f: StateFunction,
    corners: Float[Tensor, "corners batch *event"],
    t: float | Tensor,
    *,
    points: int = 8,
    **conditions: Any,
) -> Float[Tensor, " batch"]:
    r"""$\int f\cdot\mathrm dx$ along the polygon through the corners, for each sample of the batch.

    For $f = \nabla\varphi$ it is $\varphi(\text{last}) - \varphi(\text{first})$, whatever lies between; for a closed
    polygon it is zero. Gauss-Legendre nodes on each edge.

    Args:
        f: A function `(x, t, **conditions)`.
        corners: At least two corners.
        t: Time in [0, 1].
        points: Nodes on an edge, positive.
        **conditions: Passed to `f`.

    Returns:
        One number for each sample.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is invalid.

    Example:
        >>> corners = torch.tensor([[[0.0, 0.0]], [[2.0, 0.0]], [[2.0, 1.0]]])
        >>> line_integral(lambda x, t: x, corners, 0.5)         # |end|^2 / 2
        tensor([2.5000])
    """
    check_positive("points", points, integer=True)
    if corners.ndim < 3 or corners.shape[0] < 2:
        raise ValueError(f"corners must have shape [at least 2, batch, *event], got {list(corners.shape)}")
    check_state("corners", corners)
    t = batch_time(t, corners[0])
    nodes, weights = np.polynomial.legendre.leggauss(points)
    total = corners.new_zeros(corners.shape[1])
    for start, end in itertools.pairwise(corners):
        for node, weight in zip(nodes, weights, strict=True):
            value = f(start + (1 + float(node)) / 2 * (end - start), t, **conditions)
            total = total + float(weight) / 2 * (value * (end - start)).flatten(1).sum(1)
    return total


def weighted_divergence(
    r: StateFunction, score: StateFunction, x: Float[Tensor, "batch *event"], t: float | Tensor, **conditions: Any
) -> Float[Tensor, " batch"]:
    r"""$\frac1p\nabla\!\cdot(p\,r) = \nabla\!\cdot r + r\cdot\nabla\log p$: zero where $r$ leaves the density alone.

    The divergence is exact: one backward pass for each coordinate.

    Args:
        r: The perturbation of the velocity, `(x, t, **conditions)`.
        score: $\nabla\log p_t$, called likewise.
        x: States.
        t: Time in [0, 1].
        **conditions: Passed to both.

    Returns:
        One number for each state.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is invalid.

    Example:
        >>> A = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
        >>> weighted_divergence(lambda x, t: x @ A.T, lambda x, t: -x, torch.ones(1, 2), 0.5)
        tensor([0.])
    """
    check_state("x", x)
    t = batch_time(t, x)
    value, trace = divergence(r, x, t, **conditions)
    return (trace + (value * score(x, t, **conditions)).flatten(1).sum(1)).detach()


def helmholtz_fit(
    r: Float[Tensor, "n d"], x: Float[Tensor, "n d"], basis: Callable[[Tensor], Tensor]
) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]]:
    r"""Split a field's values at samples of $p$ into a gradient and a rest: $r = \nabla\varphi + r_\perp$ in $L^2(p)$.

    $\varphi = \sum_k c_k\varphi_k$ minimises $\sum_i\|r(x_i) - \nabla\varphi(x_i)\|^2$. The normal equations say that
    the rest is orthogonal to every $\nabla\varphi_k$, the weak form of $\nabla\!\cdot(p\,r_\perp) = 0$ for these test
    functions. What the basis cannot express stays in the rest, and $K$ functions fit a share of about $K/(nd)$ of
    pure noise, so take $K \ll nd$.

    Args:
        r: Values of the field at the samples.
        x: Samples of $p$.
        basis: From points `[n, d]` to values `[n, K]` of the test functions, by operations autograd knows.

    Returns:
        Gradient part and rest, both `[n, d]`, with sum `r`.

    Raises:
        TypeError: If dtypes differ.
        ValueError: If shapes differ, or the basis does not return `[n, K]`.

    Example:
        >>> x = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0))
        >>> gradient, rest = helmholtz_fit(3 * x, x, lambda x: x.square().sum(1, keepdim=True))
        >>> bool(rest.abs().max() < 1e-4)
        True
    """
    check_state("x", x)
    check_same("r", r, "x", x)
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        values = basis(x)
        if values.ndim != 2 or values.shape[0] != x.shape[0]:
            raise ValueError(f"basis(x) must have shape [{x.shape[0]}, K], got {list(values.shape)}")
        count = values.shape[1]
        unit = torch.eye(count, dtype=x.dtype, device=x.device)[:, None].expand(count, *values.shape)
        (gradients,) = torch.autograd.grad(values, x, unit, is_grads_batched=True)  # (K, n, d)
    design = gradients.flatten(1).T  # (n d, K)
    coefficients = torch.linalg.pinv(design) @ r.detach().reshape(-1, 1)
    part = (design @ coefficients).reshape(r.shape)
    return part, r.detach() - part


def _orthonormal(x: Tensor, plane: Tensor | None, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Two orthonormal directions for each state, shaped like the states."""
    if plane is None:
        plane = torch.randn((2, *x.shape), generator=generator, dtype=x.dtype, device=x.device)
    elif tuple(plane.shape) == (2, *x.shape[1:]):
        plane = plane[:, None].expand(2, *x.shape)
    elif tuple(plane.shape) != (2, *x.shape):
        raise ValueError(f"plane must have shape {[2, *x.shape[1:]]} or {[2, *x.shape]}, got {list(plane.shape)}")
    if x[0].numel() < 2:
        raise ValueError("a circle needs states of at least two entries")
    check_same("plane", plane[0], "x", x)
    first, second = plane.flatten(2)
    first = first / first.norm(dim=1, keepdim=True)
    rest = second - (second * first).sum(1, keepdim=True) * first
    if not bool((rest.norm(dim=1) > 1e-6 * second.norm(dim=1)).all()):
        raise ValueError("plane must hold two directions that are not parallel")
    second = rest / rest.norm(dim=1, keepdim=True)
    return first.reshape(x.shape), second.reshape(x.shape)
