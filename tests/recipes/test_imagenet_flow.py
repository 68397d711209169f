"""The ImageNet recipe runs end to end on any number of processes, and says what is wrong before work is lost."""

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image

pytest.importorskip("lightning_fabric", reason="lightning-fabric is not installed")
pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")

from flowlib.data.shards import Shards
from flowlib.recipes import _evaluation, _images, imagenet_flow, imagenet_latents
from flowlib.recipes.imagenet_latents import encode, items, read
from flowlib.training.distributed import read_log

ROOT = Path(__file__).parents[2]


class Alone:
    """A stand-in for the processes: this one."""

    is_global_zero = True

    def barrier(self) -> None: ...


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole pipeline by one process."""
    folder = tmp_path_factory.mktemp("smoke") / "one"
    imagenet_flow.main(["--smoke", str(folder)])
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made-up")
    _images.make_up(folder / "set", Alone())
    return folder / "set" / "images"


@pytest.mark.slow
def test_two_processes_give_the_curve_the_samples_and_the_figures_of_one(one: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "flowlib.recipes.imagenet_flow", "--smoke", str(tmp_path / "two")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr
    a, b = (torch.tensor(read_log(folder / "run")["loss"]) for folder in (one, tmp_path / "two"))
    assert len(a) == 12
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    first, second = (Shards(folder / "samples") for folder in (one, tmp_path / "two"))
    mine, theirs = (shards.__getitems__(list(range(48))) for shards in (first, second))
    assert len(second.files) == 2  # each process wrote its own
    order = theirs["number"].argsort()
    assert torch.equal(mine["y"], theirs["y"][order])
    assert int((mine["image"].int() - theirs["image"][order].int()).abs().max()) <= 1  # rounding to 8 bits
    figures = [json.loads((folder / "samples" / "evaluation.json").read_text()) for folder in (one, tmp_path / "two")]
    assert figures[0]["fid"] == pytest.approx(figures[1]["fid"], rel=0.02)


def test_smoke_run_resumed_once_and_left_what_it_should(one: Path) -> None:
    assert read_log(one / "run")["step"] == list(range(1, 13))
    assert {path.name for path in (one / "run" / "checkpoints").iterdir()} == {"step-000000006", "step-000000012"}
    record = json.loads((one / "run" / "weights.json").read_text())
    assert (record["recipe"], record["step"], record["config"]["model"]["size"]) == ("imagenet_flow", 12, 16)
    figures = json.loads((one / "samples" / "evaluation.json").read_text())
    assert (figures["samples"], figures["reference"]) == (48, 96)
    assert figures["fid"] > 0
    field, _ = imagenet_flow.load(one / "run" / "weights.safetensors")
    x = torch.zeros(2, 3, 16, 16)
    assert field.velocity(x, 0.5, y=torch.tensor([0, 3])).shape == x.shape


@pytest.mark.parametrize(
    ("preset", "millions"), [("sit-s-2", 33), ("sit-b-2", 130), ("sit-l-2", 458), ("sit-xl-2", 675), ("dit-xl-2", 675)]
)
def test_presets_have_the_published_sizes(preset: str, millions: int) -> None:
    """Peebles and Xie (2023), table 1, and Ma et al. (2024), table 9."""
    with torch.device("meta"):
        network = imagenet_flow.PRESETS[preset][1].model.build()
    assert round(sum(p.numel() for p in network.parameters()) / 1e6) == pytest.approx(millions, abs=1)


def test_the_largest_preset_costs_the_published_multiply_adds() -> None:
    """118.64 Gflops of Peebles and Xie (2023), table 1, are multiply-adds: two operations each."""
    assert imagenet_flow.estimate("sit-xl-2")["forward_flops"] == pytest.approx(2 * 118.64e9, rel=2e-3)


@pytest.mark.parametrize(("path", "predicts"), [("vp", "noise"), ("vp", "score"), ("cosine", "data")])
def test_diffusion_and_score_variants_train_and_sample_through_the_same_field(
    one: Path, tmp_path: Path, path: str, predicts: str
) -> None:
    model = imagenet_flow.Model(size=16, channels=3, patch=8, width=16, depth=1, heads=2, classes=4)
    run = imagenet_flow.Run(
        out=tmp_path / "run", steps=2, batch_size=8, micro_batch=8, precision="fp32", accelerator="cpu", workers=0
    )
    config = imagenet_flow.Config(one / "latents", model, path, predicts, "logit_normal", run=run)
    result = imagenet_flow.train(config)
    assert result.weights is not None
    out = imagenet_flow.sample(result.weights, tmp_path / "samples", count=3, steps=2, batch=2)
    assert Shards(out).__getitems__([0, 1, 2])["image"].shape == (3, 3, 16, 16)


def test_latents_of_pixels_are_the_pixels_and_their_mirror_images(images: Path, tmp_path: Path) -> None:
    out = encode(images, tmp_path / "latents", size=16, batch=7)
    data = Shards(out)
    found, names = items(images)
    assert names == ["bar", "disc", "ring", "square"]
    assert len(data) == 2 * len(found) == 192
    for k in (0, 50, 95):
        rows = data.__getitems__([2 * k, 2 * k + 1])
        expected = read(found[k], 16)
        torch.testing.assert_close(rows["latent"][0].float(), expected, rtol=0, atol=1e-3)
        assert torch.equal(rows["latent"][1], rows["latent"][0].flip(-1))
        assert rows["y"].tolist() == [found[k].label] * 2


def test_a_small_image_is_enlarged_like_a_large_one_is_shrunk(tmp_path: Path) -> None:
    """ImageNet holds images smaller than 256 pixels; Dhariwal and Nichol (2021) resample them all."""
    Image.new("RGB", (40, 12), (255, 0, 51)).save(tmp_path / "plain.png")
    got = read(imagenet_latents.Item(tmp_path / "plain.png", 0, None, "plain"), 16)
    torch.testing.assert_close(got, torch.tensor([1.0, -1.0, -0.6])[:, None, None].expand(3, 16, 16), atol=1e-6, rtol=0)


@pytest.mark.parametrize("preset", list(imagenet_flow.PRESETS))
def test_presets_have_the_published_optimiser(preset: str) -> None:
    """Ma et al. (2024), section 4, and the authors' code: constant rate, no decay, no clipping."""
    run = imagenet_flow.PRESETS[preset][1].run
    found = (run.batch_size, run.lr, run.weight_decay, run.warmup, run.schedule, run.clip, run.ema)
    assert found == (256, 1e-4, 0.0, 0, "constant", 0.0, 0.9999)


