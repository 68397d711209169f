"""Figures with named selectors that need nothing but the page they are on."""

import base64
import hashlib
import html
import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from flowlib.plots.animation import render

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Explorer", "explorer"]


class Explorer:
    """One picture for every choice, with one selector a name, as one piece of HTML that needs nothing else.

    Equal pictures are stored once. A line under the selectors says which picture is shown, so that a reader sees, or
    hears, when a choice makes no difference. Where scripts do not run, the picture of the first options is shown.

    Args:
        images: PNG images in the order of `itertools.product(*choices.values())`.
        choices: For each selector the options it offers.
        alt: What the pictures show, for readers who cannot see them; the current choice is added to it.

    Raises:
        ValueError: If a selector has no or repeated options, the number of images is not that of the choices, or
            there is no description.
    """

    def __init__(self, images: Sequence[bytes], choices: Mapping[str, Sequence[str]], alt: str) -> None:
        _check(choices, alt)
        count = math.prod(len(options) for options in choices.values())
        if len(images) != count:
            raise ValueError(f"images must hold one picture for each of the {count} choices, got {len(images)}")
        self.choices = {name: list(options) for name, options in choices.items()}
        self.alt = alt
        self.images = list(dict.fromkeys(images))  # in order of appearance, each once
        place = {image: i for i, image in enumerate(self.images)}
        self.index = [place[image] for image in images]

    def _repr_html_(self) -> str:
        content = repr((self.alt, self.choices, self.index)).encode() + b"".join(self.images)
        name = f"e{hashlib.sha256(content).hexdigest()[:16]}"  # the same in every build
        first, *others = (base64.b64encode(image).decode() for image in self.images)
        sources = ", ".join(['image.src.split(",")[1]', *(f'"{other}"' for other in others)])
        selectors = "\n".join(_selector(label, options) for label, options in self.choices.items())
        alt = html.escape(self.alt, quote=True)
        return f"""<div class="flow-explorer" id="{name}">
{selectors}<br>
<output role="status" aria-live="polite" style="font-size: 85%"></output><br>
<img src="data:image/png;base64,{first}" alt="{alt}" style="max-width: 100%">
<script>
(function() {{
  const root = document.getElementById("{name}");
  const [image, status] = ["img", "output"].map(tag => root.querySelector(tag));
  const images = [{sources}];
  const index = {json.dumps(self.index)};
  const alt = {_script_string(self.alt)};
  const selects = [...root.querySelectorAll("select")];
  function show() {{
    const place = selects.reduce((i, select) => i * select.options.length + select.selectedIndex, 0);
    image.src = "data:image/png;base64," + images[index[place]];
    image.alt = alt + " (" + selects.map(select => select.value).join(", ") + ")";
    status.textContent = "picture " + (index[place] + 1) + " of " + images.length;
  }}
  selects.forEach(select => select.onchange = show);
  show();
}})();
</script>
</div>"""

    def __repr__(self) -> str:
        sizes = " x ".join(str(len(options)) for options in self.choices.values())
        return f"Explorer({sizes} choices, {len(self.images)} different pictures: {self.alt})"


def explorer(
    draw: "Callable[[Figure, dict[str, str]], None]",
    choices: Mapping[str, Sequence[str]],
    *,
    alt: str,
    figsize: tuple[float, float] = (4.2, 4.2),
    dpi: int = 70,
) -> Explorer:
    """Draw a picture for every combination of options and return them behind selectors.

    Args:
        draw: Called as `draw(figure, choice)` with an empty figure and one option a name, for example
            `{"path": "linear", "sampler": "DDIM"}`.
        choices: For each selector the options it offers; the first ones are shown first.
        alt: What the pictures show.
        figsize: Size of a picture in inches.
        dpi: Resolution.

    Returns:
        An object that a notebook shows as HTML. Combinations whose pictures are equal share one.

    Raises:
        ValueError: If `choices` or `alt` is empty, or options repeat.

    Example:
        >>> def draw(figure, choice):
        ...     figure.add_subplot().plot([0, int(choice["end"])])
        >>> explorer(draw, {"end": ["1", "2"], "no effect": ["a", "b", "c"]}, alt="a line", dpi=20)
        Explorer(2 x 3 choices, 2 different pictures: a line)
    """
    _check(choices, alt)
    combinations = [dict(zip(choices, options, strict=True)) for options in itertools.product(*choices.values())]
    return Explorer(render(draw, combinations, figsize, dpi), choices, alt)


def _check(choices: Mapping[str, Sequence[str]], alt: str) -> None:
    if not choices:
        raise ValueError("choices is empty")
    for name, options in choices.items():
        if not options or len(set(options)) != len(options):
            raise ValueError(f"choices[{name!r}] must hold different options, at least one; got {list(options)}")
    if not alt:
        raise ValueError("alt must describe the pictures")


def _selector(label: str, options: Sequence[str]) -> str:
    entries = "".join(f"<option>{html.escape(option)}</option>" for option in options)
    name = html.escape(label)
    return f'<label style="margin-right: 1em">{name} <select aria-label="{name}">{entries}</select></label>'


def _script_string(text: str) -> str:
    """A string literal that cannot end the script element it stands in."""
    return json.dumps(text).replace("<", "\\u003c")
