"""Reading videos into clips of one rate, length and size, and clips back into videos, through PyAV.

Clips are stored as shards: uint8 pixels `clip` `[T, 3, H, W]`, or with an autoencoder its float16 latents, and `y`.
"""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from flowlib._checks import check_positive
from flowlib.data.clips import SHAPES, bouncing
from flowlib.recipes import _runs

__all__ = ["autoencoder", "clips", "decoder", "make_up", "read", "videos", "write"]

SUFFIXES = {".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".gif"}


def clips(
    videos: Path,
    out: Path,
    frames: int = 16,
    fps: float = 8.0,
    height: int = 64,
    width: int = 64,
    per_video: int = 1,
    vae: Path | None = None,
    skip_bad: int = 0,
    devices: int = 1,
    nodes: int = 1,
    fabric: Any = None,
) -> Path:
    """Decode a folder of videos into shards of clips.

    Args:
        videos: Folder of videos, or of one subfolder for each class.
        out: Folder of the clips.
        frames: Frames of a clip. With an autoencoder that packs 4 frames into a latent: 81 give 21 latents.
        fps: Frames a second of the clips; what a player would show at that rate.
        height: Of a frame, in pixels; the largest centre part of this shape is resampled.
        width: Of a frame, in pixels.
        per_video: At most so many clips, one after the other, from one video.
        vae: Folder of a diffusers AutoencoderKLWan; None stores pixels.
        skip_bad: How many videos that cannot be used each process leaves out before it stops.
        devices: Processes on a node (torchrun's --nproc-per-node wins).
        nodes: Nodes (torchrun's --nnodes wins).
        fabric: Processes that already stand, or None.

    Returns:
        The folder.

    Raises:
        FileNotFoundError, FileExistsError, ValueError, OSError: If videos, folder, autoencoder or disk are wrong.
    """
    for name, value in (("frames", frames), ("height", height), ("width", width), ("per_video", per_video)):
        check_positive(name, value, integer=True)
    check_positive("fps", fps)
    found, names = _videos(videos)
    fabric = _runs.processes(devices, nodes, fabric)
    model = autoencoder(vae, fabric.device) if vae is not None else None
    writer = _runs.writer(out, 256, fabric)
    bad: list[str] = []
    shapes: list[list[int]] = []
    for file, label in _runs.part(found, fabric):
        try:
            x = read(file, frames, fps, height, width, per_video)
        except ValueError as error:
            bad.append(str(error))
            if len(bad) > skip_bad:
                raise
            continue
        if model is not None:
            x = _encode(model, x.to(fabric.device))
        shapes = [list(x.shape[1:])]
        writer.add(clip=x.cpu(), y=torch.full((len(x),), label))
    bad, shapes = _runs.together(bad, fabric), _runs.together(shapes, fabric)
    if not shapes:
        raise ValueError(f"videos {videos} has none that can be used: {bad[0]}")
    record = {
        "shape": shapes[0], "classes": len(names), "names": names, "fps": fps, "left_out": bad,
        "vae": str(vae) if vae is not None else None,
    }  # fmt: skip
    return _runs.finish(writer, record, fabric)


def _videos(folder: Path) -> tuple[list[tuple[Path, int]], list[str]]:
    if not folder.is_dir():
        raise FileNotFoundError(f"videos {folder} is not a folder")
    groups = sorted(path for path in folder.iterdir() if path.is_dir()) or [folder]
    found: list[tuple[Path, int]] = []
    for label, group in enumerate(groups):
        files = sorted(path for path in group.rglob("*") if path.suffix.lower() in SUFFIXES)
        if not files:
            raise FileNotFoundError(f"{group} has no video ({', '.join(sorted(SUFFIXES))})")
        found += [(file, label) for file in files]
    return found, [group.name for group in groups]


def videos(folder: Path) -> list[Path]:
    """The videos of a folder, or of its class folders, in a fixed order.

    Raises:
        FileNotFoundError: If the folder is missing, or it or a class folder has no video.
    """
    return [file for file, _ in _videos(folder)[0]]


def read(file: Path, frames: int, fps: float, height: int, width: int, most: int = 1) -> Tensor:
    """The first clips of a video, uint8 `[n, frames, 3, height, width]`, `n` at most `most`.

    Frame `k` is the one on the screen `k / fps` seconds after the first.

    Raises:
        ImportError: If PyAV is not installed.
        ValueError: If the video cannot be decoded, is too short for one clip or too small; the message names it.
    """
    av = _av()
    taken: list[Tensor] = []
    wanted = most * frames
    try:
        with av.open(str(file)) as container:
            if not container.streams.video:
                raise ValueError(f"video {file} has no picture, only sound")
            start = before = None
            for frame in container.decode(video=0):
                if frame.time is None:
                    raise ValueError(f"video {file} has a frame without a time")
                start = frame.time if start is None else start
                if min(frame.width / width, frame.height / height) < 1:
                    raise ValueError(
                        f"video {file} is {frame.width}x{frame.height}, smaller than {width}x{height} in a direction"
                    )
                # this frame's time has come only now: the grid points before it show the one before
                while before is not None and len(taken) < wanted and len(taken) / fps < frame.time - start - 1e-6:
                    taken.append(_fit(before, height, width))
                if len(taken) == wanted:
                    break
                before = frame
            else:  # the end: the last frame is on the screen for one frame's time
                rate = float(container.streams.video[0].average_rate or fps)
                end = 0.0 if before is None else frame.time - start + 1 / rate - 1e-6
                while len(taken) < wanted and len(taken) / fps < end:
                    taken.append(_fit(before, height, width))
    except (av.FFmpegError, OSError) as error:
        raise ValueError(f"video {file} cannot be read: {error}") from error
    if len(taken) < frames:
        raise ValueError(f"video {file} has {len(taken)} frames at {fps:g} frames a second, a clip needs {frames}")
    whole = len(taken) // frames
    return torch.stack(taken[: whole * frames]).reshape(whole, frames, 3, height, width)


def _fit(frame: Any, height: int, width: int) -> Tensor:
    """The largest centre part of a frame that has the shape, resampled, uint8 `[3, height, width]`."""
    x = torch.from_numpy(frame.to_ndarray(format="rgb24"))
    scale = min(x.shape[0] / height, x.shape[1] / width)
    tall, wide = round(height * scale), round(width * scale)
    top, left = (x.shape[0] - tall) // 2, (x.shape[1] - wide) // 2
    part = x[top : top + tall, left : left + wide].permute(2, 0, 1)[None].float()
    if (tall, wide) != (height, width):
        part = interpolate(part, (height, width), mode="bilinear", antialias=True)
    return part[0].round().clamp(0, 255).to(torch.uint8)


def write(file: Path, clip: Tensor, fps: float, codec: str = "mpeg4") -> None:
    """A clip, uint8 `[T, 3, H, W]`, as a video.

    Raises:
        ImportError: If PyAV is not installed.
        ValueError: If the codec cannot take the clip.
    """
    from fractions import Fraction

    av = _av()
    try:
        with av.open(str(file), "w") as container:
            stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1000))
            stream.height, stream.width = clip.shape[2:]
            stream.pix_fmt = "bgr0" if codec == "ffv1" else "yuv420p"
            stream.bit_rate = max(200_000, clip.shape[2] * clip.shape[3] * 60)
            for picture in clip:
                frame = av.VideoFrame.from_ndarray(picture.permute(1, 2, 0).contiguous().numpy(), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    except (av.FFmpegError, ValueError) as error:
        raise ValueError(f"clip {list(clip.shape)} cannot be written as {file} with {codec}: {error}") from error


def autoencoder(folder: Path, device: torch.device | str) -> Any:
    """A diffusers `AutoencoderKLWan` from a local folder; nothing is downloaded.

    Raises:
        ImportError: If diffusers is not installed.
        FileNotFoundError: If the folder holds no such model.
    """
    try:
        from diffusers import AutoencoderKLWan as Model
    except ImportError as error:
        raise ImportError("latents of an autoencoder need diffusers: pip install flowlib[recipes]") from error
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"vae folder {folder} holds no config.json of a diffusers AutoencoderKLWan")
    kind: Any = Model  # untyped
    return kind.from_pretrained(str(folder), local_files_only=True).to(device).eval().requires_grad_(False)


