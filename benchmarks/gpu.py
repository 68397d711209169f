"""Kernels beside their peers on a GPU: `python -m benchmarks.gpu` writes book/results/gpu-kernels.json.

Each kernel is compared with its reference in float64 on a small problem, then timed on a large one, forward and
backward, and set against what this card does: memory-bound kernels against a measured copy, attention against a
measured product of matrices. `--dry-run` runs all of it but the peers on the CPU, through the references and on small
problems, and writes nothing: it tests this file, not a kernel.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.timing import Table, version
from flowlib import kernels

RESULTS = Path(__file__).resolve().parent.parent / "book" / "results" / "gpu-kernels.json"
PACKAGES = ("torch", "triton", "flash-linear-attention", "mamba-ssm", "POT")
COLUMNS = ["kernel", "problem", "pass", "error", "ms", "MiB", "rate", "of ceiling", "peer", "peer ms", "ratio", "aim"]
READING = (
    "error: largest deviation from the float64 reference on a small problem of the same dtype, in units of the largest "
    "entry. MiB: memory allocated above the inputs. of ceiling: rate over that of a copy, or of a bfloat16 product. "
    "ratio: peer's time over the kernel's, so more than one is faster."
)
Peer = Callable[[dict[str, Tensor]], Any]


@dataclass
class Problem:
    """One kernel at one size.

    `work` and `backward_work` count bytes (unit GB/s), operations (TFLOP/s) or pairs (Gpair/s). `small` are the
    operands for the comparison with float64.
    """

    kernel: str
    sizes: str
    function: Callable[..., Any]
    operands: dict[str, Tensor]
    small: dict[str, Tensor]
    unit: str
    work: float
    backward_work: float = 0.0
    aim: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    small_options: dict[str, Any] | None = None
    peers: dict[str, Peer] = field(default_factory=dict)


class Bench:
    """Where things run, how they are timed, and how fast this device copies and multiplies."""

    def __init__(self, dry: bool) -> None:
        self.dry = dry
        self.device = torch.device("cpu" if dry else "cuda")
        self.implementation = "reference" if dry else "triton"
        self.generator = torch.Generator(self.device).manual_seed(0)
        numbers = 2**16 if dry else 2**29
        source = torch.zeros(numbers, dtype=torch.bfloat16, device=self.device)
        target = torch.empty_like(source)
        copy = 4 * numbers / self.seconds(lambda: target.copy_(source))
        side = 64 if dry else 8192
        x = torch.randn(side, side, device=self.device, generator=self.generator).bfloat16()
        product = 2 * side**3 / self.seconds(lambda: x @ x)
        self.ceilings = {"GB/s": copy / 1e9, "TFLOP/s": product / 1e12}

    def normal(self, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        """Normal numbers."""
        return torch.randn(shape, device=self.device, generator=self.generator).to(dtype)

    def seconds(self, run: Callable[[], Any]) -> float:
        """Median time of a call; on the GPU with an empty cache before each."""
        if not self.dry:
            from triton.testing import do_bench

            return float(do_bench(run, warmup=50, rep=200, return_mode="median")) / 1000
        times = []
        for _ in range(3):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    def memory(self, run: Callable[[], Any]) -> float:
        """MiB allocated at the peak of a call above what was there."""
        if self.dry:
            return 0.0
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return float(torch.cuda.max_memory_allocated() - before) / 2**20

    def compiled(self, run: Peer) -> Peer:
        """torch.compile, which a dry run does without."""
        return run if self.dry else torch.compile(run)

    def size(self, full: int, small: int) -> int:
        """The size on a GPU, or that of a dry run."""
        return small if self.dry else full


def tensors(outputs: Any) -> list[Tensor]:
    """Outputs that have a gradient."""
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return [x for x in outputs if isinstance(x, Tensor) and x.requires_grad]


def evaluate(call: Peer, operands: dict[str, Tensor], backward: bool) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs, and gradients of the sum of their squares."""
    leaves = {name: x.detach().requires_grad_(backward and x.is_floating_point()) for name, x in operands.items()}
    with torch.set_grad_enabled(backward):
        outputs = call(leaves)
    if not backward:
        return [x for x in (outputs if isinstance(outputs, tuple) else (outputs,)) if isinstance(x, Tensor)], []
    loss = torch.stack([x.double().square().sum() for x in tensors(outputs)]).sum()
    needed = [x for x in leaves.values() if x.requires_grad]
    return [x.detach() for x in tensors(outputs)], list(torch.autograd.grad(loss, needed))


