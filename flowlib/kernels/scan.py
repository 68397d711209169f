r"""The selective scan of Mamba: a linear recurrence whose coefficients depend on the token.

For each channel $d$ and state $n$ (Gu and Dao, 2023, section 3.2, with the input matrix discretised as $\Delta B$),

$$ h_t = e^{\Delta_t A}\, h_{t-1} + \Delta_t B_t u_t, \qquad y_t = \sum_n C_{t,n} h_{t,n} + D u_t, \qquad h_0 = 0 . $$

A step is an affine map of the state, and affine maps compose associatively:
$(a_2, b_2)\circ(a_1, b_1) = (a_1 a_2, a_2 b_1 + b_2)$. The kernel cuts the sequence into chunks, composes the maps of a
chunk by a parallel scan, applies them to the state that enters, and hands the last state to the next chunk. The states
at the chunks' starts are kept; the backward pass makes all others again. The adjoint
$\lambda_t = C_t\, \partial y_t + e^{\Delta_{t+1} A}\lambda_{t+1}$ is the same scan from the other end.

**Roofline.** With $N$ states, a token of a channel costs one exponential and about ten operations a state, and moves
$u, \Delta, y$: 6 bytes in bfloat16, and $4N/16$ for the states kept. At $N = 16$ that is 10 bytes and 16 exponentials.
An H200 makes 16 exponentials a cycle and multiprocessor, some $4\cdot 10^{12}$ a second, so they take 4 ps where the
bytes take 2.1, and the 160 other operations about 5: the scan is limited by arithmetic, and chunking saves latency, not
bytes. Never writing $h$ is what
keeps it near this limit: the states of all tokens would be $4N = 64$ bytes. The backward pass makes the exponentials of
two scans and moves about 30 bytes, of which 16 are float32 sums of $\partial B$ and $\partial C$ over blocks of 16
channels, written, read and added up afterwards, so that two runs give the same bits.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from flowlib.kernels._dispatch import check_operand, compute_dtype, use_triton

__all__ = ["selective_scan"]

MAX_STATES = 64
"""All states of a block of channels are held in registers."""


def selective_scan(
    u: Float[Tensor, "batch tokens channels"],
    delta: Float[Tensor, "batch tokens channels"],
    a: Float[Tensor, "channels states"],
    b: Float[Tensor, "batch tokens states"],
    c: Float[Tensor, "batch tokens states"],
    d: Float[Tensor, " channels"],
    *,
    implementation: str = "auto",
) -> Float[Tensor, "batch tokens channels"]:
    r"""Run the recurrence over tokens; differentiable in every argument.

    Args:
        u: Inputs.
        delta: Step sizes $\Delta$, positive in a model (after its softplus); any values are computed.
        a: $A$, diagonal for each channel; negative in a model, so that the state decays.
        b: $B$, shared by all channels.
        c: $C$, shared by all channels.
        d: $D$, the skip.
        implementation: `"auto"` (Triton on a GPU), `"reference"` or `"triton"`.

    Returns:
        $y$, in the dtype of `u`. The state is float32 (float64 for float64 inputs).

    Raises:
        TypeError: If dtypes differ or are not floating.
        ValueError: If shapes or devices do not fit, or there are more than 64 states.
        RuntimeError: If Triton is asked for and cannot run.

    Example:
        >>> one = torch.ones(1, 4, 1)
        >>> y = selective_scan(one, one, torch.zeros(1, 1), one, one, torch.zeros(1))
        >>> y.flatten().tolist()        # A = 0 never forgets: the scan counts
        [1.0, 2.0, 3.0, 4.0]
    """
    check_operand("u", u, ("batch", "tokens", "channels"))
    batch, tokens, channels = u.shape
    check_operand("delta", delta, (batch, tokens, channels), u)
    check_operand("a", a, (channels, "states"), u)
    check_operand("b", b, (batch, tokens, a.shape[1]), u)
    check_operand("c", c, (batch, tokens, a.shape[1]), u)
    check_operand("d", d, (channels,), u)
    if a.shape[1] > MAX_STATES:
        raise ValueError(f"a must have at most {MAX_STATES} states, got {a.shape[1]}")
    if not use_triton(implementation, u, u.shape[0]):
        return selective_scan_reference(u, delta, a, b, c, d)
    from flowlib.kernels._triton.scan import SelectiveScan

    y: Tensor = SelectiveScan.apply(u, delta, a, b, c, d)
    return y


def selective_scan_reference(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """The definition, in plain PyTorch, token after token."""
    wide = compute_dtype(u.dtype)
    u_wide, delta, a, b, c, d = (x.to(wide) for x in (u, delta, a, b, c, d))
    h = torch.zeros(u.shape[0], *a.shape, dtype=wide, device=u.device)  # (B, D, N)
    y = []
    for t in range(u.shape[1]):
        decay = torch.exp(delta[:, t, :, None] * a)
        h = decay * h + (delta[:, t] * u_wide[:, t])[..., None] * b[:, t, None]
        y.append((h * c[:, t, None]).sum(-1) + d * u_wide[:, t])
    return torch.stack(y, 1).to(u.dtype)