@torch.no_grad()
def _encode(model: Any, x: Tensor) -> Tensor:
    """uint8 clips to latents `[n, t, c, h, w]` in float16: the mean of the Gaussian, normalised by channel."""
    z = model.encode(x.transpose(1, 2).float() / 127.5 - 1).latent_dist.mode()
    mean, deviation = _statistics(model, z)
    out: Tensor = ((z - mean) / deviation).transpose(1, 2).half()
    return out


def decoder(record: dict[str, Any], vae: Path | None, device: torch.device | str) -> Callable[[Tensor], Tensor]:
    """From states of the flow `[n, t, c, h, w]` to pixels, uint8 `[n, T, 3, H, W]`.

    Raises:
        ValueError: If the data are latents and no autoencoder is given.
    """
    if record["vae"] is not None and vae is None:
        raise ValueError("vae must name the folder of the autoencoder: the data are its latents")
    model = autoencoder(vae, device) if vae is not None and record["vae"] is not None else None

    @torch.no_grad()
    def decode(x: Tensor) -> Tensor:
        if model is not None:
            z = x.transpose(1, 2)
            mean, deviation = _statistics(model, z)
            x = model.decode(z * deviation + mean).sample.transpose(1, 2)
        return ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)

    return decode


def _statistics(model: Any, z: Tensor) -> Iterator[Tensor]:
    for name in ("latents_mean", "latents_std"):
        yield torch.tensor(getattr(model.config, name), dtype=z.dtype, device=z.device)[:, None, None, None]


def make_up(folder: Path, fabric: Any, classes: int = 2, each: int = 8, frames: int = 12, size: int = 24) -> None:
    """Videos of bouncing shapes in colours, one class folder for each shape.

    Args:
        folder: Emptied first; the videos go to its subfolder `videos`.
        fabric: The processes; the first one draws.
        classes: Number of classes.
        each: Videos of a class.
        frames: Frames of a video, 8 a second.
        size: Height and width in pixels.
    """
    import shutil

    if fabric.is_global_zero:
        shutil.rmtree(folder, ignore_errors=True)
        generator = torch.Generator().manual_seed(0)
        grey, labels, _ = bouncing(math.ceil(3 * each * classes), frames, size, classes=classes, generator=generator)
        for label in range(classes):
            place = folder / "videos" / SHAPES[label]
            place.mkdir(parents=True)
            for number, clip in enumerate(grey[labels == label][:each]):
                ink, paper = torch.rand(2, 3, 1, 1, generator=generator)
                picture = (paper + (ink - paper) * (clip + 1) / 2) * 255
                write(place / f"{number:03d}.mp4", picture.round().to(torch.uint8), fps=8)
    fabric.barrier()


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise ImportError("videos are read and written by PyAV: pip install flowlib[recipes]") from error
    return av