def test_centre_crop_of_a_plain_ramp_is_exact(tmp_path: Path) -> None:
    """A horizontal ramp of 64 columns: box filter by two, then the middle 16 of 32 columns."""
    ramp = torch.arange(64, dtype=torch.uint8)[None, :, None].expand(32, 64, 3) * 2
    Image.fromarray(ramp.numpy()).save(tmp_path / "ramp.png")
    got = read(imagenet_latents.Item(tmp_path / "ramp.png", 0, None, "ramp"), 16)
    columns = (torch.arange(8, 24) * 4 + 1).float() / 127.5 - 1
    torch.testing.assert_close(got, columns.expand(3, 16, 16), rtol=0, atol=1.01 / 127.5)


def test_webdataset_shards_hold_the_same_images_as_the_folder(images: Path, tmp_path: Path) -> None:
    found, _ = items(images)
    (tmp_path / "tars").mkdir()
    with tarfile.open(tmp_path / "tars" / "000.tar", "w") as archive:
        for number, item in enumerate(found[::10]):
            for suffix, content in (("png", item.place.read_bytes()), ("cls", str(item.label).encode())):
                member = tarfile.TarInfo(f"{number:04d}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    packed, _ = items(tmp_path / "tars")
    assert [item.label for item in packed] == [item.label for item in found[::10]]
    for a, b in zip(packed, found[::10], strict=True):
        assert torch.equal(read(a, 16), read(b, 16))


def test_an_autoencoder_stores_moments_and_decodes(images: Path, tmp_path: Path) -> None:
    """A tiny random diffusers autoencoder: rows are mean and deviation, training draws from them, samples decode."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    torch.manual_seed(0)
    tiny = diffusers.AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, norm_num_groups=4, scaling_factor=0.7,
    )  # fmt: skip
    tiny.save_pretrained(tmp_path / "vae")
    out = encode(images, tmp_path / "latents", tmp_path / "vae", size=16, batch=32, flips=False)
    data = Shards(out)
    assert data.record["shape"] == [4, 8, 8]
    assert data.record["scale"] == 0.7
    x = torch.stack([read(item, 16) for item in items(images)[0][:2]])
    with torch.no_grad():
        law = tiny.encode(x).latent_dist
    rows = data.__getitems__([0, 1])
    torch.testing.assert_close(rows["latent"].float(), torch.cat([law.mean, law.std], 1), rtol=2e-3, atol=2e-3)
    draw = _images.drawn(data.record)
    many = torch.stack([draw(rows, torch.Generator().manual_seed(seed))[0] for seed in range(400)])
    assert float(((many.mean(0) - 0.7 * law.mean) / (0.7 * law.std / 20)).abs().max()) < 5
    decode = _images.decoder(data.record, tmp_path / "vae", "cpu")
    with torch.no_grad():
        expected = ((tiny.decode(law.mean).sample + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    assert int((decode(0.7 * law.mean).int() - expected.int()).abs().max()) <= 1


def test_evaluation_finds_nothing_between_a_folder_and_itself_and_much_between_classes(
    images: Path, tmp_path: Path
) -> None:
    same = encode(images, tmp_path / "a", size=16, flips=False)
    x = Shards(same).__getitems__(list(range(96)))
    for name, rows in (("half", slice(0, 96, 2)), ("disc", slice(24, 48))):
        writer = _evaluation_folder(tmp_path / name, x["latent"][rows])
        assert writer.is_dir()
    half = imagenet_flow.evaluate(tmp_path / "half", images, features="random", size=16)
    disc = imagenet_flow.evaluate(tmp_path / "disc", images, features="random", size=16)
    assert half["fid"] < disc["fid"]
    assert half["precision"] == 1.0  # every sample is a reference image
    assert disc["recall"] < half["recall"]


def _evaluation_folder(folder: Path, x: torch.Tensor) -> Path:
    from flowlib.data.shards import ShardWriter, write_index

    writer = ShardWriter(folder)
    writer.add(image=((x.float() + 1) * 127.5).round().to(torch.uint8))
    writer.close()
    write_index(folder, {})
    return folder


def test_fid_is_the_frechet_distance_of_the_features(images: Path, tmp_path: Path) -> None:
    """torchmetrics against the library's own distance."""
    from flowlib import metrics

    _evaluation_folder(tmp_path / "half", torch.stack([read(item, 16) for item in items(images)[0][::2]]))
    found = imagenet_flow.evaluate(tmp_path / "half", images, features="random", size=16)
    network = _evaluation.extractor("random", None)
    with torch.no_grad():
        real, fake = (
            torch.cat([network(part) for part in _evaluation.pictures(folder, 16, 64, 1000)]).double()
            for folder in (images, tmp_path / "half")
        )
    assert found["fid"] == pytest.approx(metrics.frechet_distance(fake, real), rel=1e-3)


def test_few_images_of_a_sorted_reference_are_of_all_classes(images: Path, tmp_path: Path) -> None:
    """96 images, class by class: four of them are one of each; FID still takes the statistics of all."""
    four = torch.cat(list(_evaluation.pictures(images, 16, 3, 4)))
    found = items(images)[0]
    assert [found[k].label for k in (0, 24, 48, 72)] == [0, 1, 2, 3]
    whole = torch.cat(list(_evaluation.pictures(images, 16, 64, None)))
    assert torch.equal(four, whole[::24])
    _evaluation_folder(tmp_path / "half", (whole[::2].float() / 127.5 - 1))
    few, many = (
        imagenet_flow.evaluate(tmp_path / "half", images, features="random", size=16, most=m) for m in (48, 96)
    )
    assert few["fid"] == pytest.approx(many["fid"], rel=1e-9)


def test_help_explains_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        imagenet_flow.main(["train", "sit-xl-2", "--help"])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for text in ("Samples a step, over all processes. (default: 256)", "in latent pixels", "--run.steps INT"):
        assert text in shown


@pytest.mark.slow
def test_what_two_processes_leave_out_is_in_one_record(images: Path, tmp_path: Path) -> None:
    """One bad image at each end of the order, so that either process meets one."""
    shutil.copytree(images, tmp_path / "set")
    for name in ("bar/!first", "square/zlast"):
        (tmp_path / "set" / f"{name}.png").write_bytes(b"not a picture")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "flowlib.recipes.imagenet_latents", "--images", str(tmp_path / "set"), "--size", "16"]
    command += ["--out", str(tmp_path / "out"), "--skip-bad", "1"]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=240
    )
    assert done.returncode == 0, done.stderr
    out = Shards(tmp_path / "out")
    first, last = out.record["left_out"]
    assert "!first" in first
    assert "zlast" in last
    assert (len(out), out.record["shape"]) == (2 * 96, [3, 16, 16])


