"""Compile every kernel for a GPU of compute capability 9.0, without one, and print what it needs as JSON.

Run by tests/kernels/test_compilation.py in a process of its own: compiling and interpreting exclude each other. Tiles
are those that a large bfloat16 problem gets; strides of last axes are one and addresses are aligned, as they are there.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from flowlib.kernels._triton import adaln, block_causal, flow_pair, linear_attention, scan, transport

PTXAS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
F32 = tl.float32
ALIGNED = {"width", "dim", "channels", "size", "x1_b", "n_keys", "n_values"} | {
    f"{x}_{axis}"
    for x in ("x", "branch", "h", "dh", "dy", "u", "delta", "b", "c", "q", "k", "v", "g", "o", "do")
    for axis in "bhtp"
}


def kernels() -> dict[str, tuple[Any, ...]]:
    """Name: kernel, types of arguments that are not int32, constants, warps and, if not three, stages."""
    half = "*bf16"
    heads = {"COMPUTE": F32, "OPERAND": tl.bfloat16, "DIM": 128}
    attention_backward = dict.fromkeys(("q", "k", "v", "do", "dq", "dk", "dv"), half)
    attention_backward |= dict.fromkeys(("lse", "delta"), "*fp32") | {"scale": "fp32", "root": "fp32"}
    linear = dict.fromkeys(("q", "k", "v", "do", "o", "dq", "dk", "dv", "scores", "states", "dstates"), half)
    linear |= dict.fromkeys(("decay", "initial", "final", "dinitial", "dfinal", "dlog_decay"), "*fp32") | {
        "scale": "fp32"
    }
    ones = dict.fromkeys(("q_d", "k_d", "v_d", "do_d"), 1)
    walk = {"COMPUTE": F32, "OPERAND": tl.bfloat16, "CHUNK": 64, "KEYS": 64, "VALUES": 64, "LEVELS": 6}
    local = walk | {"KEYS": 128}  # kernels that need all features of a key
    scan_constants = {"COMPUTE": F32, "CHUNK": scan.CHUNK, "CHANNELS": scan.CHANNELS, "STATES": 16}
    return {
        "adaln forward": (
            adaln.forward_kernel,
            dict.fromkeys(("x", "branch", "gate", "shift", "scale", "h", "y"), half) | {"eps": "fp32"},
            dict.fromkeys(("x_w", "branch_w", "gate_w", "shift_w", "scale_w"), 1)
            | {"GATED": True, "COMPUTE": F32, "BLOCK": 2048},
            adaln.warps(2048),
        ),
        "adaln backward": (
            adaln.backward_kernel,
            dict.fromkeys(("h", "branch", "gate", "scale", "dh", "dy", "dx", "dbranch"), half)
            | {"sums": "*fp32", "eps": "fp32"},
            dict.fromkeys(("h_w", "branch_w", "gate_w", "scale_w", "dh_w", "dy_w"), 1)
            | {"GATED": True, "COMPUTE": F32, "BLOCK": 2048, "ROWS": adaln.ROWS},
            adaln.warps(2048),
        ),
        "pair forward": (
            flow_pair.pair_kernel,
            {"x1": half, "table": "*fp32", "x_t": half, "v": half, "seed": "i64"},
            {"COMPUTE": F32, "GROUPS": flow_pair.GROUPS},
            4,
        ),
        "pair backward": (
            flow_pair.pair_backward_kernel,
            {"table": "*fp32", "dx_t": half, "dv": half, "dx1": half},
            {"COMPUTE": F32, "BLOCK": 1024},
            4,
        ),
        "attention forward": (
            block_causal.forward_kernel,
            dict.fromkeys(("q", "k", "v", "o"), half) | {"lse": "*fp32", "scale": "fp32"},
            dict.fromkeys(("q_d", "k_d", "v_d"), 1) | heads | {"ROWS": 128, "COLUMNS": 64},
            8,
        ),
        "attention query gradient": (
            block_causal.query_gradient_kernel,
            attention_backward,
            dict.fromkeys(("q_d", "k_d", "v_d", "do_d"), 1) | heads | {"ROWS": 128, "COLUMNS": 64},
            8,
        ),
        "attention key gradient": (
            block_causal.key_value_gradient_kernel,
            attention_backward,
            dict.fromkeys(("q_d", "k_d", "v_d", "do_d"), 1) | heads | {"ROWS": 128, "COLUMNS": 64},
            8,
            2,
        ),
        "attention paged": (
            block_causal.paged_kernel,
            dict.fromkeys(("q", "keys", "values", "o"), half) | {"table": "*i32", "scale": "fp32"},
            dict.fromkeys(("q_d", "k_d", "v_d"), 1) | heads | {"ROWS": 128, "COLUMNS": 64},
            8,
        ),
        "linear states": (linear_attention.state_kernel, linear, ones | walk, 8),
        "linear scores": (linear_attention.score_kernel, linear, ones | local, 8),
        "linear outputs": (linear_attention.output_kernel, linear, ones | local, 8),
        "linear state gradient": (linear_attention.state_gradient_kernel, linear, ones | walk, 8),
        "linear value gradient": (linear_attention.value_gradient_kernel, linear, ones | local, 8),
        "linear query and key gradient": (linear_attention.query_key_gradient_kernel, linear, ones | walk, 8),
        "scan forward": (
            scan.forward_kernel,
            dict.fromkeys(("u", "delta", "a", "b", "c", "d", "y"), half) | {"states": "*fp32"},
            dict.fromkeys(("u_c", "delta_c", "a_n", "b_n", "c_n", "d_c"), 1) | scan_constants,
            4,
        ),
        "scan backward": (
            scan.backward_kernel,
            dict.fromkeys(("u", "delta", "a", "b", "c", "d", "dy", "du", "ddelta"), half)
            | dict.fromkeys(("states", "da", "db", "dc", "dd"), "*fp32"),
            dict.fromkeys(("u_c", "delta_c", "a_n", "b_n", "c_n", "d_c", "dy_c"), 1) | scan_constants,
            8,
        ),
        "sinkhorn softmin": (
            transport.softmin_kernel,
            dict.fromkeys(("x", "y", "shift", "out"), "*fp32") | {"inverse_epsilon": "fp32"},
            {"COMPUTE": F32, "TILE": transport.TILE},
            4,
        ),
        "sinkhorn gradient": (
            transport.gradient_kernel,
            dict.fromkeys(("x", "y", "row", "shift", "grad"), "*fp32") | {"inverse_epsilon": "fp32"},
            {"COMPUTE": F32, "TILE": transport.TILE, "FEATURES": 16},
            4,
        ),
    }


def compiled(
    kernel: Any, types: dict[str, str], constants: dict[str, Any], warps: int, stages: int = 3
) -> dict[str, Any]:
    """Registers, bytes spilled, bytes of shared memory, and whether tensor cores multiply whole warp groups."""
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in kernel.arg_names}
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(kernel.arg_names)
        if signature[name].startswith("*") or (signature[name] == "i32" and name in ALIGNED)
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    code = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps, "num_stages": stages})
    with tempfile.TemporaryDirectory() as folder:
        ptx = Path(folder, "kernel.ptx")
        ptx.write_text(code.asm["ptx"])
        command = [PTXAS, "-v", "--gpu-name", "sm_90a", ptx, "-o", Path(folder, "kernel.cubin")]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    (registers,) = re.findall(r"Used (\d+) registers", report)
    return {
        "registers": int(registers),
        "threads": 32 * warps,
        "spilled": sum(map(int, re.findall(r"(\d+) bytes spill (?:stores|loads)", report))),
        "shared": code.metadata.shared,
        "wgmma": "wgmma.mma_async" in code.asm["ptx"],
    }


if __name__ == "__main__":
    names = sys.argv[1:]
    chosen = {name: spec for name, spec in kernels().items() if not names or any(part in name for part in names)}
    with tempfile.TemporaryDirectory() as folder:
        triton.knobs.cache.dir = folder
        print(json.dumps({name: compiled(*spec) for name, spec in chosen.items()}, indent=1))
