r"""Gated linear attention, chunk by chunk: attention whose memory is one matrix a head.

With queries $q_t$, keys $k_t$ and decays $e^{g_t}\in(0, 1]^K$, values $v_t\in\mathbb R^V$ (Yang et al., 2024),

$$ S_t = \operatorname{diag}(e^{g_t}) S_{t-1} + k_t v_t^\top, \qquad o_t = K^{-1/2}\, S_t^\top q_t . $$

Token by token this is all memory traffic and no tensor cores. A chunk of $C$ tokens, with $b_i = \sum_{s\le i} g_s$
counted from the chunk's start and $S$ the state that enters, is products of matrices:

$$ o_i = K^{-1/2}\Big[ S^\top (q_i\odot e^{b_i}) + \sum_{j\le i} A_{ij} v_j\Big], \quad
   A_{ij} = \sum_k q_{ik} k_{jk} e^{b_{ik} - b_{jk}}, \quad
   S' = \operatorname{diag}(e^{b_C}) S + \sum_j (k_j\odot e^{b_C - b_j}) v_j^\top . $$

**Why levels.** $A$ would be one product of $q\odot e^{b}$ and $k\odot e^{-b}$ if $e^{-b}$ did not overflow. Halve the
chunk: for $i$ in the second half and $j$ in the first, $e^{b_i - b_j} = e^{b_i - r} e^{r - b_j}$ with $r$ the value of
$b$ at the last token of the first half, and both exponents are at most zero. Halve the halves, and so on: $\log_2 C$
products, each over the whole tile and masked to its pairs, and the diagonal. Nothing overflows, whatever the decay.

**Roofline.** With $K = V = C = 64$ in bfloat16 a token of a head moves 2.6 KiB: $q, k, v$ are read twice and $o$
written (0.9), $g$ is read, $b$ written and read by three kernels in float32 (1.25), $A$ and the states are written and
read (0.5). It computes 9 products of $64^3$ a chunk, six of them levels: $74\cdot 10^3$ operations a token, 27 a byte,
where an H200 has 206: memory is the limit, the levels are free. Backward: 18 products and 3.1 KiB.

The decay's gradient needs no product of its own. Scaling coordinate $k$ of $q_t$ and unscaling that of $k_t$ does what
$b_t$ does, so $\partial b_t = q_t\odot\partial q_t - k_t\odot\partial k_t$, and $\partial g_t$ is the sum of these over
the rest of the sequence. What lies beyond the chunk is there already: it is $\sum_v S'\odot\partial S'$ of the state
that leaves, for the same reason.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from flowlib.kernels._dispatch import check_operand, compute_dtype, use_triton

__all__ = ["gated_linear_attention"]

MAX_KEY_DIM = 128
"""A chunk's queries and keys, with all features, are held in registers."""


def gated_linear_attention(
    q: Float[Tensor, "batch heads tokens keys"],
    k: Float[Tensor, "batch heads tokens keys"],
    v: Float[Tensor, "batch heads tokens values"],
    log_decay: Float[Tensor, "batch heads tokens keys"],
    state: Float[Tensor, "batch heads keys values"] | None = None,
    *,
    implementation: str = "auto",
) -> tuple[Float[Tensor, "batch heads tokens values"], Float[Tensor, "batch heads keys values"]]:
    r"""Run gated linear attention over tokens; differentiable in every tensor.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        log_decay: $g$, finite and at most 0, in float32 (float64 for float64 inputs): sums of it become exponents.
            The sign is checked on the CPU only: on a GPU it would make the CPU wait.
        state: State before the first token, in the dtype of `log_decay`; zero if `None`.
        implementation: `"auto"` (Triton on a GPU), `"reference"` or `"triton"`.

    Returns:
        $o$ in the dtype of `q`, and the state after the last token in the dtype of `log_decay`. Passing it on continues
        the sequence.

    Raises:
        TypeError: If dtypes do not fit.
        ValueError: If shapes or devices do not fit, keys have more than 128 features, or a decay grows.
        RuntimeError: If Triton is asked for and cannot run.

    Example:
        >>> one = torch.ones(1, 1, 3, 1)
        >>> o, state = gated_linear_attention(one, one, one, torch.zeros_like(one))
        >>> o.flatten().tolist(), state.item()      # without decay the state counts
        ([1.0, 2.0, 3.0], 3.0)
    """
    check_operand("q", q, ("batch", "heads", "tokens", "keys"))
    batch, heads, tokens, keys = q.shape
    check_operand("k", k, tuple(q.shape), q)
    check_operand("v", v, (batch, heads, tokens, "values"), q)
    like = torch.empty(0, dtype=compute_dtype(q.dtype), device=q.device)
    check_operand("log_decay", log_decay, tuple(q.shape), like)
    if state is not None:
        check_operand("state", state, (batch, heads, keys, v.shape[-1]), like)
    if keys > MAX_KEY_DIM:
        raise ValueError(f"q must have at most {MAX_KEY_DIM} features, got {keys}")
    if log_decay.device.type == "cpu" and float(log_decay.detach().max()) > 0:
        raise ValueError(f"log_decay must be at most 0, got {float(log_decay.detach().max()):g}")
    if not use_triton(implementation, q, q.shape[0] * q.shape[1]):
        return gated_linear_attention_reference(q, k, v, log_decay, state)
    from flowlib.kernels._triton.linear_attention import GatedLinearAttention

    if state is None:
        state = like.new_zeros(batch, heads, keys, v.shape[-1])
    out: tuple[Tensor, Tensor] = GatedLinearAttention.apply(q, k, v, log_decay, state)
    return out


def gated_linear_attention_reference(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The definition, in plain PyTorch, token after token."""
    queries, k, v = (x.to(log_decay.dtype) for x in (q, k, v))
    decay = log_decay.exp()
    s = log_decay.new_zeros(*q.shape[:2], q.shape[3], v.shape[3]) if state is None else state  # (B, H, K, V)
    o = []
    for t in range(q.shape[2]):
        s = decay[:, :, t, :, None] * s + k[:, :, t, :, None] * v[:, :, t, None, :]
        o.append((queries[:, :, t, :, None] * s).sum(-2))
    return (torch.stack(o, 2) * q.shape[3] ** -0.5).to(q.dtype), s
