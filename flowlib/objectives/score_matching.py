r"""Score matching: four losses with one minimiser.

`explicit`, `implicit`, `denoising` and `sliced` fit a score function $s_\theta(x)$ to one density from its samples;
`denoising_score_matching` fits a field on a whole path.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from flowlib._checks import check_positive, check_same, check_state
from flowlib.couplings import Coupling, independent
from flowlib.fields import Field
from flowlib.objectives.flow_matching import PairObjective, flow_matching
from flowlib.objectives.times import TimeSampler

__all__ = ["denoising", "denoising_score_matching", "explicit", "implicit", "sliced"]

Score = Callable[[Tensor], Tensor]


def explicit(score: Score, x: Tensor, true_score: Score) -> Tensor:
    r"""$\tfrac12 E\|s_\theta(x) - \nabla\log p(x)\|^2$, for densities whose score is known.

    Args:
        score: $s_\theta$, from states `[n, d]` to `[n, d]`.
        x: Samples of $p$, `[n, d]`.
        true_score: $\nabla\log p$.

    Returns:
        The loss, a 0-d tensor.

    Example:
        >>> explicit(lambda x: -x, torch.ones(3, 2), lambda x: -2 * x)
        tensor(1.)
    """
    check_state("x", x)
    s, truth = score(x), true_score(x)
    check_same("score(x)", s, "x", x)
    check_same("true_score(x)", truth, "x", x)
    return 0.5 * (s - truth).square().flatten(1).sum(1).mean()


def implicit(score: Score, x: Tensor) -> Tensor:
    r"""$E[\nabla\!\cdot s_\theta(x) + \tfrac12\|s_\theta(x)\|^2]$: the explicit loss up to a constant.

    The identity is theorem 1 of Hyvarinen (2005).
    The divergence is exact: one backward pass for each coordinate.

    Args:
        score: $s_\theta$, acting on each row alone.
        x: Samples `[n, d]`.

    Returns:
        The loss, a 0-d tensor that can be differentiated with respect to the parameters of the score.

    Example:
        >>> implicit(lambda x: -x, torch.ones(3, 2)).item()        # -d + |x|^2 / 2
        -1.0
    """
    check_state("x", x)
    x = x.detach().requires_grad_()
    s = score(x)
    check_same("score(x)", s, "x", x)
    flat = s.flatten(1)
    divergence = torch.zeros_like(flat[:, 0])
    for i in range(flat.shape[1]):
        (gradient,) = torch.autograd.grad(flat[:, i].sum(), x, create_graph=True, allow_unused=True)
        if gradient is not None:
            divergence = divergence + gradient.flatten(1)[:, i]
    return (divergence + 0.5 * flat.square().sum(1)).mean()


def sliced(
    score: Score,
    x: Tensor,
    *,
    projections: int = 1,
    reduce_variance: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""$E_z[z^\top (\partial_x s_\theta) z + \tfrac12 (z^\top s_\theta)^2]$ with random signs $z$ (Song et al., 2020).

    Its expectation is the implicit loss, at the price of one backward pass a projection instead of $d$.

    Args:
        score: $s_\theta$, acting on each row alone.
        x: Samples `[n, d]`.
        projections: Number of directions for each sample.
        reduce_variance: Replace $(z^\top s)^2$ by its mean $\|s\|^2$ (the paper's SSM-VR).
        generator: Random generator.

    Returns:
        The loss, a 0-d tensor.

    Raises:
        ValueError: If `projections` is not positive.

    Example:
        >>> sliced(lambda x: -x, torch.ones(3, 2)).item()
        -1.0
    """
    check_state("x", x)
    check_positive("projections", projections, integer=True)
    x = x.detach().repeat(projections, *[1] * (x.ndim - 1)).requires_grad_()
    z = torch.randint(0, 2, x.shape, generator=generator, device=x.device).to(x.dtype) * 2 - 1
    s = score(x)
    check_same("score(x)", s, "x", x)
    along = (s * z).flatten(1).sum(1)
    (gradient,) = torch.autograd.grad(along.sum(), x, create_graph=True)
    quadratic = (gradient * z).flatten(1).sum(1)
    norm = s.square().flatten(1).sum(1) if reduce_variance else along.square()
    return (quadratic + 0.5 * norm).mean()


def denoising(score: Score, x: Tensor, sigma: float, *, generator: torch.Generator | None = None) -> Tensor:
    r"""$\tfrac12 E\|s_\theta(x + \sigma\epsilon) + \epsilon/\sigma\|^2$, $\epsilon$ standard normal (Vincent, 2011).

    Up to a constant it is the explicit loss of the density smoothed by the noise.

    Args:
        score: $s_\theta$.
        x: Samples `[n, d]` of the clean density.
        sigma: Noise level, positive.
        generator: Random generator.

    Returns:
        The loss, a 0-d tensor.

    Raises:
        ValueError: If `sigma` is not positive.

    Example:
        >>> bool(denoising(lambda x: -x, torch.ones(3, 2), sigma=0.1) > 0)
        True
    """
    check_state("x", x)
    check_positive("sigma", sigma)
    noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
    s = score(x + sigma * noise)
    check_same("score(x)", s, "x", x)
    return 0.5 * (s + noise / sigma).square().flatten(1).sum(1).mean()


def denoising_score_matching(
    field: Field,
    *,
    weight: Literal["variance", "likelihood", "none"] | Callable[[Tensor], Tensor] = "variance",
    times: TimeSampler | None = None,
    coupling: Coupling = independent,
    drop_condition: float = 0.0,
) -> PairObjective:
    r"""Denoising score matching along the path, $E\,\lambda(t)\frac1d\|s_\theta(x_t, t) + x_0/\sigma_t\|^2$.

    The field may predict any of the four; its error is expressed in the score (Song et al., 2021, eq. 7).

    Args:
        field: What is trained.
        weight: $\lambda$: `"variance"` is $\sigma_t^2$, which makes this the noise-prediction loss; `"likelihood"`
            is $g_t^2$, which bounds the Kullback-Leibler divergence (Song et al., 2021b); `"none"` is one; or a
            function of times `[batch]`.
        times: Sampler of times; uniform on [0, 1) if `None`. Keep away from ends where $\lambda$ or the score's
            target is infinite.
        coupling: Pairs noise with data; the target is the score only for independent pairs.
        drop_condition: See `flow_matching`.

    Returns:
        The objective.

    Raises:
        ValueError: If the weight's name is unknown.

    Example:
        >>> from flowlib import fields, nets, paths
        >>> field = fields.NetworkField(nets.MLP(dim=2), paths.vp(), predicts="noise")
        >>> denoising_score_matching(field)(torch.randn(4, 2), torch.ones(4, 2)).total.ndim
        0
    """
    path = field.path
    if weight == "variance":
        # sigma^2 |ds|^2 = |d noise|^2: exact where 1/sigma^2 is infinite
        return flow_matching(field, coupling=coupling, times=times, error_in="noise", drop_condition=drop_condition)
    weights: dict[str, Callable[[Tensor], Tensor]] = {
        "likelihood": lambda t: path.drift_diffusion(t)[1],
        "none": torch.ones_like,
    }
    scale = weight if callable(weight) else weights.get(weight)
    if scale is None:
        raise ValueError(f"weight must be 'variance', 'likelihood', 'none' or a function of t, got {weight!r}")
    return flow_matching(
        field, coupling=coupling, times=times, weight=scale, error_in="score", drop_condition=drop_condition
    )
