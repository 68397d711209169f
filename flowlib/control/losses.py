"""Losses on the data prediction, which say where a flow is to be steered.

A loss is a function of data predictions `[batch, *event]` and the time, with one value for each sample.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from flowlib._checks import check_same, check_state, expand_time

__all__ = ["Loss", "edit_loss", "least_squares", "loss_gradient", "loss_values"]

Loss = Callable[[Tensor, Tensor], Tensor]


def loss_gradient(loss: Loss, x1: Tensor, t: Tensor) -> Tensor:
    r"""$\nabla L$ at data predictions, each sample alone; nothing before `x1` is differentiated.

    Args:
        loss: From data predictions and the time to `[batch]`.
        x1: Data predictions `[batch, *event]`.
        t: Their time.

    Returns:
        The gradient, shaped like `x1`.

    Raises:
        ValueError: If the loss does not have one value for each state.

    Example:
        >>> loss_gradient(lambda x1, t: x1.square().sum(1) / 2, torch.full((1, 2), 3.0), torch.tensor(0.5))
        tensor([[3., 3.]])
    """
    with torch.enable_grad():
        at = x1.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss_values(loss, at, t).sum(), at)
    return gradient


def least_squares(measure: Callable[[Tensor], Tensor], y: Tensor) -> Loss:
    r"""The loss of a measurement, $L = \frac12\|A\hat x_1 - y\|^2$: a *sum* over what was measured.

    With a mean in its place, as in much published code, the same step size is $m/2$ times weaker for $m$ numbers.

    Args:
        measure: $A$, from states to measurements `[batch, *shape]`, differentiable by autograd.
        y: What was measured, `[batch, *shape]`, real or complex.

    Returns:
        A loss for the functions of `flowlib.control.steering`.

    Raises:
        ValueError: When evaluated, if $A\hat x_1$ has another shape than `y`.

    Example:
        >>> loss = least_squares(lambda x: x[:, :1], torch.zeros(1, 1))
        >>> loss_gradient(loss, torch.ones(1, 2), torch.tensor(0.5))       # A^T (A x - y)
        tensor([[1., 0.]])
    """

    def loss(x1: Tensor, t: Tensor) -> Tensor:
        seen = measure(x1)
        check_same("measure(x1)", seen, "y", y)
        return (seen - y).abs().square().flatten(1).sum(1) / 2

    return loss


def edit_loss(reference: Float[Tensor, "batch *event"], edit: Tensor, *, source_until: float) -> Loss:
    r"""The two-phase loss of editing without inversion: all of the reference first, then all but the part to edit.

    $L = \frac12\|w_t \odot (\hat x_1 - x_{\mathrm{ref}})\|^2$ with $w_t = 1$ everywhere while $t <$ `source_until`, and
    $w_t = 0$ where `edit` is true from then on (Patel et al., 2025). The first phase sets the composition, which the
    edited part keeps.

    Args:
        reference: The images to edit.
        edit: True where the image may change, of the event's shape or `[batch, *event]`.
        source_until: When the second phase begins, in [0, 1].

    Returns:
        A loss for `steered`.

    Raises:
        TypeError: If `edit` is not boolean.
        ValueError: If shapes disagree or the time is out of range.

    Example:
        >>> loss = edit_loss(torch.zeros(1, 2), torch.tensor([True, False]), source_until=0.5)
        >>> x1 = torch.ones(1, 2)
        >>> loss_gradient(loss, x1, torch.tensor(0.2)), loss_gradient(loss, x1, torch.tensor(0.7))
        (tensor([[1., 1.]]), tensor([[0., 1.]]))
    """
    check_state("reference", reference)
    if edit.dtype != torch.bool:
        raise TypeError(f"edit must be boolean, got {edit.dtype}")
    if edit.shape not in (reference.shape, reference.shape[1:]):
        raise ValueError(f"edit must have shape {list(reference.shape[1:])}, got {list(edit.shape)}")
    if not 0 <= source_until <= 1:
        raise ValueError(f"source_until must lie in [0, 1], got {source_until}")

    def loss(x1: Tensor, t: Tensor) -> Tensor:
        check_same("x1", x1, "reference", reference)
        kept = ~edit | expand_time(t < source_until, x1)
        return torch.where(kept, x1 - reference, 0).square().flatten(1).sum(1) / 2

    return loss


def loss_values(loss: Loss, x1: Tensor, t: Tensor) -> Tensor:
    """The loss of each sample.

    Raises:
        ValueError: If the loss does not have one value for each state.
    """
    found = loss(x1, t)
    if found.shape != x1.shape[:1]:
        raise ValueError(f"loss must return shape [{x1.shape[0]}], one value a state; got {list(found.shape)}")
    return found