def accuracy(bench: Bench, problem: Problem, backward: bool) -> float:
    """Largest deviation from the reference in float64, in units of each result's largest entry."""
    options = problem.options if problem.small_options is None else problem.small_options

    def kernel(x: dict[str, Tensor]) -> Any:
        return problem.function(**x, **options, implementation=bench.implementation)

    def reference(x: dict[str, Tensor]) -> Any:
        return problem.function(**x, **options, implementation="reference")

    wide = {name: x.double() if x.is_floating_point() else x for name, x in problem.small.items()}
    measured = evaluate(kernel, problem.small, backward)[1 if backward else 0]
    expected = evaluate(reference, wide, backward)[1 if backward else 0]
    return max(
        float((a.double() - b).abs().max() / b.abs().max().clamp_min(1e-30))
        for a, b in zip(measured, expected, strict=True)
    )


def timed(bench: Bench, call: Peer, operands: dict[str, Tensor], backward: bool) -> tuple[float, float]:
    """Seconds and MiB of a forward pass without gradients, or of a backward pass alone."""
    if not backward:

        def forward() -> None:
            with torch.no_grad():
                call(operands)

        return bench.seconds(forward), bench.memory(forward)
    leaves = {name: x.detach().requires_grad_(x.is_floating_point()) for name, x in operands.items()}
    outputs = tensors(call(leaves))
    needed = [x for x in leaves.values() if x.requires_grad]
    weights = [torch.ones_like(x) for x in outputs]

    def back() -> None:
        torch.autograd.grad(outputs, needed, weights, retain_graph=True, allow_unused=True)

    return bench.seconds(back), bench.memory(back)


def rows(bench: Bench, problem: Problem) -> Iterator[list[Any]]:
    """Forward and backward of one kernel, each beside every peer."""

    def call(x: dict[str, Tensor]) -> Any:
        return problem.function(**x, **problem.options, implementation=bench.implementation)

    for backward, work in ((False, problem.work), (True, problem.backward_work)):
        if not work:
            continue
        error = accuracy(bench, problem, backward)
        seconds, memory = timed(bench, call, problem.operands, backward)
        scale = 1e12 if problem.unit == "TFLOP/s" else 1e9
        rate = work / seconds / scale
        ceiling = bench.ceilings.get(problem.unit)
        start = [
            problem.kernel, problem.sizes, "backward" if backward else "forward", f"{error:.1e}",
            f"{1000 * seconds:.3f}", f"{memory:.0f}", f"{rate:.4g} {problem.unit}",
            "" if ceiling is None else f"{rate / ceiling:.0%}",
        ]  # fmt: skip
        peers = {} if bench.dry else problem.peers
        if not peers:
            yield [*start, "none", "", "", problem.aim]
        for name, peer in peers.items():
            try:
                other, _ = timed(bench, peer, problem.operands, backward)
            except torch.cuda.OutOfMemoryError:
                yield [*start, name, "out of memory", "", problem.aim]
                continue
            yield [*start, name, f"{1000 * other:.3f}", f"{other / seconds:.2f}", problem.aim]


