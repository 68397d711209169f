"""The settings of a training run on many processes."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from flowlib._checks import check_choice, check_positive

__all__ = ["Run"]


@dataclass(frozen=True)
class Run:
    """Settings of a training run.

    Attributes:
        out: Folder of checkpoints, log and weights; a run that stands there is resumed.
        steps: Optimiser steps in all.
        batch_size: Samples a step, over all processes.
        micro_batch: Samples of one forward pass; it divides `batch_size`.
        lr: Peak learning rate of AdamW.
        beta2: AdamW's decay of squared gradients.
        weight_decay: AdamW's weight decay, per unit of learning rate.
        warmup: Steps over which the rate rises linearly from zero.
        schedule: Of the rate: constant, or a cosine to zero at `steps`.
        clip: Largest norm of the gradient; 0 for no clipping.
        ema: Decay of the average of the weights, per step.
        precision: fp32, or bf16 autocast with fp32 weights and sums.
        strategy: ddp copies the network to every process; fsdp shards weights, gradients and optimiser (FSDP2).
        compile: Whether to torch.compile the network.
        checkpoint_activations: Recompute the blocks' activations in the backward pass: less memory, a third more time.
        accelerator: cpu, cuda, or auto.
        devices: Processes on each node (torchrun's --nproc-per-node wins).
        nodes: Number of nodes (torchrun's --nnodes wins).
        workers: Processes that read data, per training process; 0 reads in the training process.
        save_every: Steps between checkpoints.
        keep: Checkpoints kept; older ones are deleted.
        log_every: Steps between two looks at the loss, also in TensorBoard.
        seed: Of data order, noise, times and dropout.
    """

    out: Path = Path("runs/flow")
    steps: int = 400_000
    batch_size: int = 256
    micro_batch: int = 32
    lr: float = 1e-4
    beta2: float = 0.999
    weight_decay: float = 0.0
    warmup: int = 0
    schedule: Literal["constant", "cosine"] = "constant"
    clip: float = 1.0
    ema: float = 0.9999
    precision: Literal["fp32", "bf16"] = "bf16"
    strategy: Literal["ddp", "fsdp"] = "ddp"
    compile: bool = False
    checkpoint_activations: bool = False
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    devices: int = 1
    nodes: int = 1
    workers: int = 4
    save_every: int = 5_000
    keep: int = 2
    log_every: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "micro_batch", "devices", "nodes", "save_every", "keep", "log_every"):
            check_positive(name, getattr(self, name), integer=True)
        check_positive("lr", self.lr)
        for name in ("warmup", "clip", "weight_decay", "workers"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("ema", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)}")
        check_choice("schedule", self.schedule, ("constant", "cosine"))
        check_choice("precision", self.precision, ("fp32", "bf16"))
        check_choice("strategy", self.strategy, ("ddp", "fsdp"))
        if self.batch_size % self.micro_batch:
            raise ValueError(f"micro_batch must divide batch_size, got {self.micro_batch} and {self.batch_size}")

    @property
    def micro_batches(self) -> int:
        """Micro-batches a step, over all processes."""
        return self.batch_size // self.micro_batch

    @property
    def decides(self) -> dict[str, Any]:
        """The settings that change what is computed; a resumed run must have the same."""
        free = {"out", "accelerator", "devices", "nodes", "workers", "save_every", "keep", "log_every", "compile"}
        free |= {"strategy", "checkpoint_activations"} | ({"steps"} if self.schedule == "constant" else set())
        return {name: value for name, value in asdict(self).items() if name not in free}
