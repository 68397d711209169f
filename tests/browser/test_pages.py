"""Every built page opens offline: mathematics typeset, figures visible, animations alive, search working."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bookbuild.pages import ROOT

pytestmark = pytest.mark.browser
sys.path.insert(0, str(Path(__file__).parent))
import pages as browsing

EXECUTABLE = browsing.browser_path()
BOOK = ROOT / "_build" / "html"

if EXECUTABLE is None:
    pytest.skip("no Chromium or Chrome on this machine (set FLOWLIB_BROWSER)", allow_module_level=True)

FIXTURE_PAGE = """---
jupytext:
  text_representation:
    extension: .md
    format_name: myst
    format_version: 0.13
kernelspec:
  display_name: Python 3
  language: python
  name: python3
book:
  order: 10
---

(sample)=
# Sample

An equation $x_t = \\\\alpha_t x_1$ and another

$$
\\\\d x = v\\\\,\\\\d t
$$ (sample-equation)

```{code-cell} ipython3
---
mystnb:
  image:
    alt: A rising line.
  figure:
    caption: A line.
    name: fig-sample
---
import matplotlib.pyplot as plt
plt.plot([0, 1]);
```

```{code-cell} ipython3
from flowlib import plots
plots.animate(lambda figure, i: figure.add_subplot().plot([0, i]), 4, alt="A line that rises.")
```

```{code-cell} ipython3
def draw(figure, choice):
    figure.add_subplot().plot([0, int(choice["end"])])


plots.explorer(draw, {"end": ["1", "2"], "name": ["a", "b"]}, alt="A line with a chosen end.")
```

```{code-cell} ipython3
from flowlib import claims
claims.check("paper/claim", [0.5, 0.7], "< 1", source="Thm 1")
```
"""


@pytest.fixture(scope="session")
def running():
    with browsing.browser(EXECUTABLE) as browser:
        yield browser


@pytest.fixture(scope="session")
def sample_book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A book of one chapter, built with the real configuration and extensions."""
    root = tmp_path_factory.mktemp("book")
    for name in ("_config.yml", "_toc.yml"):
        shutil.copy(ROOT / name, root)
    shutil.copytree(ROOT / "flowlib", root / "flowlib", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "book", root / "book", ignore=shutil.ignore_patterns("__pycache__", "api"))
    for name in ("intro", "how-to-read", "notation"):
        (root / "book" / f"{name}.md").write_text(f"# {name}\n\nA page.\n")
    chapter = root / "chapters" / "01-foundations" / "sample.md"
    chapter.parent.mkdir(parents=True)
    chapter.write_text(FIXTURE_PAGE.replace("\\\\", "\\"))
    return root


def build(root: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bookbuild", "--root", str(root), "book"], cwd=ROOT, capture_output=True, text=True
    )


@pytest.fixture(scope="session")
def sample_site(sample_book: Path) -> Path:
    done = build(sample_book)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Claims checked:    1 (1 holds)" in done.stdout
    return sample_book / "_build" / "html"


def test_sample_page_is_alive(running, sample_site: Path) -> None:
    with browsing.opened(running, sample_site / "chapters" / "01-foundations" / "sample.html") as (page, report):
        assert page.locator("mjx-container").count() == 2
        assert page.locator("mjx-merror").count() == 0
        figure = page.locator("figure img, .figure img").first
        assert figure.evaluate("image => image.naturalWidth") > 100
        assert figure.get_attribute("alt") == "A rising line."
        assert "A line." in page.inner_text("figcaption")
        assert "paper/claim" in page.inner_text(".claim-box")
        image = page.locator(".flow-animation img")
        assert image.get_attribute("alt") == "A line that rises."
        first = image.get_attribute("src")
        page.wait_for_function("s => document.querySelector('.flow-animation img').src !== s", arg=first, timeout=5000)
        page.click(".flow-animation button")  # pause, so that only the slider moves it
        seen = []
        for frame in ("0", "3"):
            page.locator(".flow-animation input").fill(frame)
            seen.append(image.get_attribute("src"))
        assert seen[0] != seen[1]
        page.wait_for_timeout(400)
        assert image.get_attribute("src") == seen[1]
        assert report.console == []
        assert report.requests == []


def test_a_selector_changes_the_picture_only_where_the_picture_differs(running, sample_site: Path) -> None:
    with browsing.opened(running, sample_site / "chapters" / "01-foundations" / "sample.html") as (page, report):
        image, status = page.locator(".flow-explorer img"), page.locator(".flow-explorer output")
        end, name = (page.get_by_label(label, exact=True) for label in ("end", "name"))
        assert image.evaluate("image => image.naturalWidth") > 100
        assert image.get_attribute("alt") == "A line with a chosen end. (1, a)"
        first = image.get_attribute("src")
        name.select_option("b")
        assert image.get_attribute("src") == first
        assert status.inner_text() == "picture 1 of 2"
        end.focus()
        page.keyboard.press("ArrowDown")  # without a mouse
        assert image.get_attribute("src") != first
        assert image.get_attribute("alt") == "A line with a chosen end. (2, b)"
        assert status.inner_text() == "picture 2 of 2"
        assert report.console == []
        assert report.requests == []


