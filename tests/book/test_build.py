"""The build: what runs again and what does not, and failures that name their place."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bookbuild import claims, execute, keys, site
from bookbuild.pages import ROOT, BuildError, Page, find

HEADER = """---
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
"""


def notebook(root: Path, name: str, *cells: str, prose: str = "Some prose.") -> Page:
    path = root / "chapters" / "01-part" / f"{name}.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    body = "\n".join(f"```{{code-cell}} ipython3\n{cell}\n```\n" for cell in cells)
    path.write_text(f"{HEADER}\n# {name}\n\n{prose}\n\n{body}")
    return Page(path, root)


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A small package with layers: a imports b; c stands alone."""
    package = tmp_path / "flowlib"
    (package / "sub").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "a.py").write_text("from flowlib.sub import b\n")
    (package / "c.py").write_text("x = 1\n")
    (package / "sub" / "__init__.py").write_text("")
    (package / "sub" / "b.py").write_text("y = 1\n")
    (package / "weights").mkdir()
    (package / "weights" / "net.safetensors").write_text("1")
    return tmp_path


class TestKeys:
    def test_prose_does_not_count(self, library: Path) -> None:
        before = keys.key(notebook(library, "n", "from flowlib import a"))
        assert keys.key(notebook(library, "n", "from flowlib import a", prose="Other prose.")) == before

    def test_cells_count(self, library: Path) -> None:
        before = keys.key(notebook(library, "n", "x = 1"))
        assert keys.key(notebook(library, "n", "x = 2")) != before

    @pytest.mark.parametrize("cell", ["from flowlib import a", "import flowlib\nflowlib.a.b", "import flowlib.a as z"])
    def test_imported_modules_count_through_their_imports(self, library: Path, cell: str) -> None:
        page = notebook(library, "n", cell)
        before = keys.key(page)
        (library / "flowlib" / "sub" / "b.py").write_text("y = 2\n")
        assert keys.key(page) != before

    def test_other_modules_do_not_count(self, library: Path) -> None:
        page = notebook(library, "n", "from flowlib import a")
        before = keys.key(page)
        (library / "flowlib" / "c.py").write_text("x = 2\n")
        assert keys.key(page) == before

    def test_named_data_count(self, library: Path) -> None:
        (library / "flowlib" / "c.py").write_text("WEIGHTS = 'net.safetensors'\n")
        page = notebook(library, "n", "from flowlib import c")
        before = keys.key(page)
        (library / "flowlib" / "weights" / "net.safetensors").write_text("2")
        assert keys.key(page) != before

    def test_versions_count(self, library: Path) -> None:
        page = notebook(library, "n", "x = 1")
        before = keys.key(page)
        (library / "constraints.txt").write_text("torch==1\n")
        assert keys.key(page) != before

    def test_magics_do_not_hide_imports(self, library: Path) -> None:
        page = notebook(library, "n", "%matplotlib inline\nfrom flowlib import c")
        assert library / "flowlib" / "c.py" in keys.dependencies(keys.cells(page), library)

    def test_the_real_chapters_do_not_depend_on_everything(self) -> None:
        files = keys.dependencies(keys.cells(find("transport")), ROOT)
        assert ROOT / "flowlib" / "fields" / "mixture.py" in files
        assert ROOT / "flowlib" / "paths" / "gaussian.py" in files
        assert ROOT / "flowlib" / "recipes" / "digits_classifier.py" not in files


