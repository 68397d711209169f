"""The video recipe: its smoke run is the same on one and two processes, and says what is wrong before work is lost."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("lightning_fabric", reason="lightning-fabric is not installed")
av = pytest.importorskip("av", reason="PyAV is not installed")

from flowlib import kernels, metrics
from flowlib.data.shards import Shards, ShardWriter, write_index
from flowlib.recipes import _clip_evaluation, _clips, _evaluation, video_flow
from flowlib.training import distributed
from flowlib.training.distributed import Run, read_log

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole pipeline by one process."""
    folder = tmp_path_factory.mktemp("smoke") / "one"
    video_flow.main(["--smoke", str(folder)])
    return folder


@pytest.mark.slow
def test_two_processes_give_the_curve_the_clips_and_the_figures_of_one(one: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "flowlib.recipes.video_flow", "--smoke", str(tmp_path / "two")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr
    two = tmp_path / "two"
    a, b = (torch.tensor(read_log(folder / "run")["loss"]) for folder in (one, two))
    assert len(a) == 8
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    data = [Shards(folder / "clips").__getitems__(list(range(32))) for folder in (one, two)]
    for name in ("clip", "y"):
        assert torch.equal(data[0][name], data[1][name])
    mine, theirs = (Shards(folder / "samples").__getitems__(list(range(12))) for folder in (one, two))
    order = theirs["number"].argsort()
    assert torch.equal(mine["y"], theirs["y"][order])
    assert int((mine["clip"].int() - theirs["clip"][order].int()).abs().max()) <= 1  # rounding to 8 bits
    figures = [json.loads((folder / "samples" / "evaluation.json").read_text()) for folder in (one, two)]
    assert figures[0]["fvd"] == pytest.approx(figures[1]["fvd"], rel=0.02)


def test_smoke_run_resumed_once_and_left_what_it_should(one: Path) -> None:
    assert read_log(one / "run")["step"] == list(range(1, 9))
    assert {path.name for path in (one / "run" / "checkpoints").iterdir()} == {"step-000000004", "step-000000008"}
    record = json.loads((one / "run" / "weights.json").read_text())
    assert (record["recipe"], record["step"], record["config"]["forcing"]) == ("video_flow", 8, "teacher")
    samples = Shards(one / "samples")
    assert samples.fields["clip"] == {"shape": [9, 3, 16, 16], "dtype": "U8"}  # longer than the six of the training
    assert samples.record["window"] == 3
    back = _clips.read(one / "samples" / "000001.mp4", 9, 8, 16, 16)
    assert back.shape == (1, 9, 3, 16, 16)
    figures = json.loads((one / "samples" / "evaluation.json").read_text())
    assert len(figures["drift"]) == 9
    assert figures["fvd_end"] > 0


def test_the_large_preset_has_the_published_shape() -> None:
    """Wan2.1-T2V-1.3B: 1.3 billion weights, 21 latent frames of 1560 tokens, 32 760 in all."""
    model = video_flow.PRESETS["wan-1.3b"][1].model
    with torch.device("meta"):
        network = model.build()
    assert round(sum(p.numel() for p in network.parameters()) / 1e9, 1) == 1.3
    assert network.backbone.frame == 1560
    assert network.backbone.frame * model.frames == 32_760


def test_operations_are_those_of_the_products_and_of_the_pairs_that_are_seen() -> None:
    """Counted by hand: 24 W^2 a token and block in attention and MLP, 12 W^2 a frame and block, 4 W a pair seen."""
    for forcing, copies in (("diffusion", 1), ("teacher", 2)):
        config = video_flow.Config(
            model=video_flow.Model(
                frames=8, height=64, wide=64, patch=4, width=128, depth=3, heads=4, window=3, sink=1
            ),
            forcing=forcing,
        )
        tokens, width = 8 * 256, 128
        pairs = kernels.visible_pairs(tokens, frame=256, window=3, sink=1)
        blocks = copies * 3 * (24 * tokens * width**2 + 12 * 8 * width**2 + 4 * width * pairs)
        ends = tokens * 2 * 48 * width * (copies + 1)  # patches in and out
        times = 8 * (
            4 * width**2 + copies * 2 * (32 * width + width**2)
        )  # the last modulation, the embeddings of times
        assert video_flow._flops(config) == pytest.approx(blocks + ends + times, rel=1e-9)


def test_estimate_prices_the_preset() -> None:
    out = video_flow.estimate("wan-1.3b", utilisation=0.5)
    assert out["gpu_hours"] == pytest.approx(3 * out["forward_flops"] * 640_000 / (0.5 * 989e12) / 3600)
    assert out["cache_bytes_a_frame"] == 2 * 2 * 30 * 1560 * 1536  # keys and values, 2 bytes each


def test_cache_bytes_are_those_of_a_cache() -> None:
    model = video_flow.Model(frames=4, height=16, wide=24, patch=4, width=64, depth=3, heads=4, window=2)
    network = model.build().to(torch.bfloat16)
    caches = network.caches(1)
    held = sum(x.numel() * x.element_size() for cache in caches for x in (cache.keys, cache.values))
    assert held / 2 == 4 * model.depth * model.width * network.backbone.frame


@pytest.mark.parametrize("forcing", ["teacher", "diffusion"])
def test_both_kinds_of_forcing_train_through_the_same_objective(one: Path, tmp_path: Path, forcing: str) -> None:
    """Without labels, with shifted times, a window and recomputed activations."""
    model = video_flow.Model(frames=6, height=16, wide=16, patch=8, width=16, depth=1, heads=2, window=2, sink=1)
    run = Run(
        out=tmp_path / "run", steps=2, batch_size=4, micro_batch=4, precision="fp32", accelerator="cpu", workers=0,
        checkpoint_activations=True,
    )  # fmt: skip
    config = video_flow.Config(one / "clips", model, forcing, shift=5.0, run=run)
    result = video_flow.train(config)
    assert result.weights is not None
    out = video_flow.sample(result.weights, tmp_path / "samples", count=3, steps=2, method="euler", batch=2)
    assert Shards(out).__getitems__([0, 1, 2])["clip"].shape == (3, 6, 3, 16, 16)


def test_a_clip_is_consecutive_rows_with_its_label_and_its_clean_frames() -> None:
    clip = torch.randint(256, (2, 3, 1, 2, 2), dtype=torch.uint8)
    model = video_flow.Model(frames=3, classes=5)
    x, conditions = video_flow._rows(video_flow.Config(model=model))(
        {"clip": clip, "y": torch.tensor([4, 1])}, torch.Generator()
    )
    assert torch.equal(((x + 1) * 127.5).round().to(torch.uint8).unflatten(0, (2, 3)), clip)
    assert conditions["clean"] is x
    assert conditions["y"].tolist() == [4, 4, 4, 1, 1, 1]
    _, other = video_flow._rows(video_flow.Config(forcing="diffusion"))({"clip": clip, "y": clip}, torch.Generator())
    assert not other


def test_shifted_times_have_the_shifted_noise_level() -> None:
    """sigma <- s sigma / (1 + (s - 1) sigma); s = 5 sends the noise levels 3/4, 1/2, 1/4 to 15/16, 5/6, 5/8."""
    sigma = torch.tensor([0.75, 0.5, 0.25], dtype=torch.float64)
    expected = torch.tensor([15 / 16, 5 / 6, 5 / 8], dtype=torch.float64)
    torch.testing.assert_close(1 - video_flow._shift(1 - sigma, 5.0), expected)
    drawn = video_flow._shifted(5.0)(100_000, generator=torch.Generator().manual_seed(0)).t
    assert float((drawn < 1 / 6).double().mean()) == pytest.approx(0.5, abs=0.008)  # five standard errors


def counter(file: Path, frames: int = 20, fps: int = 10, size: tuple[int, int] = (16, 24)) -> torch.Tensor:
    """A lossless video whose frames are told apart by their grey; returns its frames."""
    clip = (torch.arange(frames)[:, None, None, None] * 10 + torch.zeros(1, 3, *size)).to(torch.uint8)
    _clips.write(file, clip, fps, codec="ffv1")
    return clip


def test_decoding_shows_the_frame_that_is_on_the_screen(tmp_path: Path) -> None:
    clip = counter(tmp_path / "a.mkv")
    whole = _clips.read(tmp_path / "a.mkv", 20, 10, 16, 24)
    assert torch.equal(whole[0], clip)
    half = _clips.read(tmp_path / "a.mkv", 5, 5, 16, 24, most=9)  # 20 frames at 10 a second are 10 at 5
    assert torch.equal(half.flatten(0, 1), clip[::2])
    assert half.shape[0] == 2
    twice = _clips.read(tmp_path / "a.mkv", 40, 20, 16, 24)
    assert torch.equal(twice[0], clip.repeat_interleave(2, 0))
    uneven = _clips.read(tmp_path / "a.mkv", 6, 3, 16, 24)  # at 0, 1/3, 2/3, ... seconds: frames 0, 3, 6, 10, ...
    assert (uneven[0, :, 0, 0, 0] // 10).tolist() == [0, 3, 6, 10, 13, 16]


def test_decoding_takes_the_centre_part_of_the_shape(tmp_path: Path) -> None:
    columns = (torch.arange(48) * 5).expand(4, 3, 16, 48).to(torch.uint8)
    _clips.write(tmp_path / "ramp.mkv", columns, 8, codec="ffv1")
    got = _clips.read(tmp_path / "ramp.mkv", 4, 8, 16, 16)
    assert torch.equal(got[0], columns[..., 16:32])
    small = _clips.read(tmp_path / "ramp.mkv", 4, 8, 8, 16)  # the 16 x 32 pixels in the middle, halved
    expected = columns[..., 8:40].float().unflatten(-1, (16, 2)).mean(-1)[..., ::2, :]
    assert float((small[0].float() - expected)[..., 1:-1].abs().max()) <= 1


def test_fvd_is_the_frechet_distance_and_tells_folders_apart(one: Path, tmp_path: Path) -> None:
    rows = Shards(one / "clips").__getitems__(list(range(32)))
    for name, keep in (("half", rows["clip"][::2]), ("still", rows["clip"][:, :1].expand(-1, 6, -1, -1, -1))):
        writer = ShardWriter(tmp_path / name)
        writer.add(clip=keep.contiguous())
        writer.close()
        write_index(tmp_path / name, {})
    half = video_flow.evaluate(tmp_path / "half", one / "clips", features="random")
    still = video_flow.evaluate(tmp_path / "still", one / "clips", features="random")
    same = video_flow.evaluate(one / "clips", one / "clips", features="random")
    assert same["fvd"] == pytest.approx(0, abs=1e-6)
    assert half["fvd"] < still["fvd"]  # the frames are right, the motion is missing
    network = _clip_evaluation._Random(_evaluation.extractor("random", None))
    with torch.no_grad():
        a, b = (network(x.transpose(1, 2).float() / 127.5 - 1).double() for x in (rows["clip"][::2], rows["clip"]))
    assert half["fvd"] == pytest.approx(metrics.frechet_distance(a, b), rel=1e-6)
    script = torch.jit.script(torch.nn.Sequential(torch.nn.AdaptiveAvgPool3d(1), torch.nn.Flatten()))
    script.save(str(tmp_path / "mean.pt"))
    found = video_flow.evaluate(tmp_path / "half", one / "clips", weights=tmp_path / "mean.pt")
    means = [(x.float() / 127.5 - 1).mean((1, 3, 4)).double() for x in (rows["clip"][::2], rows["clip"])]
    assert found["fvd"] == pytest.approx(metrics.frechet_distance(*means), rel=1e-4, abs=1e-8)


def test_an_autoencoder_packs_frames_and_decodes(one: Path, tmp_path: Path) -> None:
    """A tiny random diffusers model: 5 frames of 16 x 16 become 2 latents of 2 x 2, normalised by channel."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    torch.manual_seed(0)
    tiny = diffusers.AutoencoderKLWan(
        base_dim=8, z_dim=4, num_res_blocks=1, latents_mean=[0.1, 0.2, 0.3, 0.4], latents_std=[1.0, 2.0, 3.0, 4.0]
    )
    tiny.save_pretrained(tmp_path / "vae")
    options = {"frames": 5, "fps": 8, "height": 16, "width": 16}
    out = video_flow.clips(one / "videos", tmp_path / "latents", vae=tmp_path / "vae", **options)
    plain = video_flow.clips(one / "videos", tmp_path / "pixels", **options)
    data = Shards(out)
    assert data.record["shape"] == [2, 4, 2, 2]
    x = Shards(plain).__getitems__([0, 1])["clip"].transpose(1, 2).float() / 127.5 - 1
    with torch.no_grad():
        z = tiny.encode(x).latent_dist.mode()
        expected = ((tiny.decode(z).sample + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).transpose(1, 2)
    stored = data.__getitems__([0, 1])["clip"].float()
    scaled = (z.transpose(1, 2) - torch.tensor([0.1, 0.2, 0.3, 0.4])[:, None, None]) / torch.arange(1, 5)[:, None, None]
    torch.testing.assert_close(stored, scaled, rtol=2e-3, atol=2e-3)
    got = _clips.decoder(data.record, tmp_path / "vae", "cpu")(stored)
    assert got.shape == (2, 5, 3, 16, 16)
    assert int((got.int() - expected.int()).abs().max()) <= 2  # float16 in between


@pytest.mark.bad_input
def test_bad_videos_are_named_before_work_is_lost(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        _clips.videos(tmp_path / "nothing")
    (tmp_path / "set" / "cat").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="cat has no video"):
        _clips.videos(tmp_path / "set")
    place = tmp_path / "set" / "cat"
    counter(place / "b-short.mkv", frames=3)
    counter(place / "c-small.mkv", size=(8, 24))
    counter(place / "d-good.mkv")
    (place / "a.mp4").write_bytes(b"not a video")
    options = {"frames": 4, "fps": 10, "height": 16, "width": 16}
    for allowed, message in (
        (0, r"a\.mp4 cannot be read"),
        (1, r"b-short\.mkv has 3 frames at 10 frames a second, a clip needs 4"),
        (2, r"c-small\.mkv is 24x8, smaller than 16x16"),
    ):
        with pytest.raises(ValueError, match=message):
            video_flow.clips(tmp_path / "set", tmp_path / "out", skip_bad=allowed, **options)
    out = Shards(video_flow.clips(tmp_path / "set", tmp_path / "out", skip_bad=3, **options))
    assert len(out) == 1
    assert len(out.record["left_out"]) == 3
    with pytest.raises(FileExistsError, match="already holds a finished data set"):
        video_flow.clips(tmp_path / "set", tmp_path / "out", skip_bad=3, **options)
    content = (place / "d-good.mkv").read_bytes()
    (place / "d-good.mkv").write_bytes(content[: len(content) // 2])  # copied half-way
    with pytest.raises(ValueError, match="d-good"):
        _clips.read(place / "d-good.mkv", 20, 10, 16, 16)
    with pytest.raises(ValueError, match="cannot be written"):
        _clips.write(tmp_path / "odd.mp4", torch.zeros(2, 3, 5, 5, dtype=torch.uint8), 8, codec="h264_nothing")


@pytest.mark.bad_input
def test_bad_input(one: Path, tmp_path: Path) -> None:
    small = video_flow.Model(frames=6, height=8, wide=8, patch=2, width=16, depth=1, heads=2)
    with pytest.raises(ValueError, match=r"has clips \[6, 3, 16, 16\], the model takes \[6, 3, 8, 8\]"):
        video_flow.train(video_flow.Config(one / "clips", small))
    few = video_flow.Model(frames=6, height=16, wide=16, patch=8, width=16, depth=1, heads=2, classes=1)
    with pytest.raises(ValueError, match="has 2 classes, the model knows 1"):
        video_flow.train(video_flow.Config(one / "clips", few))
    with pytest.raises(FileNotFoundError, match="there is no such data set"):
        video_flow.train(video_flow.Config(tmp_path / "nothing", small))
    with pytest.raises(ValueError, match="shift"):
        video_flow.Config(shift=0)
    other = video_flow.Model(frames=6, height=16, wide=16, patch=8, width=16, depth=1, heads=2)
    run = Run(
        out=one / "run", steps=9, batch_size=8, micro_batch=2, lr=1e-3, ema=0.9, precision="fp32", accelerator="cpu"
    )
    with pytest.raises(ValueError, match="network"):  # of another model
        video_flow.train(video_flow.Config(one / "clips", other, run=run))
    run = Run(batch_size=6, micro_batch=2, accelerator="cpu", precision="fp32")
    with pytest.raises(ValueError, match="do not share 3 micro-batches evenly"):
        _connect_two(run)
    weights = one / "run" / "weights.safetensors"
    with pytest.raises(FileNotFoundError, match=r"weights .* is missing"):
        video_flow.sample(tmp_path / "weights.safetensors", tmp_path / "out")
    with pytest.raises(ValueError, match="vae must name the folder"):
        _clips.decoder({"vae": "somewhere"}, None, "cpu")
    with pytest.raises(FileNotFoundError, match=r"holds no config\.json"):
        _clips.autoencoder(tmp_path, "cpu")
    with pytest.raises(ValueError, match="preset must be one of"):
        video_flow.estimate("wan-14b")
    with pytest.raises(FileNotFoundError, match="nothing is downloaded"):
        video_flow.evaluate(one / "samples", one / "clips")
    with pytest.raises(ValueError, match="samples must not be shorter"):
        video_flow.evaluate(one / "clips", one / "samples", features="random")
    record = json.loads((one / "run" / "weights.json").read_text())
    (tmp_path / "weights.safetensors").write_bytes(weights.read_bytes())
    (tmp_path / "weights.json").write_text(json.dumps({**record, "recipe": "imagenet_flow"}))
    with pytest.raises(ValueError, match="made by the recipe 'imagenet_flow'"):
        video_flow.load(tmp_path / "weights.safetensors")
    with pytest.raises(SystemExit, match="error: preset must be one of"):
        video_flow.main(["estimate", "--preset", "nothing"])


def _connect_two(run: distributed.Run) -> None:
    from unittest.mock import patch

    lightning = distributed._lightning()
    with patch.object(lightning.Fabric, "world_size", 2):
        distributed.connect(run)
