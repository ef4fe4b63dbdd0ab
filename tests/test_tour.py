"""Pages of the tour and the tutorial: complete, with results that belong to their cells; `-m tour` runs them."""

import re

import pytest

from benchmarks import tour

PAGES = [pytest.param(page, id=page.stem) for page in tour.pages()]
LESSONS = [page for page in PAGES if page.id != "tutorial"]


@pytest.mark.parametrize("page", PAGES)
def test_results_belong_to_the_cells(page):
    cells = tour.cells_of(page.read_text("utf-8"))
    assert any(cell.recorded for cell in cells)
    for number, cell in enumerate(cells, 1):
        assert cell.recorded in ("", cell.digest), f"cell {number} was changed: python -m benchmarks.tour {page.stem}"
        compile(cell.code if cell.language == "python" else "", f"{page.name} cell {number}", "exec")
        assert ("# figure: " in cell.code) == ("![" in cell.shown), f"cell {number}"


@pytest.mark.parametrize("page", PAGES)
def test_pictures_are_small_described_and_used(page):
    text = page.read_text("utf-8")
    found = re.findall(r"^!\[(.+)\]\((pictures/.+)\)$", text, re.MULTILINE)
    shown = {name: description for description, name in found}
    files = set((page.parent / tour.PICTURES).glob(f"{page.stem}-[0-9]*.png"))
    assert files == {page.parent / name for name in shown}
    for name, description in shown.items():
        assert len(description) >= 20
        assert (page.parent / name).stat().st_size < 150_000


@pytest.mark.parametrize("page", LESSONS)
def test_a_lesson_asks_shows_and_sets_an_exercise(page):
    text = page.read_text("utf-8")
    first = text.split("\n\n")[1]
    assert first.startswith("**") and "?" in first.split("**")[1], "a page begins with the question that it answers"
    assert "![" in text or "\n|" in text, "a page shows a figure or a table"
    assert re.search(r"^## Exercise$", text, re.MULTILINE)
    assert "<summary>Solution</summary>" in text.split("## Exercise")[1]


def test_notebooks_are_valid():
    pytest.importorskip("nbformat")
    for page in tour.pages():
        text = page.read_text("utf-8")
        notebook = tour.notebook_of(text, install=True)
        assert len(notebook.cells) > len(tour.cells_of(text))
        assert "pip install" in notebook.cells[1].source


def test_numbers_are_compared_within_the_tolerance():
    page = (
        "```python\nx\n```\n\n<!-- results 0 -->\n```text\nloss 1.00 after 3.2 s, accuracy 91.0 %\n```\n<!-- end -->\n"
    )
    assert not tour.differences(page, page.replace("1.00", "1.04").replace("3.2 s", "9.9 s"))

    assert tour.differences(page, page.replace("1.00", "1.20"))
    assert tour.differences(page, page.replace("91.0", "80.0"))
    assert tour.differences(page, page.replace("loss", "cost"))


@pytest.mark.tour
@pytest.mark.parametrize("page", PAGES)
def test_a_page_prints_what_it_shows(page):
    pytest.importorskip("nbclient")
    assert tour.differences(page.read_text("utf-8"), tour.run_page(page, write=False)) == []
