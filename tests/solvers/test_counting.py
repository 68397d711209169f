"""Every solver counts what the field says a call costs, and that is what the networks are called."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from flowlib import paths, solvers
from flowlib.control import guidance
from flowlib.fields import FunctionField, FunctionFlowMap

X0 = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
TIMES = torch.linspace(0.05, 0.95, 8, dtype=torch.float64)
SAMPLERS = {name: lambda field, name=name: solvers.ode(field, X0, times=TIMES, method=name) for name in solvers.METHODS}
SAMPLERS |= {
    "exponential_sde": lambda field: solvers.exponential_sde(field, X0, times=TIMES, order=2),
    "adaptive_exponential": lambda field: solvers.adaptive_exponential(field, X0, end=0.9),
    "mr_sampler, data": lambda field: solvers.mr_sampler(field, X0, times=TIMES),
    "mr_sampler, noise": lambda field: solvers.mr_sampler(field, X0, times=TIMES, form="noise", nu=1.0, keep=False),
    "ancestral": lambda field: solvers.ancestral(field, X0, times=TIMES),
    "sde": lambda field: solvers.sde(field, X0, times=TIMES, eta="reverse"),
    "predictor_corrector": lambda field: solvers.predictor_corrector(field, X0, times=TIMES),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_guided_field_counts_each_call_of_its_terms(name: str) -> None:
    """Guidance in the middle of time only, so that some calls cost two evaluations and some one."""
    calls = []

    def term(value: float) -> FunctionField:
        def predict(x: Tensor, t: Tensor) -> Tensor:
            calls.append(float(t))
            return torch.full_like(x, value)

        return FunctionField(predict, paths.vp(), predicts="data")

    field = guidance.guided(term(0.5), term(-0.5), guidance.interval(2.0, 0.3, 0.6))
    run: Callable = SAMPLERS[name]
    assert run(field).nfe == len(calls)
    assert len(calls) > len(set(calls))  # some times were asked twice


def test_a_flow_map_counts_what_it_says() -> None:
    class Dear(FunctionFlowMap):
        def evaluations(self, t: Tensor) -> int:
            return 3

    assert solvers.jumps(Dear(lambda x, s, t: x, paths.linear()), X0, steps=4).nfe == 12
