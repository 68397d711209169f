"""Sphinx extension: the built book loads nothing from the network, and opens from the file system.

MathJax is copied by sphinx-mathjax-offline. What remains are the live-code scripts of the theme, which load from a
CDN (and are declared twice), and links to icon fonts that some notebook outputs bring along. Browsers refuse fonts
beside a page that was opened as a file, so the theme's icon fonts are put inside their style sheet.

Launch buttons appear only where the build knows its repository, from the environment variable BOOK_REPOSITORY_URL;
those for Colab then point at the .ipynb on the branch `notebooks`, because Colab cannot open Markdown.
"""

import base64
import os
import re
from pathlib import Path
from typing import Any

_FONT_PRELOAD = re.compile(r"<link[^>]*rel=\"preload\"[^>]*as=\"font\"[^>]*>")
_ICON_FONT = re.compile(r"<link[^>]*font-awesome[^>]*>", re.IGNORECASE)


def _configure(app: Any, config: Any) -> None:
    url = os.environ.get("BOOK_REPOSITORY_URL", "").rstrip("/")
    if url:
        config.html_theme_options |= {
            "repository_url": url,
            "repository_branch": "main",
            "use_repository_button": True,
            "use_issues_button": True,
            "launch_buttons": {
                "binderhub_url": "https://mybinder.org",
                "colab_url": "https://colab.research.google.com",
            },
        }


def _strip_network(app: Any, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    def is_live_code(script: Any) -> bool:
        attributes = getattr(script, "attributes", {}) or {}
        text = f"{getattr(script, 'filename', script)} {attributes.get('body', '')}"
        return "thebe" in text.lower()

    context["script_files"] = [script for script in context.get("script_files", []) if not is_live_code(script)]
    if context.get("body"):
        context["body"] = _ICON_FONT.sub("", context["body"])


def _point_colab_at_notebooks(
    app: Any, pagename: str, templatename: str, context: dict[str, Any], doctree: Any
) -> None:
    def visit(entry: Any) -> None:
        if isinstance(entry, dict):
            url = entry.get("url")
            if isinstance(url, str) and "colab.research.google.com" in url:
                entry["url"] = re.sub(r"/blob/[^/]+/(.*)\.md$", r"/blob/notebooks/\1.ipynb", url)
            for value in entry.values():
                visit(value)
        elif isinstance(entry, list):
            for value in entry:
                visit(value)

    visit(context.get("header_buttons", []))


def _inline_fonts(app: Any, exception: Exception | None) -> None:
    """Replace font files by data inside the style sheets, and drop the links that would load them beforehand."""
    if exception is not None or app.builder.format != "html":
        return
    out = Path(app.outdir)
    for sheet in out.glob("_static/vendor/fontawesome/*/css/*.css"):
        text = sheet.read_text(encoding="utf-8")

        def embed(match: re.Match[str], folder: Path = sheet.parent) -> str:
            font = (folder / match.group(1)).read_bytes()
            return f"url(data:font/woff2;base64,{base64.b64encode(font).decode()})"

        text = re.sub(r""",?url\(["']?[^)"']+\.ttf["']?\) ?format\(["']truetype["']\)""", "", text)
        sheet.write_text(re.sub(r"""url\(["']?([^)"':]+\.woff2)["']?\)""", embed, text), encoding="utf-8")
    for page in out.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        without = _FONT_PRELOAD.sub("", text)
        if without != text:
            page.write_text(without, encoding="utf-8")


def setup(app: Any) -> dict[str, bool]:
    """Register the hooks, after those of the theme."""
    app.connect("config-inited", _configure, priority=900)
    app.connect("html-page-context", _strip_network, priority=900)
    app.connect("html-page-context", _point_colab_at_notebooks, priority=901)
    app.connect("build-finished", _inline_fonts)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
