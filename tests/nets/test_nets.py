"""Networks: one calling convention, conditions that matter, and the initialisations that their papers ask for."""

import pytest
import torch
from torch import nn

from flowlib import nets
from flowlib.nets.dit import image_to_patches, patches_to_image

IMAGES = {
    "mlp": lambda classes: nets.MLP((1, 8, 8), width=32, classes=classes),
    "unet": lambda classes: nets.UNet(channels=1, size=8, width=16, classes=classes),
    "dit": lambda classes: nets.DiT(size=8, channels=1, patch=2, width=32, depth=2, heads=4, classes=classes),
}


def shaken(net: nn.Module) -> nn.Module:
    """Random weights everywhere, so that zero-initialised layers do not hide anything."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return net.eval()


@pytest.fixture(params=sorted(IMAGES))
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def batch(n: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 1, 8, 8, generator=generator), torch.rand(n, generator=generator)


def test_output_has_the_shape_of_the_state(kind: str) -> None:
    x, t = batch()
    assert IMAGES[kind](None)(x, t).shape == x.shape
    assert IMAGES[kind](10)(x, t, y=torch.tensor([0, 9, -1, 3])).shape == x.shape


def test_a_single_time_is_the_same_as_equal_times(kind: str) -> None:
    net, (x, _) = shaken(IMAGES[kind](None)), batch()
    torch.testing.assert_close(net(x, torch.tensor(0.3)), net(x, torch.full((4,), 0.3)))


def test_samples_do_not_see_each_other(kind: str) -> None:
    net, (x, t) = shaken(IMAGES[kind](None)), batch()
    together = net(x, t)
    alone = torch.cat([net(x[i : i + 1], t[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_time_and_class_matter_and_none_is_the_null_class(kind: str) -> None:
    net, (x, t) = shaken(IMAGES[kind](10)), batch()
    null = net(x, t)
    torch.testing.assert_close(net(x, t, y=torch.full((4,), -1)), null)
    assert float((net(x, t, y=torch.full((4,), 3)) - null).abs().max()) > 1e-3
    assert float((net(x, 1 - t) - null).abs().max()) > 1e-3


def test_every_parameter_gets_a_gradient(kind: str) -> None:
    net, (x, t) = shaken(IMAGES[kind](10)), batch()
    net(x, t, y=torch.tensor([0, 1, 2, -1])).square().mean().backward()
    without = [name for name, p in net.named_parameters() if p.grad is None or not bool(p.grad.abs().any())]
    assert without == []


def test_networks_follow_their_dtype(kind: str) -> None:
    net, (x, t) = IMAGES[kind](10).double(), batch()
    assert net(x.double(), t.double(), y=torch.zeros(4, dtype=torch.long)).dtype == torch.float64


@pytest.mark.parametrize("name", ["unet", "dit"])
def test_image_networks_start_at_zero(name: str) -> None:
    x, t = batch()
    assert not IMAGES[name](10)(x, t).any()


def test_dit_block_is_the_identity_at_initialisation() -> None:
    h, condition = torch.randn(2, 9, 32), torch.randn(2, 1, 32)
    assert torch.equal(nets.DiTBlock(32, 4)(h, condition), h)


def test_patches_are_put_back_where_they_came_from() -> None:
    net = nets.DiT(size=8, channels=3, patch=4, width=16, depth=1, heads=2)
    x = torch.randn(2, 3, 8, 8)
    tokens = image_to_patches(x, net.patch)
    assert tokens.shape == (2, 4, 48)
    torch.testing.assert_close(tokens[0, 1], x[0, :, :4, 4:].flatten())  # second patch of the first row
    assert torch.equal(patches_to_image(tokens, net.event, net.patch), x)


def test_dit_positions_are_distinct() -> None:
    positions = nets.DiT(size=8, patch=1, width=32, heads=4).positions
    distances = torch.cdist(positions, positions) + 10 * torch.eye(64)
    assert float(distances.min()) > 0.1


def test_attention_is_equivariant_to_the_order_of_tokens() -> None:
    layer, x = nets.SelfAttention(16, 4), torch.randn(2, 5, 16)
    order = torch.tensor([3, 1, 4, 0, 2])
    torch.testing.assert_close(layer(x[:, order]), layer(x)[:, order], rtol=1e-5, atol=1e-5)


def test_time_features_tell_all_times_apart() -> None:
    embed = nets.TimeEmbedding(8)
    t = torch.linspace(0, 1, 200)
    angles = t[:, None] * embed.frequencies
    features = torch.cat([angles.cos(), angles.sin()], 1)
    distances = torch.cdist(features, features) + 10 * torch.eye(200)
    assert float(distances.min()) > 0.01


def test_a_shared_time_is_embedded_once() -> None:
    embed, rows = nets.TimeEmbedding(8), []
    embed.layers.register_forward_pre_hook(lambda layers, inputs: rows.append(len(inputs[0])))
    t = torch.tensor(0.3).expand(5)
    once, each = embed(t), embed(t.clone())
    assert rows == [1, 5]
    torch.testing.assert_close(once, each)
    slopes = [torch.autograd.grad(out.square().sum(), list(embed.parameters())) for out in (once, each)]
    torch.testing.assert_close(*slopes)


@pytest.mark.parametrize("transform", [torch.func.grad, lambda f: lambda t: torch.autograd.grad(f(t), t)[0]])
def test_equal_times_keep_their_own_gradients(transform) -> None:
    embed, weights = nets.TimeEmbedding(8), torch.arange(3.0)
    times = torch.tensor(0.3).expand(3), torch.full((3,), 0.3)
    slopes = [transform(lambda t: (weights[:, None] * embed(t)).sum())(t.detach().requires_grad_()) for t in times]
    torch.testing.assert_close(*slopes)
    torch.testing.assert_close(slopes[0], slopes[0][1] * weights)


def test_unet_of_three_levels_at_28_pixels() -> None:
    net = nets.UNet(channels=1, size=28, width=8, multipliers=(1, 2, 2))
    assert net(torch.zeros(1, 1, 28, 28), torch.tensor(0.5)).shape == (1, 1, 28, 28)


@pytest.mark.bad_input
class TestBadInput:
    def test_event_shape(self, kind: str) -> None:
        with pytest.raises(ValueError, match=r"x must have event shape \[1, 8, 8\], got \[1, 7, 8\]"):
            IMAGES[kind](None)(torch.zeros(2, 1, 7, 8), torch.tensor(0.5))

    def test_labels(self, kind: str) -> None:
        x, t = batch()
        with pytest.raises(ValueError, match="built without classes"):
            IMAGES[kind](None)(x, t, y=torch.zeros(4, dtype=torch.long))
        net = IMAGES[kind](10)
        with pytest.raises(ValueError, match=r"between -1 .* and 9, got 0 to 10"):
            net(x, t, y=torch.tensor([0, 1, 2, 10]))
        with pytest.raises(TypeError, match="integer labels"):
            net(x, t, y=torch.zeros(4))
        with pytest.raises(ValueError, match=r"y must have shape \[4\]"):
            net(x, t, y=torch.zeros(3, dtype=torch.long))

    def test_dtypes_and_devices(self, kind: str) -> None:
        x, t = batch()
        with pytest.raises(TypeError, match=r"x must have the dtype of the network's parameters, torch\.float32"):
            IMAGES[kind](None)(x.double(), t)
        with pytest.raises(TypeError, match="t must have the dtype"):
            IMAGES[kind](None)(x, t.double())
        with pytest.raises(ValueError, match="t must be on the network's device"):
            IMAGES[kind](None)(x, t.to("meta"))

    def test_times(self, kind: str) -> None:
        x, _ = batch()
        with pytest.raises(ValueError, match=r"t must be 0-d or of shape \[4\]"):
            IMAGES[kind](None)(x, torch.zeros(3))

    @pytest.mark.parametrize(
        "make",
        [
            lambda: nets.UNet(size=7),
            lambda: nets.UNet(width=12),
            lambda: nets.DiT(size=9, patch=2),
            lambda: nets.DiT(width=30),
            lambda: nets.SelfAttention(10, 3),
            lambda: nets.MLP(dim=0),
            lambda: nets.MLP(dim=2, depth=0),
        ],
    )
    def test_sizes(self, make) -> None:
        with pytest.raises(ValueError, match="must"):
            make()