@pytest.mark.bad_input
def test_bad_images_are_named_before_work_is_lost(images: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        items(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match=r"neither class folders nor \.tar shards"):
        items(tmp_path)
    (tmp_path / "set" / "cat").mkdir(parents=True)
    with pytest.raises(ValueError, match="cat has no image"):
        items(tmp_path / "set")
    (tmp_path / "set" / "cat" / "a.png").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"a\.png cannot be read"):
        encode(tmp_path / "set", tmp_path / "out", size=16)
    Image.new("RGB", (40, 3)).save(tmp_path / "set" / "cat" / "b.png")
    with pytest.raises(ValueError, match=r"b\.png is 40x3, smaller than a quarter of 16"):
        encode(tmp_path / "set", tmp_path / "out", size=16, skip_bad=1)
    for name, mode in (("c", "L"), ("d", "CMYK"), ("e", "RGBA"), ("f", "P")):
        Image.new(mode, (20, 16)).save(tmp_path / "set" / "cat" / f"{name}.{'jpg' if mode == 'CMYK' else 'png'}")
    out = encode(tmp_path / "set", tmp_path / "out", size=16, skip_bad=2, flips=False)
    assert len(Shards(out)) == 4
    assert len(Shards(out).record["left_out"]) == 2
    (out / "index.json").unlink()  # as if the call had been interrupted
    (out / "0000-000000.safetensors").rename(out / "0005-000000.safetensors")  # in one of its other processes
    with pytest.raises(FileExistsError, match="shards of a call that did not finish"):
        encode(tmp_path / "set", out, size=16, skip_bad=2)
    (tmp_path / "few.png").write_bytes(b"")
    (tmp_path / "none" / "cat").mkdir(parents=True)
    (tmp_path / "few.png").rename(tmp_path / "none" / "cat" / "few.png")
    with pytest.raises(ValueError, match=r"has no image that can be used: .*few\.png cannot be read"):
        encode(tmp_path / "none", tmp_path / "no", size=16, skip_bad=1)
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars" / "0.tar").write_bytes(b"x" * 1000)
    with pytest.raises(ValueError, match=r"0\.tar is damaged"):
        items(tmp_path / "tars")
    with tarfile.open(tmp_path / "tars" / "0.tar", "w") as archive:
        archive.add(items(images)[0][0].place, "a.png")
    with pytest.raises(ValueError, match=r"a\.png has no class file a\.cls"):
        items(tmp_path / "tars")


