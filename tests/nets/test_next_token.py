"""Next-token networks are causal, and decoding with a cache is the parallel pass."""

import pytest
import torch
from torch.func import jacrev

from flowlib import fields, nets, objectives, paths

PATH = paths.linear()


def trained_looking(**kwargs: int) -> nets.NextToken:
    """A network with no zero weight, so that nothing is hidden by a gate that is still closed."""
    torch.manual_seed(0)
    net = nets.NextToken(
        **{"size": 6, "channels": 1, "patch": 2, "width": 16, "depth": 2, "heads": 2, "head_width": 16, "head_depth": 2,
           "classes": 3, **kwargs}
    ).double()  # fmt: skip
    for parameter in net.parameters():
        parameter.data = torch.randn_like(parameter) * 0.4
    return net.requires_grad_(False)


def test_conditions_depend_on_exactly_the_earlier_tokens() -> None:
    """The Jacobian of z_i with respect to token j is zero if and only if j >= i."""
    net = trained_looking()
    tokens = torch.randn(1, 9, 4, dtype=torch.float64)
    jacobian = jacrev(lambda x: net.conditions(x, torch.tensor([1])))(tokens)[0, :, :, 0]  # [9, W, 9, 4]
    size = jacobian.abs().amax((1, 3))
    earlier = torch.arange(9)[:, None] > torch.arange(9)
    assert float(size[~earlier].max()) == 0.0
    assert float(size[earlier].min()) > 1e-9


def test_a_row_depends_on_its_own_noisy_token_and_the_earlier_clean_ones() -> None:
    net = trained_looking()
    x, clean = torch.randn(2, 9, 4, dtype=torch.float64)
    t = torch.rand(9, dtype=torch.float64)
    over_noisy, over_clean = (
        jacrev(lambda x, clean: net(x, t, clean=clean, y=torch.ones(9).long()), argnums=k)(x, clean).abs().amax((1, 3))
        for k in (0, 1)
    )
    assert float((over_noisy - torch.diag(over_noisy.diagonal())).max()) == 0.0
    assert float(over_noisy.diagonal().min()) > 0
    assert float(over_clean.triu().max()) == 0.0
    assert float(over_clean[torch.arange(9)[:, None] > torch.arange(9)].min()) > 0


@pytest.mark.parametrize("labels", [None, [0, 2, -1, 1]])
def test_cached_decoding_equals_the_parallel_pass(labels: list[int] | None) -> None:
    net = trained_looking()
    y = None if labels is None else torch.tensor(labels)
    tokens = torch.randn(4, 9, 4, dtype=torch.float64)
    caches, found = net.caches(4), []
    for i in range(9):
        found.append(net.advance(None if i == 0 else tokens[:, i - 1], caches, y))
    torch.testing.assert_close(torch.stack(found, 1), net.conditions(tokens, y), rtol=1e-10, atol=1e-12)


def test_draws_share_their_condition_and_average_their_losses() -> None:
    """Two noises a token: the rows are those of two passes with one noise each, and so is the mean of the loss."""
    one, two = trained_looking(), trained_looking(draws=2)
    images = torch.randn(3, 1, 6, 6, dtype=torch.float64)
    y = torch.tensor([0, 1, 2])
    rows, both = one.rows(images), two.rows(images)
    x0, t = torch.randn(len(both), 4, dtype=torch.float64), torch.rand(len(both), dtype=torch.float64)
    loss = {net.draws: objectives.flow_matching(fields.NetworkField(net, PATH)) for net in (one, two)}
    together = loss[2](x0, both, t=t, clean=both, y=y.repeat_interleave(18)).total
    apart = [loss[1](x0[k::2], rows, t=t[k::2], clean=rows, y=y.repeat_interleave(9)).total for k in (0, 1)]
    torch.testing.assert_close(together, torch.stack(apart).mean(), rtol=1e-12, atol=0)


def test_rows_and_images_are_inverse() -> None:
    net = trained_looking(draws=2)
    images = torch.randn(5, 1, 6, 6, dtype=torch.float64)
    assert torch.equal(net.images(net.rows(images)[::2].reshape(5, 9, 4)), images)


def test_the_first_rows_label_is_that_of_the_image() -> None:
    net = trained_looking()
    x, clean = torch.randn(2, 18, 4, dtype=torch.float64)
    y = torch.full((18,), -1)
    y[0] = 2
    t = torch.rand(18, dtype=torch.float64)
    expected = torch.cat([
        net(x[:9], t[:9], clean=clean[:9], y=torch.full((9,), 2)), net(x[9:], t[9:], clean=clean[9:])
    ])  # fmt: skip
    torch.testing.assert_close(net(x, t, clean=clean, y=y), expected, rtol=1e-12, atol=1e-12)


def test_a_fresh_network_predicts_zero_and_runs_in_sixteen_bits() -> None:
    net = nets.NextToken(size=6, channels=1, patch=2, width=16, depth=1, heads=2, head_width=16)
    x = torch.randn(9, 4)
    net.requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16):
        assert float(net(x, torch.rand(9), clean=x).abs().max()) == 0.0


@pytest.mark.bad_input
def test_bad_input() -> None:
    with pytest.raises(ValueError, match="patch must divide size, got 4 and 6"):
        nets.NextToken(size=6, patch=4)
    with pytest.raises(ValueError, match="draws positive"):
        nets.NextToken(size=6, patch=2, draws=0)
    net = trained_looking(draws=2)
    x = torch.zeros(18, 4, dtype=torch.float64)
    t = torch.zeros((), dtype=torch.float64)
    with pytest.raises(ValueError, match="whole images of 9 tokens times 2 draws, got 17 rows"):
        net(x[:17], t, clean=x[:17])
    with pytest.raises(ValueError, match="clean must have the shape of x"):
        net(x, t, clean=x[:9])
    with pytest.raises(ValueError, match="y must lie between"):
        net(x, t, clean=x, y=torch.full((18,), 3))
    caches = net.caches(1)
    for _ in range(9):
        net.advance(None, caches)
    with pytest.raises(ValueError, match="the image is finished"):
        net.advance(None, caches)
