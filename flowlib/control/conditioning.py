r"""Sampling given a measurement with an unconditional score (Song et al., 2021, section 5).

By Bayes' rule the score of the conditional law is a sum, and the conditional law has a reverse SDE of its own:

$$ \nabla_x\log p_t(x \mid y) = \nabla_x\log p_t(x) + \nabla_x\log p_t(y \mid x) . $$

For a Gaussian mixture and a linear measurement with Gaussian noise nothing has to be added: the posterior is again a
mixture (`GaussianMixture.condition`) and has an exact field.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flowlib._checks import check_state
from flowlib.fields import Field, FunctionField, StateFunction
from flowlib.fields.base import check_field
from flowlib.paths import GaussianPath

__all__ = ["conditioned", "replacement"]


class _ConditionedField(FunctionField):
    """The field of `conditioned`: the sum of a score and a gradient."""

    def __init__(self, field: Field, score: StateFunction) -> None:
        super().__init__(score, field.path, predicts="score")
        self.field = field

    def evaluations(self, t: Tensor) -> int:
        """Those of the unconditional field; the likelihood is not counted."""
        return self.field.evaluations(t)


def conditioned(field: Field, log_likelihood: Callable[[Tensor, Tensor], Tensor]) -> FunctionField:
    r"""The field of the conditional law: adds $\nabla_x\log p_t(y \mid x)$ to the score.

    With the logarithm of a noise-aware classifier's probability this is classifier guidance; with the exact
    likelihood of a mixture it is the exact conditional field.

    Args:
        field: The unconditional field.
        log_likelihood: $\log p_t(y \mid x)$ up to a constant: from states `[batch, *event]` and a time, 0-d or
            `[batch]`, to `[batch]`, differentiable in the state by autograd, each row alone.

    Returns:
        A field on the same path that predicts the score; its conditions go to `field`, and a call counts as many
        evaluations as one of `field`.

    Raises:
        TypeError: If `field` is not a field.
        ValueError: When the score is asked for, if `log_likelihood` does not return one value for each state.

    Example:
        >>> from flowlib import data, fields, paths
        >>> field = fields.MixtureField(data.toys.eight_gaussians(), paths.vp())
        >>> pulled = conditioned(field, lambda x, t: -x.square().sum(1) / 2)
        >>> x = torch.ones(1, 2)
        >>> bool(torch.allclose(pulled.score(x, 0.5), field.score(x, 0.5) - x))
        True
    """
    check_field("field", field, "its score is")
    score = field.function("score")

    def conditional_score(x: Tensor, t: Tensor, **conditions: Any) -> Tensor:
        with torch.enable_grad():
            at = x.detach().requires_grad_()
            values = log_likelihood(at, t)
            if values.shape != x.shape[:1]:
                raise ValueError(f"log_likelihood must return shape [{x.shape[0]}], got {list(values.shape)}")
            (gradient,) = torch.autograd.grad(values.sum(), at)
        return score(x, t, **conditions) + gradient

    return _ConditionedField(field, conditional_score)


def replacement(
    known: Tensor,
    mask: Tensor,
    path: GaussianPath,
    *,
    basis: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Callable[[int, Tensor, Tensor], Tensor]:
    r"""A solver callback that overwrites the known part of a state with a draw of it at the state's noise level.

    In the axes of an orthonormal basis $Q$ (rows) the known coordinates of $Qx$ become those of
    $Q(\alpha_t x_1 + \sigma_t\xi)$ with the clean `known` $= x_1$ and fresh noise. The identity gives inpainting;
    a basis whose first axes are averages gives colourisation (Song et al., 2021, appendix I). The rest of the
    state is not told what the fresh noise was, so the result is *not* an exact draw from the posterior.

    Args:
        known: Clean data, `[batch, *event]` or `[1, *event]`; only its known part matters.
        mask: True where a coordinate is known: of the event's shape, or `[d]` with `basis`.
        path: The path.
        basis: $Q$, `[d, d]`, orthonormal rows over the flattened state; the identity if `None`.
        generator: Random generator.

    Returns:
        A function `(i, t, x)` for the argument `callback` of `solvers.ode` and `solvers.predictor_corrector`. It
        raises if the states do not fit `known`.

    Raises:
        TypeError: If `known` is not floating point or `mask` not boolean.
        ValueError: If shapes disagree, an entry is not finite, or the basis is not orthonormal.

    Example:
        >>> from flowlib import paths
        >>> mask = torch.tensor([True, False])
        >>> replace = replacement(torch.full((1, 2), 3.0), mask, paths.linear())
        >>> replace(0, torch.tensor(1.0), torch.zeros(1, 2))     # no noise is left at t = 1
        tensor([[3., 0.]])
    """
    check_state("known", known)
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be boolean, got {mask.dtype}")
    event, size = tuple(known.shape[1:]), known[0].numel()
    if tuple(mask.shape) != ((size,) if basis is not None else event):
        raise ValueError(f"mask must have shape {[size] if basis is not None else list(event)}, got {list(mask.shape)}")
    projector = None
    if basis is not None:
        eye = torch.eye(size, dtype=known.dtype, device=known.device)
        if basis.shape != eye.shape or not torch.allclose(basis @ basis.mT, eye, atol=1e-5):
            raise ValueError(f"basis must be an orthonormal matrix [{size}, {size}]")
        projector = basis[mask].mT @ basis[mask]

    def replace(i: int, t: Tensor, x: Tensor) -> Tensor:
        if tuple(x.shape[1:]) != event or known.shape[0] not in (1, x.shape[0]):
            raise ValueError(f"known has shape {list(known.shape)}, which does not fit states {list(x.shape)}")
        if known.dtype != x.dtype:
            raise TypeError(f"known must have the dtype of the states, {x.dtype}; got {known.dtype}")
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        fresh = path.apply_interpolation(noise, known, t)
        if projector is None:
            return torch.where(mask, fresh, x)
        return x + ((fresh - x).flatten(1) @ projector).reshape(x.shape)

    return replace
