"""On a GPU: realistic sizes in bfloat16, where tiles are full, loads are wide and tensor cores multiply."""

import pytest
import torch
from kernel_checks import assert_agrees, random
from torch import Tensor

from flowlib import kernels

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
BF16 = torch.bfloat16


def test_adaln() -> None:
    wide, one = (4, 1000, 1152), (4, 1, 1152)
    shapes = {"x": wide, "shift": one, "scale": one, "gate": one, "branch": wide}
    named = {name: random(*shape, dtype=BF16, seed=i) for i, (name, shape) in enumerate(shapes.items())}
    assert_agrees(kernels.adaln_modulate, named)


@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("dtype", [BF16, torch.float16, torch.float32], ids=str)
def test_block_causal_attention(dim: int, dtype: torch.dtype) -> None:
    named = {name: random(1, 2, 1000, dim, dtype=dtype, seed=i) for i, name in enumerate("qkv")}
    assert_agrees(kernels.block_causal_attention, named, factor=2, frame=130, window=3, sink=1)


@pytest.mark.parametrize("dim", [64, 128])
def test_gated_linear_attention(dim: int) -> None:
    named = {name: random(1, 2, 500, dim, dtype=BF16, seed=i) for i, name in enumerate("qkv")}
    named["log_decay"] = -torch.sigmoid(random(1, 2, 500, dim, seed=3))
    assert_agrees(kernels.gated_linear_attention, named, factor=2)


def test_selective_scan() -> None:
    named = {
        "u": random(2, 300, 100, dtype=BF16),
        "delta": torch.nn.functional.softplus(random(2, 300, 100, seed=1) - 2).to(BF16),
        "a": -random(100, 16, seed=2).exp().to(BF16),
        "b": random(2, 300, 16, dtype=BF16, seed=3),
        "c": random(2, 300, 16, dtype=BF16, seed=4),
        "d": random(100, dtype=BF16, seed=5),
    }
    assert_agrees(kernels.selective_scan, named, factor=2)


def test_sinkhorn_keeps_memory_bounded() -> None:
    """At n = 16384 a matrix of float32 costs would take 1 GiB; the kernels take a few vectors."""
    x0, x1 = random(16384, 2).requires_grad_(), random(16384, 2, seed=1) + 1
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    value, _, _ = kernels.sinkhorn(x0, x1, 4.0, tolerance=1e-4)
    value.backward()
    assert torch.cuda.max_memory_allocated() - before < 2**23


def test_sinkhorn_agrees_with_the_matrix() -> None:
    def value(x0: Tensor, x1: Tensor, implementation: str) -> Tensor:
        return kernels.sinkhorn(x0, x1, 4.0, tolerance=1e-4, implementation=implementation)[0][None]

    assert_agrees(value, {"x0": random(1000, 3), "x1": random(900, 3, seed=1)}, factor=10)
