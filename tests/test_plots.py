"""Figures draw what they are given, refuse what they cannot draw, and animations carry everything they need."""

import base64
import re

import pytest
import torch
from matplotlib import pyplot as plt

from flowlib import plots
from flowlib.distributions import GaussianMixture


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def test_colours_are_distinct() -> None:
    assert len(set(plots.COLORS.values())) == len(plots.COLORS)
    assert all(re.fullmatch(r"#[0-9a-f]{6}", colour) for colour in plots.COLORS.values())


def test_scatter_shows_every_point_in_the_named_colour() -> None:
    x = torch.randn(17, 2, requires_grad=True)
    ax = plots.scatter(x, color="data", label="data", limit=4)
    (collection,) = ax.collections
    assert len(collection.get_offsets()) == 17
    assert ax.get_xlim() == (-4, 4)
    assert plots.scatter(x, ax=ax) is ax


def test_density_puts_its_maximum_where_the_density_has_it() -> None:
    bump = GaussianMixture(torch.tensor([[1.5, -0.5]]), 0.05)
    image = plots.density(bump.log_prob, limit=2, resolution=81).get_images()[0].get_array()
    row, column = divmod(int(image.argmax()), 81)
    assert -2 + 4 * column / 80 == pytest.approx(1.5, abs=0.06)
    assert -2 + 4 * row / 80 == pytest.approx(-0.5, abs=0.06)


def test_trajectories_draw_one_line_a_point() -> None:
    states = torch.randn(5, 100, 2)
    assert len(plots.trajectories(states, count=30).lines) == 30


def test_vector_field_evaluates_on_the_grid() -> None:
    seen = []
    plots.vector_field(lambda x: seen.append(x) or -x, limit=2, resolution=5)
    assert seen[0].shape == (25, 2)
    assert float(seen[0].max()) == 2.0


def test_image_grid_places_images_in_rows_and_clips() -> None:
    images = torch.stack([torch.full((1, 2, 2), v) for v in (-3.0, 0.0, 3.0)])
    canvas = plots.image_grid(images, columns=2).get_images()[0].get_array()
    assert canvas.shape == (7, 7)
    assert canvas[1, 1] == -1
    assert canvas[1, 4] == 0
    assert canvas[4, 1] == 1


def test_curves_show_mean_and_spread_of_seeds() -> None:
    ax = plots.curves([1, 2], {"a": torch.tensor([[1.0, 2.0], [3.0, 4.0]])}, colors={"a": "method"}, log="xy")
    assert list(ax.lines[0].get_ydata()) == [2.0, 3.0]
    assert ax.lines[0].get_color() == plots.COLORS["method"]
    assert len(ax.collections) == 1
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")


def test_animation_is_self_contained_and_described() -> None:
    made = plots.animate(lambda figure, i: figure.add_subplot().plot([0, i]), 3, alt='a "growing" line', dpi=20)
    page = made._repr_html_()
    assert page.count("iVBOR") == 3  # three PNG files
    assert 'alt="a &quot;growing&quot; line"' in page
    assert "http" not in page
    assert "aria-label" in page
    assert plt.get_fignums() == []


def test_different_animations_on_one_page_do_not_share_their_name() -> None:
    draws = [lambda figure, i, k=k: figure.add_subplot().plot([k, i]) for k in (0, 5)]
    pages = [plots.animate(draw, 2, alt="a line", dpi=20)._repr_html_() for draw in draws]
    names = {re.search(r'id="(\w+)"', page)[1] for page in pages}
    assert len(names) == 2


def test_frames_start_empty() -> None:
    counts = []
    plots.animate(lambda figure, i: (figure.add_subplot(), counts.append(len(figure.axes))), 3, alt="x", dpi=20)
    assert counts == [1, 1, 1]


def test_animation_html_is_the_same_in_every_run() -> None:
    draw = lambda figure, i: figure.add_subplot().plot([0, i])
    a, b = (plots.animate(draw, 2, alt="a line", dpi=20)._repr_html_() for _ in range(2))
    assert a == b


def _end(figure, choice) -> None:
    figure.add_subplot().plot([0, int(choice["end"])])


