"""The book is complete: every chapter has the template's parts, every page is listed, every figure is described."""

import re
from pathlib import Path

import pytest
import yaml

from bookbuild.pages import ROOT, Page, chapters, expanded_toc, notebooks

CHAPTERS = chapters()
PAGES = sorted({*CHAPTERS, *(Page(path) for path in (ROOT / "book").glob("*.md"))}, key=lambda page: page.docname)
CELL = re.compile(r"^```\{code-cell\}[^\n]*\n(.*?)^```", re.DOTALL | re.MULTILINE)


def names(page: Page) -> str:
    return page.docname


def text(page: Page) -> str:
    return page.path.read_text(encoding="utf-8")


@pytest.mark.parametrize("page", CHAPTERS, ids=names)
class TestChapter:
    def test_header_says_how_to_run_it_and_where_it_stands(self, page: Page) -> None:
        assert page.header["jupytext"]["text_representation"]["format_name"] == "myst"
        assert page.header["kernelspec"]["name"] == "python3"
        assert "order" in page.header["book"]

    def test_title_is_labelled_with_the_file_name(self, page: Page) -> None:
        assert f"({page.name})=\n# " in text(page)

    @pytest.mark.parametrize(
        "part",
        [
            r"\*\*The question\.\*\*",
            r"\*\*What you will be able to do\*\*",
            r"\*\*Prerequisites\.\*\*",
            r"^## The idea in one picture",
            r"```\{prf:theorem\}",
            r"```\{prf:proof\}",
            r"\{cite",
            r"claims\.check\(",
            r"plots\.animate\(",
            r"^## At full scale",
            r"^## Exercises",
            r"^## Summary",
            r"(?i)left out",
        ],
    )
    def test_template_part_is_there(self, page: Page, part: str) -> None:
        assert re.search(part, text(page), re.MULTILINE), f"{page.docname}.md lacks {part}"

    def test_theorems_are_proved(self, page: Page) -> None:
        assert text(page).count("{prf:proof}") >= text(page).count("{prf:theorem}")

    def test_three_to_five_exercises_each_with_a_folded_solution(self, page: Page) -> None:
        content = text(page)
        exercises = re.findall(r"\{exercise(?:-start)?\}[^\n]*\n:label: (\S+)", content)
        solutions = re.findall(r"\{solution(?:-start)?\} (\S+)\n:class: dropdown", content)
        assert 3 <= len(exercises) <= 6
        assert set(exercises) == set(solutions)

    def test_an_exercise_checks_itself(self, page: Page) -> None:
        assert re.search(r"^def check_\w+\(", text(page), re.MULTILINE)

    def test_figures_have_captions_and_descriptions(self, page: Page) -> None:
        for match in CELL.finditer(text(page)):
            cell = match[1]
            line = text(page)[: match.start()].count("\n") + 1
            draws = re.search(
                r"plt\.subplots|plt\.figure|plots\.(scatter|density|curves|image_grid|trajectories|vector)", cell
            )
            defines = re.search(r"^def ", cell, re.MULTILINE)
            if draws and not defines:
                assert "alt:" in cell, f"{page.docname}.md:{line}: a figure without alt text"
                assert "caption:" in cell, f"{page.docname}.md:{line}: a figure without a caption"
            if "plots.animate(" in cell:
                assert "alt=" in cell, f"{page.docname}.md:{line}: an animation without alt text"

    def test_equations_are_checked_in_code(self, page: Page) -> None:
        assert len(re.findall(r"\bassert\b|\bcheck\(", text(page))) >= 8

    def test_claims_have_unique_ids_of_known_papers(self, page: Page) -> None:
        ids = re.findall(r'claims\.check\(\s*\n?\s*(?:id=)?"([^"]+)"', text(page))
        assert ids
        assert len(ids) == len(set(ids))
        for identity in ids:
            assert re.fullmatch(r"[a-z0-9-]+/[a-z0-9-]+", identity), identity


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_pages_name_no_machine(page: Page) -> None:
    assert not re.search(r"(?<![\w.])/(root|home|work|tmp|farm)/\w", text(page))


def test_every_page_is_in_the_table_of_contents() -> None:
    toc = expanded_toc()
    listed = {toc["root"]} | {entry["file"] for part in toc["parts"] for entry in part["chapters"]}
    missing = {page.docname for page in PAGES} - listed
    assert not missing


