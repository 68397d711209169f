"""Causal networks: no frame sees a later one, and going frame by frame with a cache gives what whole clips give."""

import pytest
import torch
from torch import nn

from flowlib import fields, nets, objectives, paths
from flowlib.nets.transformer import rotate

FRAMES = 6


def shaken(net: nn.Module) -> nn.Module:
    """Random weights everywhere, in float64."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return net.double()


def video(**options: int | None) -> nets.VideoDiT:
    return shaken(nets.VideoDiT(FRAMES, size=4, patch=2, width=16, depth=3, heads=2, classes=3, **options))


def clips(n: int = 2, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Frames, times and labels of `n` clips."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n * FRAMES, 1, 4, 4, generator=generator, dtype=torch.float64)
    t = torch.rand(n * FRAMES, generator=generator, dtype=torch.float64)
    return x, t, torch.arange(n).repeat_interleave(FRAMES)


WINDOWS = [{}, {"window": 2}, {"window": 2, "sink": 1}]


@pytest.mark.parametrize("options", WINDOWS)
def test_a_frame_depends_on_the_frames_of_its_window_and_no_other(options: dict[str, int]) -> None:
    """One layer, so that nothing reaches further through other frames."""
    net = shaken(nets.VideoDiT(FRAMES, size=4, patch=2, width=16, depth=1, heads=2, **options))
    x, t, _ = clips(1)
    jacobian = torch.autograd.functional.jacobian(lambda z: net(z, t), x)
    moved = jacobian.abs().sum((1, 2, 3, 5, 6, 7)) > 1e-12
    frame = torch.arange(FRAMES)
    back = frame[:, None] - frame
    window, sink = options.get("window", FRAMES), options.get("sink", 0)
    assert torch.equal(moved, (back >= 0) & ((back < window) | (frame < sink)))


@pytest.mark.parametrize("options", WINDOWS)
def test_frame_by_frame_with_a_cache_equals_teacher_forcing(options: dict[str, int]) -> None:
    """The noisy frame sees the clean frames before it, in the cache or in the mask."""
    net, (x, t, y), (clean, _, _) = video(**options), clips(), clips(seed=2)
    whole = net(x, t, y=y, clean=clean).reshape(2, FRAMES, 1, 4, 4)
    caches = net.caches(2, slots=FRAMES)
    frames, times, known = (value.reshape(2, FRAMES, *value.shape[1:]) for value in (x, t, clean))
    for f in range(FRAMES):
        for _ in range(2):  # a solver looks at a frame many times
            got = net.predict(frames[:, f], times[:, f], caches, y=y[::FRAMES])
            torch.testing.assert_close(got, whole[:, f], rtol=0, atol=1e-10)
        net.remember(known[:, f], caches, y=y[::FRAMES])


def test_clean_frames_at_time_one_make_both_kinds_of_training_agree() -> None:
    """The last frame noisy, all others clean: diffusion forcing and teacher forcing are the same function there."""
    net, (x, _, y) = video(), clips()
    t = torch.ones(2 * FRAMES, dtype=torch.float64)
    t[FRAMES - 1 :: FRAMES] = 0.3
    forced = net(x, t, y=y, clean=x)[FRAMES - 1 :: FRAMES]
    torch.testing.assert_close(net(x, t, y=y)[FRAMES - 1 :: FRAMES], forced, rtol=0, atol=1e-10)


def test_a_rollout_past_the_cache_rolls() -> None:
    """With a window, frame 30 is as well defined as frame 3: relative positions, and old pages overwritten."""
    net = shaken(nets.VideoDiT(2, size=4, patch=2, width=16, depth=1, heads=2, window=2))
    same = torch.randn(1, 1, 4, 4, dtype=torch.float64)
    caches, outputs = net.caches(1), []
    for _ in range(30):
        outputs.append(net.predict(same, torch.tensor(0.5, dtype=torch.float64), caches))
        net.remember(same, caches)
    torch.testing.assert_close(outputs[29], outputs[2], rtol=0, atol=1e-5)  # angles in float32
    assert float((outputs[0] - outputs[2]).abs().max()) > 1e-3


def test_rotary_products_depend_on_the_distance_only() -> None:
    q, k = torch.randn(2, 5, 8, dtype=torch.float64)
    one = rotate(q, torch.arange(5)) @ rotate(k, torch.arange(5)).mT
    two = rotate(q, torch.arange(5) + 7) @ rotate(k, torch.arange(5) + 7).mT
    torch.testing.assert_close(one, two, rtol=0, atol=1e-5)
    torch.testing.assert_close(rotate(q, torch.arange(5)).norm(dim=1), q.norm(dim=1))


def test_next_token_decoding_equals_the_causal_pass() -> None:
    net = shaken(nets.BlockTransformer(width=16, depth=2, heads=2, frame=1))
    h = torch.randn(3, 7, 16, dtype=torch.float64)
    condition = torch.randn(3, 7, 16, dtype=torch.float64)
    whole, caches = net(h, condition), net.caches(3, slots=7)
    for i in range(7):
        got = net.step(h[:, i : i + 1], condition[:, i : i + 1], caches, keep=True)
        torch.testing.assert_close(got[:, 0], whole[:, i], rtol=0, atol=1e-10)


def test_a_condition_of_a_block_is_that_condition_for_each_of_its_tokens() -> None:
    net = shaken(nets.BlockTransformer(width=16, depth=2, heads=2, frame=3))
    h, condition = torch.randn(2, 12, 16, dtype=torch.float64), torch.randn(2, 4, 16, dtype=torch.float64)
    of_tokens = torch.stack([condition[:, i // 3] for i in range(12)], 1)
    torch.testing.assert_close(net(h, condition), net(h, of_tokens), rtol=0, atol=1e-12)
    torch.testing.assert_close(
        net(h, condition[:, :1]), net(h, condition[:, :1].expand(-1, 12, -1)), rtol=0, atol=1e-12
    )


def test_every_weight_of_the_video_network_gets_a_gradient_under_both_kinds_of_forcing() -> None:
    net, (x, _, y) = video().float(), clips()
    x = x.float()
    objective = objectives.flow_matching(fields.NetworkField(net, paths.linear()))
    for conditions in ({"y": y}, {"y": y, "clean": x}):
        net.zero_grad()
        objective(torch.randn_like(x), x, **conditions).total.backward()
        for name, parameter in net.named_parameters():
            assert parameter.grad is not None, name
            assert float(parameter.grad.abs().max()) > 0, name


@pytest.mark.bad_input
def test_bad_input() -> None:
    net, (x, t, y) = video(), clips()
    with pytest.raises(ValueError, match="whole clips of 6 frames, got 5 rows"):
        net(x[:5], t[:5])
    with pytest.raises(ValueError, match="clean must have the shape of x"):
        net(x, t, clean=x[:6])
    with pytest.raises(ValueError, match="y must have shape"):
        net(x, t, y=y[:6])
    with pytest.raises(ValueError, match="slots must be given"):
        net.caches(2)
    with pytest.raises(ValueError, match="patch must divide size"):
        nets.VideoDiT(2, size=8, patch=3)
    with pytest.raises(ValueError, match="even multiple of heads"):
        nets.CausalBlock(6, 2)
    with pytest.raises(ValueError, match="whole blocks of 3 tokens, got 4"):
        nets.BlockTransformer(8, 1, 2, frame=3)(torch.zeros(1, 4, 8), torch.zeros(1, 1, 8))
    with pytest.raises(ValueError, match="equal shares of 6 tokens, got 4"):
        nets.BlockTransformer(8, 1, 2, frame=3)(torch.zeros(1, 6, 8), torch.zeros(1, 4, 8))
    caches = net.caches(1, slots=1)
    net.remember(x[:1], caches)
    with pytest.raises(ValueError, match="the cache is full"):
        net.remember(x[:1], caches)
    with pytest.raises(ValueError, match="no frame to drop"):
        net.caches(1, slots=1)[0].drop()
