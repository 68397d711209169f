"""What the tests of kernels share: a kernel beside its reference in float64, forward and backward."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
"""Without a GPU the kernels run in Triton's interpreter (conftest.py)."""

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}
"""Largest error in units of the largest entry: a few units of rounding of the output."""


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Normal numbers on the tests' device; the same in every dtype but for rounding."""
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(DEVICE, dtype)


def strided(x: Tensor) -> Tensor:
    """The same values in memory of another order: every axis has an unusual stride."""
    wide = torch.empty(*(2 * n for n in reversed(x.shape)), dtype=x.dtype, device=x.device)
    view = wide.permute(*reversed(range(x.ndim)))[tuple(slice(None, None, 2) for _ in x.shape)]
    return view.copy_(x)


def error(measured: Tensor, expected: Tensor) -> float:
    """Largest deviation in units of the largest entry expected."""
    return float((measured.double() - expected.double()).abs().max() / expected.double().abs().max().clamp_min(1e-3))


def run(
    function: Callable[..., Any], operands: dict[str, Tensor], implementation: str, **options: Any
) -> dict[str, Tensor]:
    """Outputs, and gradients of a random linear function of them."""
    leaves = {name: x.detach().requires_grad_(x.is_floating_point()) for name, x in operands.items()}
    outputs = function(**leaves, **options, implementation=implementation)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    weights = [random(*out.shape, dtype=out.dtype, seed=7 + i) for i, out in enumerate(outputs)]
    loss = sum(
        (out.to(torch.float64) * weight.to(torch.float64)).sum() for out, weight in zip(outputs, weights, strict=True)
    )
    loss.backward()
    results = {f"output {i}": out.detach() for i, out in enumerate(outputs)}
    return results | {f"gradient of {name}": x.grad for name, x in leaves.items() if x.grad is not None}


def assert_agrees(
    function: Callable[..., Any], operands: dict[str, Tensor], factor: float = 1.0, **options: Any
) -> None:
    """The kernel's outputs and gradients are those of the reference in float64, within `factor` tolerances."""
    dtype = next(iter(operands.values())).dtype
    kernel = run(function, operands, "triton", **options)
    wide = {name: x.double() if x.is_floating_point() else x for name, x in operands.items()}
    reference = run(function, wide, "reference", **options)
    assert kernel.keys() == reference.keys()
    assert kernel["output 0"].dtype == dtype
    for name, expected in reference.items():
        off = error(kernel[name], expected)
        assert off < factor * TOLERANCE[dtype], f"{name}: {off:.2e}"