def test_chapters_come_in_the_order_of_their_headers() -> None:
    toc = expanded_toc()
    part = next(part for part in toc["parts"] if part["caption"].startswith("1 "))
    files = [entry["file"].rpartition("/")[2] for entry in part["chapters"]]
    assert files == [
        "transport",
        "flow-matching",
        "score-matching",
        "variational",
        "score-sde",
        "one-backbone",
        "painters",
        "are-we-learning-the-score",
        "memorisation",
    ]


def test_a_new_chapter_is_found_without_touching_another_file(tmp_path: Path) -> None:
    folder = tmp_path / "chapters" / "02-transport"
    folder.mkdir(parents=True)
    (tmp_path / "_toc.yml").write_text((ROOT / "_toc.yml").read_text())
    for name, order in (("second", 20), ("first", 10)):
        (folder / f"{name}.md").write_text(f"---\nbook:\n  order: {order}\n---\n# {name}\n")
    parts = {part["caption"]: part["chapters"] for part in expanded_toc(tmp_path)["parts"]}
    assert parts["2 · Transport"] == [
        {"file": "chapters/02-transport/first"},
        {"file": "chapters/02-transport/second"},
    ]
    assert "1 · Foundations" not in parts  # empty parts are dropped


def test_labels_are_unique_in_the_book() -> None:
    """Of equations, figures, theorems, exercises and sections: a reference must have one target."""
    pattern = r"^\$\$ ?\(([\w-]+)\)$|^:label: ([\w-]+)|^\(([\w-]+)\)=$|^ +name: ([\w-]+)$"
    found: dict[str, str] = {}
    for page in notebooks():
        content = text(page)
        body = content[content.index("\n---\n", 4) :]  # without the header
        for match in re.finditer(pattern, body, re.MULTILINE):
            label = next(group for group in match.groups() if group)
            assert label not in found, f"{label} is in {found[label]} and in {page.docname}"
            found[label] = page.docname


def test_claim_ids_are_unique_in_the_book() -> None:
    ids = [i for page in notebooks() for i in re.findall(r'claims\.check\(\s*\n?\s*(?:id=)?"([^"]+)"', text(page))]
    assert len(ids) == len(set(ids))


def test_citations_are_in_a_bibliography_and_keys_are_unique() -> None:
    files = [ROOT / "book" / "references.bib", *(ROOT / "chapters").glob("*/*.bib")]
    keys = [
        key for path in files for key in re.findall(r"^@\w+\{([^,]+),", path.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert len(keys) == len(set(keys)), sorted({key for key in keys if keys.count(key) > 1})
    for page in PAGES:
        for group in re.findall(r"\{cite(?::\w+)?\}`([^`]+)`", text(page)):
            for key in group.split(","):
                assert key.strip() in keys, f"{page.docname}.md cites {key}"


def test_library_names_in_the_prose_exist() -> None:
    """`paths.linear`, `solvers.ode` and the like in backticks on front pages and in the README are real."""
    import importlib

    files = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "book" / "notation.md", ROOT / "book" / "intro.md"]
    modules = (
        "paths",
        "fields",
        "solvers",
        "objectives",
        "couplings",
        "training",
        "plots",
        "claims",
        "nets",
        "metrics",
    )
    for path in files:
        content = path.read_text(encoding="utf-8")
        for module, name in re.findall(rf"\b({'|'.join(modules)})\.([a-zA-Z]\w+)\(", content):
            assert hasattr(importlib.import_module(f"flowlib.{module}"), name), f"{path.name}: {module}.{name}"


def test_readme_example_runs() -> None:
    content = (ROOT / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", content, re.DOTALL)
    exec(compile(code.replace("steps=500", "steps=3"), "README.md", "exec"), {})


def test_readme_names_every_make_target() -> None:
    targets = re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert {"book", "test", "lab", "chapter", "notebooks", "bench", "help"} <= set(targets)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for target in ("book", "test", "lab", "chapter", "notebooks", "bench", "help"):
        assert f"make {target}" in readme


def test_workflows_run_the_same_commands() -> None:
    for name in ("test", "book"):
        workflow = yaml.safe_load((ROOT / ".github" / "workflows" / f"{name}.yml").read_text(encoding="utf-8"))
        commands = [step.get("run", "") for job in workflow["jobs"].values() for step in job["steps"]]
        assert any(f"make {name}" in command for command in commands)
