"""What training costs: operations counted, hours computed."""

import copy

import torch
from torch import Tensor, nn

from flowlib._checks import check_positive

__all__ = ["PEAK_FLOPS", "count_flops", "gpu_hours", "peak_flops"]

PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "B200": 2250e12}
"""Dense bf16 FLOP/s by a part of the device's name (vendors' data sheets, without sparsity)."""


def count_flops(network: nn.Module, *inputs: Tensor, **conditions: Tensor) -> float:
    """Floating-point operations of one forward pass of one sample, counted on a copy without storage.

    Args:
        network: The network; it is not run.
        inputs: A batch of inputs; only their shapes and dtypes matter.
        conditions: Keyword arguments of the same kind.

    Example:
        >>> count_flops(nn.Linear(8, 4, bias=False), torch.zeros(2, 8))
        64.0
    """
    from torch.utils.flop_counter import FlopCounterMode

    ghost = copy.deepcopy(network).to("meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        ghost(*(x.to("meta") for x in inputs), **{name: value.to("meta") for name, value in conditions.items()})
    return float(counter.get_total_flops()) / inputs[0].shape[0]


def gpu_hours(flops: float, samples: float, *, peak: float, utilisation: float) -> float:
    """The price of a run: three forward passes' worth of operations a sample at a part of the peak.

    Args:
        flops: Of one sample's forward pass.
        samples: Samples seen in the run, steps times batch size.
        peak: FLOP/s of a device; see `PEAK_FLOPS`.
        utilisation: The part of the peak that is reached (model FLOPs utilisation), in (0, 1].

    Example:
        >>> round(gpu_hours(237e9, 400_000 * 256, peak=989e12, utilisation=0.4))     # a DiT-XL/2 for 400 000 steps
        51
    """
    if not 0 < utilisation <= 1:
        raise ValueError(f"utilisation must lie in (0, 1], got {utilisation}")
    check_positive("peak", peak)
    return 3 * flops * samples / (peak * utilisation) / 3600


def peak_flops(device: torch.device) -> float | None:
    """The peak of a device in bf16, or `None` if `PEAK_FLOPS` does not know it.

    Example:
        >>> peak_flops(torch.device("cpu")) is None
        True
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return next((rate for part, rate in PEAK_FLOPS.items() if part in name), None)
