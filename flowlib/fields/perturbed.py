"""A field with a known error, and errors that no density can see."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flowlib._checks import check_same
from flowlib.fields.base import Field, StateFunction
from flowlib.paths import Prediction

__all__ = ["PerturbedField", "swirl"]


class PerturbedField(Field):
    r"""A field whose velocity is $\hat v = v + r$.

    The other three predictions are converted from $\hat v$, so they carry the same error in their own units:
    $\hat s = s + \frac{\alpha}{\sigma D}r$ and so on. A sampler of the ODE sees $r$; `solvers.sde` takes velocity and
    score from one evaluation and therefore sees $(1 + \frac{\eta^2}{2}\frac{\alpha}{\sigma D})\,r$. If
    $\nabla\!\cdot(p_t r) = 0$, both keep $p_t$.

    Args:
        field: The field that is perturbed.
        perturbation: $r$, a function `(x, t)` to vectors shaped like `x`. It gets no conditions. Other shapes are
            refused with a `ValueError`, other dtypes with a `TypeError`, when the field is evaluated.

    Example:
        >>> from flowlib import data, fields, paths
        >>> exact = fields.MixtureField(data.toys.eight_gaussians(), paths.linear())
        >>> shifted = PerturbedField(exact, lambda x, t: torch.ones_like(x))
        >>> x = torch.zeros(3, 2)
        >>> shifted.velocity(x, 0.5) - exact.velocity(x, 0.5)
        tensor([[1., 1.],
                [1., 1.],
                [1., 1.]])
    """

    def __init__(self, field: Field, perturbation: StateFunction) -> None:
        self.field = field
        self.perturbation = perturbation
        self.path = field.path
        self.predicts = "velocity"
        self._velocity = field.function("velocity")

    def evaluate(self, x: Tensor, t: Tensor, **conditions: Any) -> Tensor:
        r = self.perturbation(x, t)
        check_same("perturbation(x, t)", r, "x", x)
        out: Tensor = self._velocity(x, t, **conditions) + r
        return out

    def evaluations(self, t: Tensor) -> int:
        """Those of the original field."""
        return self.field.evaluations(t)

    def check_times(self, kind: Prediction, times: Tensor) -> None:
        """Both the velocity of the original field and the conversion from it must exist."""
        self.field.check_times("velocity", times)
        super().check_times(kind, times)


def swirl(score: StateFunction, A: Tensor | Callable[[Tensor, Tensor], Tensor]) -> StateFunction:
    r"""A perturbation that leaves the density of a score alone: $r = \frac1p\nabla\!\cdot(pA)$, $A^\top = -A$.

    Row by row, $r_i = \sum_j\big(A_{ij}s_j + \partial_jA_{ij}\big)$; for a constant matrix it is $r = As$. Then
    $\nabla\!\cdot(p\,r) = \sum_{ij}\partial_i\partial_j(pA_{ij}) = 0$, because second derivatives are symmetric and $A$
    is not: at every time, $p_t$ gains as much as it loses everywhere.

    Args:
        score: $\nabla\log p_t$ as a function `(x, t)` of states `[batch, d]`, for example `field.function("score")`.
        A: An antisymmetric matrix `[d, d]`, or a function `(x, t)` to such matrices `[batch, d, d]`, acting on each
            state alone, by operations autograd knows; it may depend on the time alone.

    Returns:
        The function `(x, t) -> r`. It can be differentiated in `x`, and runs under `torch.no_grad()`.

    Raises:
        ValueError: If `A`, or a value of it, is not antisymmetric or has the wrong shape.

    Example:
        >>> r = swirl(lambda x, t: -x, torch.tensor([[0.0, -1.0], [1.0, 0.0]]))
        >>> r(torch.tensor([[1.0, 0.0]]), torch.tensor(0.5))
        tensor([[ 0., -1.]])
    """
    if isinstance(A, Tensor):
        matrix = A
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise ValueError(f"A must be a square matrix, got shape {list(matrix.shape)}")
        _check_antisymmetric(matrix)

        def constant(x: Tensor, t: Tensor) -> Tensor:
            return score(x, t) @ matrix.mT

        return constant
    varying = A

    def general(x: Tensor, t: Tensor) -> Tensor:
        record = torch.is_grad_enabled()
        with torch.enable_grad():
            place = x if x.requires_grad else x.detach().requires_grad_()
            values = varying(place, t)  # (B, d, d)
            size = x.shape[1]
            if values.shape != (x.shape[0], size, size):
                raise ValueError(f"A(x, t) must have shape {[x.shape[0], size, size]}, got {list(values.shape)}")
            _check_antisymmetric(values.detach())
            if not values.requires_grad:  # a matrix of the time alone has no slopes
                return torch.einsum("bij,bj->bi", values, score(x, t))
            unit = torch.eye(size * size, dtype=x.dtype, device=x.device).reshape(-1, 1, size, size)
            unit = unit.expand(-1, x.shape[0], size, size)
            (slopes,) = torch.autograd.grad(values, place, unit, is_grads_batched=True, create_graph=record)
        slopes = slopes.reshape(size, size, x.shape[0], size)  # (i, j, B, k): d A_ij / d x_k
        flux = torch.einsum("bij,bj->bi", values, score(x, t)) + torch.einsum("ijbj->bi", slopes)
        return flux if record else flux.detach()

    return general


def _check_antisymmetric(matrix: Tensor) -> None:
    size = float(matrix.abs().max())
    gap = float((matrix + matrix.mT).abs().max())
    if not gap <= 1e-5 * size:
        raise ValueError(f"A must be antisymmetric, A^T = -A; the largest entry of A + A^T is {gap:.3g}")
