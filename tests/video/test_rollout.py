"""Frame by frame with a cache is the same as solving every frame from the whole past, computed anew each time."""

import pytest
import torch
from torch import Tensor, nn

from flowlib import control, data, fields, nets, paths, solvers
from flowlib.video import rollout

EVENT = (1, 4, 6)


def field(frames: int, **options: int | None) -> fields.NetworkField:
    """A rectangular network with random weights everywhere, in float64."""
    net = nets.VideoDiT(frames, size=EVENT[1:], patch=2, width=16, depth=2, heads=2, classes=3, **options)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return fields.NetworkField(net.double(), paths.linear())


def noise(clips: int, frames: int, seed: int = 1) -> Tensor:
    return torch.randn(clips, frames, *EVENT, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def recomputed(whole: fields.NetworkField, x0: Tensor, y: Tensor, steps: int, known: int = 0) -> Tensor:
    """No cache: the network of a clip's length sees all finished frames at every step of the solver."""
    clips, frames = x0.shape[:2]
    out = x0.clone()
    labels = y.repeat_interleave(frames)
    for f in range(known, frames):
        finished = out.clone()

        def velocity(x: Tensor, t: Tensor, f: int = f, finished: Tensor = finished) -> Tensor:
            rows = finished.clone()
            rows[:, f] = x
            times = t.expand(clips * frames)
            got = whole.net(rows.flatten(0, 1), times, y=labels, clean=finished.flatten(0, 1))
            return got.unflatten(0, (clips, frames))[:, f]

        out[:, f] = solvers.ode(velocity, x0[:, f].contiguous(), steps=steps, method="heun").end
    return out


@pytest.mark.parametrize("options", [{}, {"window": 2}, {"window": 2, "sink": 1}])
def test_rollout_with_a_cache_equals_recomputing_everything(options: dict[str, int]) -> None:
    """Seven frames by a network built for two: the cache rolls three times over."""
    x0, y = noise(2, 7), torch.tensor([0, 2])
    expected = recomputed(field(7, **options), x0, y, steps=3)
    got = rollout(field(2, **options), x0, steps=3, y=y)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)
    assert float((got - x0).abs().max()) > 0.1


def test_given_frames_stay_and_are_continued() -> None:
    x0, y = noise(2, 5), torch.tensor([1, 1])
    given = noise(2, 3, seed=5)
    got = rollout(field(5), x0, steps=2, y=y, given=given)
    assert torch.equal(got[:, :3], given)
    start = torch.cat([given, x0[:, 3:]], 1)
    torch.testing.assert_close(got, recomputed(field(5), start, y, steps=2, known=3), rtol=0, atol=1e-10)


def test_guidance_of_one_is_no_guidance_and_another_grid_another_clip() -> None:
    x0, y = noise(1, 3), torch.tensor([1])
    plain = rollout(field(3), x0, steps=2, y=y)
    same = rollout(field(3), x0, steps=2, y=y, guide=lambda own: control.classifier_free(own, 1.0))
    torch.testing.assert_close(same, plain, rtol=0, atol=1e-12)
    more = rollout(field(3), x0, steps=2, y=y, guide=lambda own: control.classifier_free(own, 3.0))
    assert float((more - plain).abs().max()) > 1e-3
    grid = rollout(field(3), x0, times=torch.linspace(0, 1, 3, dtype=torch.float64), y=y)
    torch.testing.assert_close(grid, plain, rtol=0, atol=1e-12)


def test_rectangular_patches_are_the_picture() -> None:
    from flowlib.nets.dit import image_to_patches, patches_to_image, sine_cosine_2d

    x = torch.randn(3, 2, 4, 6)
    tokens = image_to_patches(x, 2)
    assert torch.equal(tokens[0, 4], x[0, :, 2:4, 2:4].flatten())  # second row, second of three columns
    assert torch.equal(patches_to_image(tokens, (2, 4, 6), 2), x)
    places = sine_cosine_2d(2, 3, 8)
    assert places.unique(dim=0).shape == (6, 8)
    assert torch.equal(places[0, :4], places[2, :4])  # one row
    assert torch.equal(places[1, 4:], places[4, 4:])  # one column


def test_bouncing_shapes_keep_their_speed_and_stay_in_the_box() -> None:
    """Away from walls second differences vanish, at a wall one component turns round."""
    clips, y, centres = data.clips.bouncing(
        200, frames=12, size=16, classes=4, speed=0.2, generator=torch.Generator().manual_seed(0)
    )
    assert clips.shape == (200, 12, 1, 16, 16)
    assert set(y.tolist()) == {0, 1, 2, 3}
    assert float(centres.abs().max()) <= 0.5
    steps = centres.diff(dim=1)
    length = steps.norm(dim=-1)
    free = (centres.abs() < 0.3).all(-1)
    free = free[:, :-1] & free[:, 1:]
    torch.testing.assert_close(length[free], torch.full_like(length[free], 0.2), rtol=0, atol=1e-5)
    assert float(length.max()) < 0.2 + 1e-5
    torch.testing.assert_close(data.clips.draw(centres, y[:, None].expand(200, 12), 16), clips)


@pytest.mark.parametrize("label", range(4))
def test_a_drawn_shape_has_its_centre_of_mass_at_its_centre(label: int) -> None:
    centre = torch.tensor([[0.13, -0.21], [0.0, 0.3]], dtype=torch.float64)
    mass = (data.clips.draw(centre, torch.full((2,), label), 64) + 1)[:, 0]
    axis = (torch.arange(64) + 0.5) / 32 - 1
    got = torch.stack([(mass.sum(k) * axis).sum(-1) / mass.sum((1, 2)) for k in (2, 1)], -1)
    torch.testing.assert_close(got, centre, rtol=0, atol=0.01)


@pytest.mark.bad_input
def test_bad_input() -> None:
    with pytest.raises(TypeError, match="must have a VideoDiT as its network, got Linear"):
        rollout(fields.NetworkField(nn.Linear(2, 2), paths.linear()), noise(1, 2))
    with pytest.raises(ValueError, match=r"x0 must have shape \[clips, frames, 1, 4, 6\]"):
        rollout(field(2), noise(1, 2)[:, 0])
    with pytest.raises(ValueError, match="given must hold first frames"):
        rollout(field(2), noise(1, 2), given=noise(1, 3))
    with pytest.raises(ValueError, match="frames"):
        rollout(field(2), noise(1, 2)[:, :0])
    with pytest.raises(ValueError, match="patch must divide size"):
        nets.VideoDiT(2, size=(8, 9), patch=2)
    with pytest.raises(ValueError, match=r"classes must lie in 1\.\.4"):
        data.clips.bouncing(2, classes=5)
    with pytest.raises(ValueError, match="speed"):
        data.clips.bouncing(2, speed=0)