def adaln(bench: Bench) -> Problem:
    """Tokens of a large diffusion transformer."""
    batch, tokens, width = bench.size(16, 2), bench.size(4096, 6), bench.size(1152, 16)

    def operands(batch: int, tokens: int) -> dict[str, Tensor]:
        wide, one = (batch, tokens, width), (batch, 1, width)
        shapes = {"x": wide, "shift": one, "scale": one, "gate": one, "branch": wide}
        return {name: bench.normal(*shape) for name, shape in shapes.items()}

    def plain(x: dict[str, Tensor]) -> Any:
        h = x["x"] + x["gate"] * x["branch"]
        return h, torch.nn.functional.layer_norm(h, (width,), eps=1e-5) * (1 + x["scale"]) + x["shift"]

    numbers = 2 * batch * tokens * width
    return Problem(
        "adaln_modulate", f"{batch} x {tokens} x {width} bfloat16", kernels.adaln_modulate, operands(batch, tokens),
        operands(2, 5), "GB/s", 4 * numbers, 6 * numbers, "85% of copy",
        peers={"torch.compile": bench.compiled(plain), "torch": plain},
    )  # fmt: skip


def pair(bench: Bench) -> Problem:
    """Latents of a large batch."""
    shape = (bench.size(256, 2), 16, bench.size(128, 4), bench.size(128, 4))
    t = torch.linspace(0.1, 0.9, shape[0], device=bench.device)
    coefficients = {"alpha": t, "sigma": 1 - t, "alpha_dot": torch.ones_like(t), "sigma_dot": -torch.ones_like(t)}

    def fused(x1: Tensor, seed: int, implementation: str) -> Any:
        wide = torch.float64 if x1.dtype == torch.float64 else torch.float32
        given = {name: value[: len(x1)].to(wide) for name, value in coefficients.items()}
        return kernels.flow_matching_pair(x1, **given, seed=seed, implementation=implementation)

    def plain(x: dict[str, Tensor]) -> Any:
        x1 = x["x1"]
        alpha, sigma, alpha_dot, sigma_dot = (c.to(x1.dtype)[:, None, None, None] for c in coefficients.values())
        x0 = torch.randn_like(x1)
        return alpha * x1 + sigma * x0, alpha_dot * x1 + sigma_dot * x0

    x1 = bench.normal(*shape)
    numbers = 3 * 2 * x1.numel()
    return Problem(
        "flow_matching_pair", f"{' x '.join(map(str, shape))} bfloat16", fused, {"x1": x1}, {"x1": x1[:2, :2]}, "GB/s",
        numbers, numbers, "85% of copy", {"seed": 0},
        peers={"torch.compile, torch.randn": bench.compiled(plain), "torch, torch.randn": plain},
    )  # fmt: skip


