"""Saved tensors are counted: a storage once while it is held, and nothing after it is let go."""

import torch

from flowlib.metrics import SavedTensors


def chain(x: torch.Tensor, length: int) -> torch.Tensor:
    for _ in range(length):
        x = x.exp()  # saves its result
    return x.sum()


def test_a_chain_holds_all_its_links_and_a_loop_that_differentiates_each_holds_one() -> None:
    x = torch.zeros(100, requires_grad=True)
    with SavedTensors() as saved:
        chain(0.1 * x, 3)
    assert saved.count == 3
    assert saved.peak == 3 * 400
    with SavedTensors() as saved:
        for _ in range(3):
            torch.autograd.grad(chain(x, 1), x)
    assert saved.count == 3
    assert saved.peak == 400


def test_gradients_are_not_changed() -> None:
    x = torch.linspace(-1, 1, 7, dtype=torch.float64).requires_grad_()
    (plain,) = torch.autograd.grad(chain(x, 2), x)
    with SavedTensors():
        (counted,) = torch.autograd.grad(chain(x, 2), x)
    assert torch.equal(plain, counted)


def test_weights_can_be_left_out_and_activations_of_a_linear_layer_are_what_remains() -> None:
    layer = torch.nn.Linear(10, 20, dtype=torch.float64)
    x = torch.ones(3, 10, dtype=torch.float64, requires_grad=True)
    with SavedTensors(ignore=layer.parameters()) as saved:
        layer(x).sum()
    assert saved.peak == 3 * 10 * 8  # the input, for the gradient of the weight
    layer.requires_grad_(False)
    with SavedTensors(ignore=layer.parameters()) as saved:
        layer(x).sum()
    assert saved.peak == 0  # the gradient of the input needs the weight alone
