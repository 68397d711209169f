"""What the video recipe can be asked for: the network, what it learns from and how, and published settings by name."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from flowlib import nets
from flowlib._checks import check_positive
from flowlib.training.distributed import Run

__all__ = ["PRESETS", "Config", "Model"]


@dataclass(frozen=True)
class Model:
    """The causal video transformer.

    Attributes:
        frames: Frames of a training clip.
        height: Of a frame.
        wide: Width of a frame.
        channels: Channels of a frame.
        patch: Side of a token.
        width: Size of a token's vector.
        depth: Number of blocks.
        heads: Attention heads.
        classes: Number of classes of clips; None ignores labels.
        window: Frames that a frame sees, its own included; None for all.
        sink: First frames, which every frame sees.
    """

    frames: int = 16
    height: int = 64
    wide: int = 64
    channels: int = 3
    patch: int = 4
    width: int = 768
    depth: int = 12
    heads: int = 12
    classes: int | None = None
    window: int | None = None
    sink: int = 0

    def build(self) -> nets.VideoDiT:
        """The network, with torch's global generator."""
        given = asdict(self)
        return nets.VideoDiT(size=(given.pop("height"), given.pop("wide")), **given)

    @property
    def shape(self) -> list[int]:
        """Of a clip."""
        return [self.frames, self.channels, self.height, self.wide]


@dataclass(frozen=True)
class Config:
    """What is trained, on what, and how.

    Attributes:
        data: Folder of clips, written by the command clips.
        model: The network.
        forcing: What a noisy frame sees of the past: clean frames (teacher), or frames with times of their own
            (diffusion).
        shift: Times are uniform after sigma <- s sigma / (1 + (s - 1) sigma): above 1, more of them at high noise.
        drop_condition: Share of labels hidden from the network, for classifier-free guidance.
        run: Length, batch (of clips), optimiser, processes.
    """

    data: Path = Path("data/clips")
    model: Model = field(default_factory=Model)
    forcing: Literal["teacher", "diffusion"] = "teacher"
    shift: float = 1.0
    drop_condition: float = 0.1
    run: Run = field(default_factory=Run)

    def __post_init__(self) -> None:
        check_positive("shift", self.shift)


_WAN = Model(frames=21, height=60, wide=104, channels=16, patch=2, width=1536, depth=30, heads=12)


def _wan(name: str, forcing: Literal["teacher", "diffusion"]) -> Config:
    run = Run(
        out=Path(f"runs/{name}"), steps=10_000, batch_size=64, micro_batch=1, weight_decay=0.01, clip=10.0,
        checkpoint_activations=True, strategy="fsdp", save_every=500,
    )  # fmt: skip
    return Config(data=Path("data/wan-latents"), model=_WAN, forcing=forcing, shift=5.0, run=run)


PRESETS: dict[str, tuple[str, Config]] = {
    "clips-64": (
        "16 frames of 64 x 64 pixels, width 768, depth 12, teacher forcing",
        Config(run=Run(out=Path("runs/clips-64"), steps=200_000, batch_size=64, micro_batch=8)),
    ),
    "clips-64-diffusion": (
        "the same by diffusion forcing",
        Config(
            forcing="diffusion",
            run=Run(out=Path("runs/clips-64-diffusion"), steps=200_000, batch_size=64, micro_batch=8),
        ),
    ),
    "wan-1.3b": ("Wan's width and latents, schedule of Causal Forcing++, teacher forcing", _wan("wan-1.3b", "teacher")),
    "wan-1.3b-diffusion": ("the same by diffusion forcing", _wan("wan-1.3b-diffusion", "diffusion")),
}
"""`wan-*`: 81 frames of 832 x 480 pixels as 21 latents of 16 x 60 x 104, width 1536, depth 30, 12 heads, batch 64,
shift 5, clip 10, 10 000 steps. The paper starts from pretrained weights with learning rate 2e-6, beta1 = 0, weighted
times and text as condition; this network is trained from its own start, with 1e-4, and knows classes only. Its blocks
are not Wan's: an MLP of width 6144 (Wan: 8960), no attention to text, a modulation of their own each."""