def attention(bench: Bench) -> Problem:
    """A video of 21 frames of latents with a window of 6 and a sink of 1."""
    heads, frame, frames = bench.size(12, 1), bench.size(1560, 5), bench.size(21, 4)
    tokens, dim = frame * frames, bench.size(128, 8)
    options = {"frame": frame, "window": bench.size(6, 2), "sink": 1}
    operands = {name: bench.normal(1, heads, tokens, dim) for name in "qkv"}
    small = {name: x[:, :1, : bench.size(300, 20)] for name, x in operands.items()}
    peers: dict[str, Peer] = {}
    if not bench.dry:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        def seen(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            query, key = i // frame, j // frame
            return (key <= query) & ((query - key < options["window"]) | (key < options["sink"]))

        block = create_block_mask(seen, None, None, tokens, tokens, device="cuda")
        flex = torch.compile(flex_attention)
        mask = kernels.block_causal_mask(tokens, **options, device=bench.device)
        sdpa = torch.nn.functional.scaled_dot_product_attention
        peers = {
            "FlexAttention": lambda x: flex(x["q"], x["k"], x["v"], block_mask=block),
            "SDPA with mask": lambda x: sdpa(x["q"], x["k"], x["v"], attn_mask=mask),
        }
    pairs = heads * kernels.visible_pairs(tokens, **options)
    return Problem(
        "block_causal_attention", f"{heads} heads, {frames} frames of {frame}, dim {dim}, bfloat16",
        kernels.block_causal_attention, operands, small, "TFLOP/s", 4.0 * dim * pairs, 14.0 * dim * pairs,
        "ratio at least 1", options, {"frame": 37, "window": 3, "sink": 1}, peers,
    )  # fmt: skip


def decoding(bench: Bench) -> Problem:
    """The newest frame against its cache."""
    heads, frame, slots, dim = bench.size(12, 1), bench.size(1560, 5), 7, bench.size(128, 8)
    table = torch.randperm(slots, generator=bench.generator, device=bench.device).int()[None]

    def operands(heads: int, frame: int) -> dict[str, Tensor]:
        pages = (slots, heads, frame, dim)
        return {"q": bench.normal(1, heads, frame, dim), "keys": bench.normal(*pages), "values": bench.normal(*pages)}

    def gathered(x: dict[str, Tensor]) -> Tensor:
        k, v = (x[name][table[0].long()].transpose(0, 1).flatten(1, 2)[None] for name in ("keys", "values"))
        return torch.nn.functional.scaled_dot_product_attention(x["q"], k, v)

    return Problem(
        "paged_attention", f"{heads} heads, {slots} pages of {frame}, dim {dim}, bfloat16", kernels.paged_attention,
        operands(heads, frame), operands(1, 33), "TFLOP/s", 4.0 * dim * heads * slots * frame**2,
        aim="ratio at least 1", options={"table": table}, peers={"SDPA on gathered pages": gathered},
    )  # fmt: skip


def linear(bench: Bench) -> Problem:
    """A long sequence through gated linear attention; bytes as counted in the kernel's docstring."""
    batch, heads, tokens, dim = bench.size(4, 1), bench.size(16, 2), bench.size(16384, 20), bench.size(64, 4)

    def operands(batch: int, tokens: int) -> dict[str, Tensor]:
        named = {name: bench.normal(batch, heads, tokens, dim) for name in "qkv"}
        return named | {"log_decay": -torch.rand(batch, heads, tokens, dim, device=bench.device) / 4}

    peers: dict[str, Peer] = {}
    if not bench.dry and find_spec("fla") is not None:
        from fla.ops.gla import chunk_gla

        def peer(x: dict[str, Tensor]) -> Any:
            q, k, v, g = (x[name].transpose(1, 2) for name in ("q", "k", "v", "log_decay"))  # (B, T, H, D)
            return chunk_gla(q, k, v, g)[0]

        peers = {"flash-linear-attention": peer}
    forward, backward = 2 * 7 * dim + 4 * 5 * dim, 2 * 11 * dim + 4 * 4 * dim  # vectors in bfloat16, in float32
    forward, backward = forward + 4 * dim**2 // 64 + 256, backward + 2 * 5 * dim**2 // 64 + 128  # states, scores
    return Problem(
        "gated_linear_attention", f"{batch} x {heads} heads x {tokens}, dim {dim}, bfloat16",
        kernels.gated_linear_attention, operands(batch, tokens), operands(1, 70), "GB/s",
        float(batch * heads * tokens * forward), float(batch * heads * tokens * backward), "ratio at least 1",
        peers=peers,
    )  # fmt: skip


def scan(bench: Bench) -> Problem:
    """A layer of a state-space model."""
    batch, tokens, channels, states = bench.size(8, 1), bench.size(4096, 20), bench.size(2048, 4), bench.size(16, 4)

    def operands(batch: int, tokens: int, channels: int) -> dict[str, Tensor]:
        return {
            "u": bench.normal(batch, tokens, channels),
            "delta": torch.nn.functional.softplus(bench.normal(batch, tokens, channels) - 3),
            "a": -bench.normal(channels, states).exp(),
            "b": bench.normal(batch, tokens, states),
            "c": bench.normal(batch, tokens, states),
            "d": bench.normal(channels),
        }

    peers: dict[str, Peer] = {}
    if not bench.dry and find_spec("mamba_ssm") is not None:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

        def peer(x: dict[str, Tensor]) -> Any:
            u, delta, b, c = (x[name].transpose(1, 2).contiguous() for name in ("u", "delta", "b", "c"))
            return selective_scan_fn(u, delta, x["a"].float(), b, c, x["d"].float())

        peers = {"mamba-ssm": peer}
    numbers = batch * tokens * channels
    return Problem(
        "selective_scan", f"{batch} x {tokens} x {channels}, {states} states, bfloat16", kernels.selective_scan,
        operands(batch, tokens, channels), operands(1, 50, 20 if not bench.dry else 4), "GB/s",
        (6 + states / 4) * numbers, (10 + states / 4 + states) * numbers, "ratio at least 1", peers=peers,
    )  # fmt: skip


def transport(bench: Bench) -> Problem:
    """Ten iterations between two clouds, for which the matrix of costs would take 1 GiB."""
    n, dim, iterations, epsilon = bench.size(16384, 30), 2, 10, 4.0
    x0 = bench.normal(n, dim, dtype=torch.float32)
    operands = {"x0": x0, "x1": bench.normal(n, dim, dtype=torch.float32) + 1}
    # a tolerance of one, the largest total variation, stops at the first look, after ten iterations
    options = {"epsilon": epsilon, "iterations": iterations, "tolerance": 1.0}

    def pot(x: dict[str, Tensor]) -> Any:
        import ot

        weights = torch.full((n,), 1 / n, device=bench.device)
        cost = ot.dist(x["x0"], x["x1"])
        return ot.bregman.sinkhorn_log(weights, weights, cost, epsilon, numItermax=iterations, stopThr=0, warn=False)

    def matrix(x: dict[str, Tensor]) -> Any:
        return kernels.sinkhorn(x["x0"], x["x1"], **options, implementation="reference")

    peers: dict[str, Peer] = {"reference, with the matrix": matrix}
    if find_spec("ot") is not None:
        peers["POT"] = pot
    half_steps = 2 * iterations + 1
    return Problem(
        "sinkhorn", f"n = m = {n}, dim {dim}, {iterations} iterations, float32", kernels.sinkhorn, operands,
        {name: x[:200] for name, x in operands.items()}, "Gpair/s", float(half_steps * n**2), aim="faster than POT",
        options=options, peers=peers,
    )  # fmt: skip


PROBLEMS: tuple[Callable[[Bench], Problem], ...] = (adaln, pair, linear, scan, attention, decoding, transport)


def main(arguments: list[str] | None = None) -> Table:
    """Run all problems and print the table; without --dry-run write it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="Time flowlib's kernels on a GPU.")
    parser.add_argument("--dry-run", action="store_true", help="small problems on the CPU through the references")
    dry = parser.parse_args(arguments).dry_run
    if not dry and not torch.cuda.is_available():
        parser.error("no CUDA device is available; --dry-run tests the plumbing on the CPU")
    bench = Bench(dry)
    title = "Kernels on a GPU" if not dry else "Dry run on the CPU: these numbers mean nothing"
    table = Table(title, "How close is each kernel to the card, and to its peer?", COLUMNS, reading=READING)
    for problem in PROBLEMS:
        table.rows.extend(rows(bench, problem(bench)))
    table.show()
    for unit, ceiling in bench.ceilings.items():
        print(f"  measured ceiling: {ceiling:.4g} {unit}")
    if not dry:
        save(bench, table)
    return table


def save(bench: Bench, table: Table) -> None:
    """Write the results."""
    record = {
        "command": "make bench-gpu",
        "date": date.today().isoformat(),
        "machine": {"GPU": torch.cuda.get_device_name(), "Python": platform.python_version()},
        "versions": {name: version(name) for name in PACKAGES},
        "ceilings": {unit: round(value, 1) for unit, value in bench.ceilings.items()},
        "tables": [asdict(table)],
    }
    RESULTS.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"\nwrote {RESULTS.relative_to(RESULTS.parent.parent.parent)}")


if __name__ == "__main__":
    main()