@pytest.mark.bad_input
def test_bad_input(one: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = imagenet_flow.Model(size=8, channels=3, patch=2, width=16, depth=1, heads=2)
    with pytest.raises(ValueError, match=r"has latents \[3, 16, 16\], the model takes \[3, 8, 8\]"):
        imagenet_flow.train(imagenet_flow.Config(one / "latents", small))
    few = imagenet_flow.Model(size=16, channels=3, patch=4, width=16, depth=1, heads=2, classes=3)
    with pytest.raises(ValueError, match="has 4 classes, the model knows 3"):
        imagenet_flow.train(imagenet_flow.Config(one / "latents", few))
    with pytest.raises(FileNotFoundError, match=r"weights .* is missing"):
        imagenet_flow.sample(tmp_path / "weights.safetensors", tmp_path / "out")
    with pytest.raises(ValueError, match="vae must name the folder"):
        _images.decoder({"moments": True}, None, "cpu")
    with pytest.raises(FileNotFoundError, match=r"holds no config\.json"):
        _images.autoencoder(tmp_path, "cpu")
    with pytest.raises(ValueError, match="preset must be one of"):
        imagenet_flow.estimate("sit-h-2")
    with pytest.raises(FileNotFoundError, match="nothing is downloaded"):
        _evaluation.extractor("inception", None)
    with pytest.raises(ValueError, match="not images"):
        next(_evaluation.pictures(one / "latents", 16, 4, 4))
    record = json.loads((one / "run" / "weights.json").read_text())
    (tmp_path / "weights.safetensors").write_bytes((one / "run" / "weights.safetensors").read_bytes())
    (tmp_path / "weights.json").write_text(json.dumps({**record, "recipe": "video_flow"}))
    with pytest.raises(ValueError, match="made by the recipe 'video_flow'"):
        imagenet_flow.load(tmp_path / "weights.safetensors")
    with pytest.raises(SystemExit, match="error: preset must be one of"):
        imagenet_flow.main(["estimate", "--preset", "nothing"])
