"""The GPU benchmark's plumbing, on the CPU: every kernel, both passes, errors against float64; no numbers of a GPU."""

import pytest
import torch

from benchmarks import gpu
from flowlib import kernels

FUNCTIONS = {
    "adaln_modulate",
    "block_causal_attention",
    "flow_matching_pair",
    "gated_linear_attention",
    "paged_attention",
    "selective_scan",
    "sinkhorn",
}


def test_dry_run_measures_every_kernel_and_writes_nothing() -> None:
    before = gpu.RESULTS.read_bytes() if gpu.RESULTS.exists() else None
    table = gpu.main(["--dry-run"])
    cells = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    assert {cell["kernel"] for cell in cells} == FUNCTIONS
    assert set(kernels.__all__) >= FUNCTIONS
    forward_only = {"paged_attention", "sinkhorn"}
    assert {cell["kernel"] for cell in cells if cell["pass"] == "backward"} == FUNCTIONS - forward_only
    assert all(0 < float(cell["error"]) < 2e-2 for cell in cells)
    assert all(float(cell["ms"]) > 0 for cell in cells)
    assert before == (gpu.RESULTS.read_bytes() if gpu.RESULTS.exists() else None)


@pytest.mark.bad_input
@pytest.mark.skipif(torch.cuda.is_available(), reason="the error is that of a machine without a GPU")
def test_without_a_gpu_it_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu.main([])
    assert "no CUDA device is available" in capsys.readouterr().err