def test_claims_page_lists_the_claim_and_links_its_chapter(running, sample_site: Path) -> None:
    with browsing.opened(running, sample_site / "book" / "verifies.html") as (page, report):
        table = page.inner_text("table.claims")
        assert "paper/claim" in table
        assert "0.6 ± 0.14 (n = 2)" in " ".join(table.split())
        assert "Thm 1" in table
        assert page.evaluate("document.documentElement.scrollWidth") <= 1300
        assert page.inner_text("article a[href*='01-foundations/sample']") == "Sample"
        assert report.console == []


def test_a_broken_reference_fails_and_names_the_line(sample_book: Path, sample_site: Path) -> None:
    chapter = sample_book / "chapters" / "01-foundations" / "sample.md"
    content = chapter.read_text()
    line = content.count("\n") + 2
    try:
        chapter.write_text(content + "\nSee {doc}`nowhere`.\n")
        done = build(sample_book)
        assert done.returncode == 1
        assert f"sample.md:{line}: WARNING: unknown document" in done.stderr
        again = build(sample_book)
        assert again.returncode == 1, "a second build must not forget the warning"
        assert f"sample.md:{line}: WARNING: unknown document" in again.stderr
        chapter.write_text(content + "\nSee {eq}`no-such-equation`.\n")
        done = build(sample_book)
        assert done.returncode == 1
        assert "no-such-equation" in done.stderr
        assert "sample.md" in done.stderr
    finally:
        chapter.write_text(content)


def test_a_changed_result_reaches_the_page_though_the_text_is_the_same(
    running, sample_book: Path, sample_site: Path
) -> None:
    """A change in the library that the chapter imports runs it again and shows."""
    source = sample_book / "flowlib" / "claims.py"
    content = source.read_text()
    try:
        source.write_text(content.replace("measured <strong>", "we measured <strong>"))
        done = subprocess.run(
            [sys.executable, "-m", "bookbuild", "--root", str(sample_book), "book"], cwd=sample_book,
            capture_output=True, text=True, env=_environment(sample_book),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "chapters/01-foundations/sample (ran)" in done.stdout
        with browsing.opened(running, sample_site / "chapters" / "01-foundations" / "sample.html") as (page, _):
            assert "we measured" in page.inner_text(".claim-box")
    finally:
        source.write_text(content)


def _environment(root: Path) -> dict[str, str]:
    import os

    return os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{ROOT}"}


def built_pages() -> list[Path]:
    skip = {"genindex.html", "py-modindex.html", "search.html", "proof-list.html"}
    return sorted(
        path for path in BOOK.rglob("*.html") if path.name not in skip and "_static" not in path.parts
    ) if BOOK.is_dir() else []  # fmt: skip


@pytest.mark.skipif(not built_pages(), reason="the book is not built (make book)")
class TestBook:
    @pytest.mark.parametrize("path", built_pages(), ids=lambda path: path.relative_to(BOOK).as_posix())
    def test_page_opens_offline(self, running, path: Path) -> None:
        with browsing.opened(running, path) as (page, report):
            assert report.console == []
            assert report.requests == []
            assert page.locator("mjx-merror").count() == 0
            raw = page.evaluate(
                "() => [...document.querySelectorAll('.math')].filter(e => !e.querySelector('mjx-container')).length"
            )
            assert raw == 0, f"{raw} formulas were not typeset"
            # folded content has no size until it is opened
            page.evaluate("() => document.querySelectorAll('details').forEach(d => d.open = true)")
            images = page.evaluate(
                "() => [...document.querySelectorAll('article img, main img')].map(i => [i.naturalWidth, i.alt, i.src])"
            )
            for width, alt, source in images:
                assert width > 10, f"an image is not shown: {source[:80]}"
                assert alt, f"an image has no description: {source[:80]}"

    def test_search_finds_a_chapter(self, running) -> None:
        with browsing.opened(running, BOOK / "search.html", "?q=Hyv%C3%A4rinen") as (page, report):
            page.wait_for_selector("#search-results li", timeout=15000)
            assert "Score matching" in page.inner_text("#search-results")
            assert report.requests == []

    def test_animations_move(self, running) -> None:
        moving = 0
        for path in sorted((BOOK / "chapters").rglob("*.html")):
            with browsing.opened(running, path) as (page, _):
                for i in range(page.locator(".flow-animation img").count()):
                    image = page.locator(".flow-animation img").nth(i)
                    first = image.get_attribute("src")
                    page.wait_for_function("([i, s]) => document.querySelectorAll('.flow-animation img')[i].src !== s",
                                           arg=[i, first], timeout=8000)  # fmt: skip
                    moving += 1
        assert moving >= 3

    def test_every_link_inside_the_book_leads_somewhere(self) -> None:
        import html
        import re
        from urllib.parse import unquote, urlsplit

        for path in built_pages():
            for link in re.findall(r'<a[^>]*\shref="([^"]+)"', path.read_text(encoding="utf-8")):
                parts = urlsplit(html.unescape(link))
                if parts.scheme or not parts.path:
                    continue
                target = (path.parent / unquote(parts.path)).resolve()
                assert target.exists(), f"{path.relative_to(BOOK)} links to {link}"
