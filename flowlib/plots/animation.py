"""Animations that need nothing but the page they are on."""

import base64
import hashlib
import html
import io
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from flowlib._checks import check_positive

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Animation", "animate"]


class Animation:
    """Frames with a play button and a slider, as one piece of HTML that needs nothing else.

    Args:
        frames: PNG images.
        alt: What the animation shows, for readers who cannot see it.
        interval: Milliseconds between frames.

    Raises:
        ValueError: If there is no frame or no description.
    """

    def __init__(self, frames: list[bytes], alt: str, interval: int = 120) -> None:
        if not frames:
            raise ValueError("frames is empty")
        if not alt:
            raise ValueError("alt must describe the animation")
        self.frames = frames
        self.alt = alt
        self.interval = interval

    def _repr_html_(self) -> str:
        digest = hashlib.sha256(self.alt.encode() + b"".join(self.frames)).hexdigest()
        name = f"a{digest[:16]}"  # the same in every build, different for different animations
        sources = ",".join(f'"{base64.b64encode(frame).decode()}"' for frame in self.frames)
        last = len(self.frames) - 1
        alt = html.escape(self.alt, quote=True)
        return f"""<div class="flow-animation" id="{name}">
<img alt="{alt}" style="max-width: 100%"><br>
<button type="button" aria-label="play or pause">&#9654;&#xFE0E; play</button>
<input type="range" min="0" max="{last}" value="0" aria-label="frame" style="width: 60%; vertical-align: middle">
<script>
(function() {{
  const root = document.getElementById("{name}");
  const frames = [{sources}];
  const [image, button, slider] = ["img", "button", "input"].map(tag => root.querySelector(tag));
  let timer = null;
  function show(i) {{ image.src = "data:image/png;base64," + frames[i]; slider.value = i; }}
  function stop() {{ clearInterval(timer); timer = null; button.innerHTML = "&#9654;&#xFE0E; play"; }}
  function play() {{
    timer = setInterval(() => show((+slider.value + 1) % frames.length), {self.interval});
    button.innerHTML = "&#10074;&#10074; pause";
  }}
  button.onclick = () => timer === null ? play() : stop();
  slider.oninput = () => {{ stop(); show(+slider.value); }};
  show(0);
  if (!matchMedia("(prefers-reduced-motion: reduce)").matches) play();
}})();
</script>
</div>"""

    def __repr__(self) -> str:
        return f"Animation({len(self.frames)} frames: {self.alt})"


def animate(
    draw: "Callable[[Figure, int], None]",
    frames: int,
    *,
    alt: str,
    figsize: tuple[float, float] = (4.2, 4.2),
    dpi: int = 70,
    interval: int = 120,
) -> Animation:
    """Draw frames and return them as a self-contained animation.

    Args:
        draw: Called as `draw(figure, i)` with an empty figure for frame i.
        frames: Number of frames; 20 to 40 keep a page small.
        alt: What the animation shows.
        figsize: Size of a frame in inches.
        dpi: Resolution.
        interval: Milliseconds between frames.

    Returns:
        An object that a notebook shows as HTML.

    Raises:
        ValueError: If `frames` is not positive or `alt` is empty.

    Example:
        >>> animate(lambda figure, i: figure.add_subplot().plot([0, i]), 2, alt="a growing line", dpi=20)
        Animation(2 frames: a growing line)
    """
    check_positive("frames", frames, integer=True)
    return Animation(render(draw, range(frames), figsize, dpi), alt, interval)


def render(
    draw: "Callable[[Figure, Any], None]", items: Iterable[Any], figsize: tuple[float, float], dpi: int
) -> list[bytes]:
    """A PNG image for each item, all drawn with one figure, which is closed whatever happens."""
    from matplotlib import pyplot as plt

    images = []
    figure = plt.figure(figsize=figsize, dpi=dpi)
    try:
        for item in items:
            figure.clear()
            draw(figure, item)
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png")
            images.append(buffer.getvalue())
    finally:
        plt.close(figure)
    return images