def test_explorer_stores_equal_pictures_once_and_finds_each() -> None:
    made = plots.explorer(_end, {"end": ["1", "2"], "no effect": ["a", "b", "c"]}, alt="a line", dpi=20)
    assert made.index == [0, 0, 0, 1, 1, 1]
    page = made._repr_html_()
    assert page.count("iVBOR") == 2
    assert page.count("<select") == 2
    assert page.count("<option>") == 5
    assert plt.get_fignums() == []


def test_explorer_shows_its_first_picture_without_scripts() -> None:
    made = plots.explorer(_end, {"end": ["1", "2"]}, alt="a line", dpi=20)
    before_script = made._repr_html_().partition("<script>")[0]
    assert base64.b64encode(made.images[0]).decode() in before_script


def test_a_figure_is_closed_when_drawing_fails() -> None:
    def fails(figure, choice) -> None:
        raise RuntimeError("no picture")

    with pytest.raises(RuntimeError, match="no picture"):
        plots.explorer(fails, {"end": ["1"]}, alt="a line")
    with pytest.raises(RuntimeError, match="no picture"):
        plots.animate(fails, 2, alt="a line")
    assert plt.get_fignums() == []


def test_explorer_draws_every_combination_on_an_empty_figure() -> None:
    seen, choices = [], {"a": ["1", "2"], "b": ["x", "y"]}
    draw = lambda figure, choice: (seen.append((*choice.values(), len(figure.axes))), figure.add_subplot())
    plots.explorer(draw, choices, alt="nothing", dpi=10)
    assert seen == [("1", "x", 0), ("1", "y", 0), ("2", "x", 0), ("2", "y", 0)]


def test_explorer_is_self_contained_described_and_the_same_in_every_run() -> None:
    hostile = 'a "line" </script>'
    made, again = (plots.explorer(_end, {"end": ["1", "2"]}, alt=hostile, dpi=20) for _ in range(2))
    page = made._repr_html_()
    assert page == again._repr_html_()
    assert "http" not in page
    assert 'aria-label="end"' in page
    assert 'alt="a &quot;line&quot; &lt;/script&gt;"' in page
    assert page.count("</script>") == 1
    other = plots.explorer(_end, {"end": ["1", "3"]}, alt=hostile, dpi=20)._repr_html_()
    assert re.search(r'id="(\w+)"', page)[1] != re.search(r'id="(\w+)"', other)[1]


@pytest.mark.bad_input
class TestBadInput:
    def test_shapes(self) -> None:
        with pytest.raises(ValueError, match=r"x must have shape \[n, 2\], got \[3, 3\]"):
            plots.scatter(torch.zeros(3, 3))
        with pytest.raises(ValueError, match=r"states must have shape \[times, n, 2\]"):
            plots.trajectories(torch.zeros(3, 2))
        with pytest.raises(ValueError, match="images must have shape"):
            plots.image_grid(torch.zeros(3, 3, 8, 8))
        with pytest.raises(ValueError, match="columns must be positive"):
            plots.image_grid(torch.zeros(3, 1, 8, 8), columns=0)
        with pytest.raises(ValueError, match="must have 2 columns, got 3"):
            plots.curves([1, 2], {"a": torch.zeros(3)})

    def test_animations(self) -> None:
        with pytest.raises(ValueError, match="frames must be positive"):
            plots.animate(lambda figure, i: None, 0, alt="nothing")
        with pytest.raises(ValueError, match="alt must describe"):
            plots.Animation([b"x"], "")
        with pytest.raises(ValueError, match="frames is empty"):
            plots.Animation([], "nothing")

    def test_explorers(self) -> None:
        with pytest.raises(ValueError, match="choices is empty"):
            plots.explorer(_end, {}, alt="nothing")
        with pytest.raises(ValueError, match=r"choices\['end'\] must hold different options"):
            plots.Explorer([b"x", b"y"], {"end": ["1", "1"]}, "lines")
        with pytest.raises(ValueError, match="one picture for each of the 2 choices, got 1"):
            plots.Explorer([b"x"], {"end": ["1", "2"]}, "lines")
        with pytest.raises(ValueError, match="alt must describe"):
            plots.Explorer([b"x"], {"end": ["1"]}, "")