class TestExecution:
    def test_only_what_changed_runs_again(self, tmp_path: Path) -> None:
        build = tmp_path / "_build"
        one, two = notebook(tmp_path, "one", "print(1)"), notebook(tmp_path, "two", "print(2)")
        assert [r.fresh for r in execute.run_all([one, two], build)] == [True, True]
        two = notebook(tmp_path, "two", "print(3)")
        results = {r.docname: r.fresh for r in execute.run_all([one, two], build)}
        assert results == {"chapters/01-part/one": False, "chapters/01-part/two": True}

    def test_a_chapter_is_shown_as_it_ran_until_its_code_changes(self, tmp_path: Path) -> None:
        build = tmp_path / "_build"
        page = notebook(tmp_path, "one", "print(1)")
        assert execute.last_shown(page, build) is None
        (ran,) = execute.run_all([page], build)
        page = notebook(tmp_path, "one", "print(1)", prose="Other prose.")
        shown = execute.last_shown(page, build)
        assert shown is not None
        assert (shown.key, shown.fresh) == (ran.key, False)
        assert execute.last_shown(notebook(tmp_path, "one", "print(2)"), build) is None

    def test_claims_survive_when_nothing_runs(self, tmp_path: Path) -> None:
        build = tmp_path / "_build"
        cell = 'from flowlib import claims\nclaims.check("paper/claim", [0.5, 0.7], "< 1", source="Thm 1")'
        page = notebook(tmp_path, "one", cell)
        for _ in range(2):
            execute.run_all([page], build)
            (row,) = claims.gather([page], build)
        assert row["id"] == "paper/claim"
        assert row["chapter"] == "chapters/01-part/one"
        assert {"paper", "measured", "spread", "expected", "verdict", "source", "note"} <= set(row)
        assert json.loads((build / "claims.json").read_text()) == [row]

    def test_a_failing_cell_names_chapter_cell_and_error(self, tmp_path: Path) -> None:
        good, bad = notebook(tmp_path, "good", "1"), notebook(tmp_path, "bad", "x = 1", "assert x == 2, 'equation 7'")
        with pytest.raises(BuildError) as failure:
            execute.run_all([good, bad], tmp_path / "_build")
        message = str(failure.value)
        assert "chapters/01-part/bad.md failed" in message
        assert "AssertionError: equation 7" in message
        assert "assert x == 2" in message
        assert "line 23" in message or "line 24" in message, message
        assert "good" not in message

    def test_a_broken_claim_names_itself(self, tmp_path: Path) -> None:
        cell = 'from flowlib import claims\nclaims.check("paper/claim", 2.0, "< 1", source="Thm 1")'
        with pytest.raises(BuildError, match=r"paper/claim should hold and does not: measured 2, expected < 1"):
            execute.run_all([notebook(tmp_path, "bad", cell)], tmp_path / "_build")

    def test_a_failed_chapter_is_not_kept(self, tmp_path: Path) -> None:
        page = notebook(tmp_path, "bad", "raise ValueError")
        for _ in range(2):
            with pytest.raises(BuildError):
                execute.run_all([page], tmp_path / "_build")

    def test_two_chapters_cannot_record_one_claim(self, tmp_path: Path) -> None:
        build = tmp_path / "_build"
        pages = [notebook(tmp_path, name, "1") for name in ("one", "two")]
        for page in pages:
            path = execute.claims_file(page, build)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"id": "paper/claim", "chapter": page.docname}) + "\n")
        with pytest.raises(BuildError, match=r"paper/claim is checked twice: in .*one and .*two"):
            claims.gather(pages, build)

    def test_a_chapter_that_never_ends_is_stopped(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(execute, "BUDGET", 0.5)
        page = notebook(tmp_path, "slow", "import time; time.sleep(60)")
        with pytest.raises(BuildError, match="stopped after 5 s, ten times its budget"):
            execute.run_all([page], tmp_path / "_build")


def test_an_unknown_chapter_lists_the_known_ones() -> None:
    with pytest.raises(BuildError, match="no chapter is called 'flow'; there are: transport, flow-matching"):
        find("flow")


def test_a_broken_header_names_the_file(tmp_path: Path) -> None:
    page = notebook(tmp_path, "n", "1")
    page.path.write_text("---\nbook: [\n---\n# n\n")
    with pytest.raises(BuildError, match=r"01-part/n\.md: the YAML header"):
        _ = page.order


def test_api_pages_cover_every_public_module(tmp_path: Path) -> None:
    import shutil

    shutil.copytree(ROOT / "flowlib", tmp_path / "flowlib", ignore=shutil.ignore_patterns("__pycache__"))
    pages = site.write_api_pages(tmp_path)
    text = "\n".join(page.read_text() for page in pages)
    for path in (ROOT / "flowlib").rglob("*.py"):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if not any(part.startswith("_") for part in module.split(".")) and module != "flowlib":
            assert f"automodule:: {module}\n" in text


def test_notebooks_are_exported_without_outputs_and_without_churn(tmp_path: Path) -> None:
    runs = []
    for name in ("a", "b"):
        subprocess.run(
            [sys.executable, "-m", "bookbuild", "notebooks", "--out", str(tmp_path / name)], cwd=ROOT, check=True,
            capture_output=True,
        )  # fmt: skip
        runs.append({p.relative_to(tmp_path / name): p.read_bytes() for p in (tmp_path / name).rglob("*.ipynb")})
    assert runs[0] == runs[1]
    assert Path("chapters/01-foundations/transport.ipynb") in runs[0]
    for content in runs[0].values():
        assert all(not cell.get("outputs") for cell in json.loads(content)["cells"])


class TestMarkdownDocstrings:
    @pytest.fixture(autouse=True)
    def _extension(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.syspath_prepend(str(ROOT / "book" / "_ext"))

    def convert(self, text: str) -> str:
        import markdown_docstrings

        return "\n".join(markdown_docstrings.to_rest(text.split("\n")))

    def test_mathematics_and_code(self) -> None:
        out = self.convert("The score $s = -x_0$ of `field`, see $a\nb$.")
        assert ":math:`s = -x_0`" in out
        assert "``field``" in out
        assert ":math:`a b`" in out

    def test_display(self) -> None:
        out = self.convert("Before\n\n$$ x = 1,\n   y $$\n\nAfter")
        assert ".. math::\n\n   x = 1,\n   y\n" in out
        assert out.endswith("After")

    def test_tables_and_examples(self) -> None:
        out = self.convert("| a | b |\n|---|---|\n| $x$ | `y` |\n\n>>> cost = '$5'\n")
        assert ".. list-table::" in out
        assert ":math:`x`" in out
        assert ">>> cost = '$5'" in out


def test_pages_find_their_executed_notebooks_in_the_cache(tmp_path: Path) -> None:
    """The HTML build must find what was executed, or it would execute everything a second time."""
    from jupyter_cache import get_cache
    from myst_nb.core.read import read_myst_markdown_notebook

    build = tmp_path / "_build"
    page = notebook(tmp_path, "one", "---\ntags: [hide-input]\n---\nprint(41 + 1)", "x = 1")
    site.fill_cache([page], execute.run_all([page], build), build)
    cache = get_cache(build / ".jupyter_cache")
    record = cache.match_cache_notebook(read_myst_markdown_notebook(page.path.read_text()))
    found = cache.get_cache_bundle(record.pk).nb
    assert "42" in str(found.cells)
    # metadata of a cell may change without running it again, and the page must still find it
    page = notebook(tmp_path, "one", "---\ntags: [hide-cell]\n---\nprint(41 + 1)", "x = 1")
    results = execute.run_all([page], build)
    assert [result.fresh for result in results] == [False]
    site.fill_cache([page], results, build)
    cache.match_cache_notebook(read_myst_markdown_notebook(page.path.read_text()))


def test_a_kernel_whose_port_was_taken_starts_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = notebook(tmp_path, "n", "x = 1")
    tries = []

    def run(command, **options):
        tries.append(command)
        failed = len(tries) == 1
        return subprocess.CompletedProcess(command, int(failed), "", "ZMQError: Address already in use" * failed)

    monkeypatch.setattr(execute.subprocess, "run", run)
    execute.notebook_file(page, tmp_path / "_build").parent.mkdir(parents=True)
    assert execute._run(page, "key", tmp_path / "_build").fresh
    assert len(tries) == 2


def test_other_failures_are_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []

    def run(command, **options):
        tries.append(command)
        return subprocess.CompletedProcess(command, 1, "", "NameError: name 'y' is not defined")

    monkeypatch.setattr(execute.subprocess, "run", run)
    with pytest.raises(BuildError, match="NameError"):
        execute._run(notebook(tmp_path, "n", "y"), "key", tmp_path / "_build")
    assert len(tries) == 1
