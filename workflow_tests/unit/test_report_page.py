"""The report as people see it: in a browser, with mouse and keyboard, at several widths."""

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser, Page, find_chromium
from conftest import cannot_run
from PIL import Image
from results_tree import Tree

from panorgan.io.formats import MISSING

WIDTHS = (1280, 800)
CLASSES = "document.querySelector('#classes ~ .scroll table')"
"""The table of scores by class."""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = find_chromium()
    if program is None:
        cannot_run("needs Chromium: apt install chromium")
    with Browser(program, tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run with something in every section."""
    tree = Tree(tmp_path_factory.mktemp("tree"), variants=("gated", "stage2"), rounds=2, folds=1)
    tree.report()
    return tree.root / "report.html"


@pytest.fixture
def page(browser: Browser, report: Path) -> Page:
    return browser.open(report)


def head(title: str, table: str = CLASSES) -> str:
    """A column's heading."""
    return f"[...{table}.tHead.rows[0].cells].find(c => c.textContent.trim() === '{title}')"


def column(page: Page, title: str, table: str = CLASSES) -> list[str]:
    """A column's texts in the first body of a table, from top to bottom."""
    return page.run(
        f"[...{table}.tBodies[0].rows].map(r => r.cells[{head(title, table)}.cellIndex]"
        ".textContent.trim())"
    )


def test_it_opens_without_a_complaint_and_without_the_network(page, report):
    assert page.complaints == []
    assert page.requests == [report.resolve().as_uri()]
    assert page.run("document.title") == "tiny: report"


def test_every_picture_is_shown(page):
    shown = page.run("[...document.images].map(i => i.complete && i.naturalWidth > 0)")
    assert len(shown) > 30
    assert all(shown)


@pytest.mark.parametrize("width", WIDTHS)
def test_only_wide_tables_scroll_sideways(page, width):
    page.resize(width, 800)
    assert page.run("document.documentElement.scrollWidth <= innerWidth")
    # What does not fit scrolls inside, and the keyboard can reach it.
    assert page.run(
        "[...document.querySelectorAll('.scroll')].every(s => s.scrollWidth <= s.clientWidth || "
        "s.tabIndex === 0)"
    )
    assert page.run(
        "[...document.querySelectorAll('main table')].every(t => t.closest('.scroll') || "
        "t.scrollWidth <= t.parentElement.clientWidth)"
    )


@pytest.mark.parametrize("width", WIDTHS)
def test_contents_stay_in_sight(page, width):
    page.resize(width, 800)
    page.run("scrollTo(0, document.body.scrollHeight)")
    assert page.run(
        "(() => { const r = document.querySelector('nav').getBoundingClientRect();"
        "return r.top >= 0 && r.top < 5 && r.height > 20 && r.bottom <= innerHeight })()"
    )
    page.click("document.querySelector('nav a[href=\"#results\"]')")
    # The heading is below the bar, not behind it.
    assert page.run(
        "(() => { const h = document.getElementById('results').getBoundingClientRect();"
        "const bar = document.querySelector('nav').getBoundingClientRect();"
        "const beside = bar.right < h.left;"
        "return h.top >= (beside ? 0 : bar.bottom) && h.top < 200 })()"
    )


def test_tables_sort_by_mouse(page):
    before = column(page, "Class")
    page.click(head("DSC") + ".firstChild")
    rising = [float(text.split()[0]) for text in column(page, "DSC")]
    assert rising == sorted(rising)
    assert page.run(head("DSC") + ".getAttribute('aria-sort')") == "ascending"
    page.click(head("DSC") + ".firstChild")
    falling = [float(text.split()[0]) for text in column(page, "DSC")]
    assert falling == sorted(falling, reverse=True)
    assert page.run(head("DSC") + ".getAttribute('aria-sort')") == "descending"
    page.click(head("Class") + ".firstChild")
    assert column(page, "Class") == sorted(before)
    assert page.run(head("DSC") + ".getAttribute('aria-sort')") is None
    # Means stay below the classes.
    assert page.run(f"{CLASSES}.tBodies[1].rows[0].cells[0].textContent") == "Mean of the organs"


def test_tables_sort_by_keyboard_and_missing_values_stay_last(page):
    table = "document.querySelector('#classes ~ .scroll table')"
    values = ["12.5 %", MISSING, "1,200.00", "-3", "0.30 (0.1 to 0.4)"]
    page.run(
        f"{values}.forEach((text, at) => {table}.tBodies[0].rows[at].cells[3].textContent = text)"
    )
    page.run(f"[...{table}.tBodies[0].rows].slice(5).forEach(row => row.remove())")
    page.run(head("HD95, mm") + ".firstChild.focus()")
    page.press("Enter")
    expected = ["-3", "0.30 (0.1 to 0.4)", "12.5 %", "1,200.00", MISSING]
    assert column(page, "HD95, mm") == expected
    page.press(" ")
    assert column(page, "HD95, mm") == [*expected[3::-1], MISSING]
    assert page.run(f"document.activeElement === {head('HD95, mm')}.firstChild")


def test_the_keyboard_finds_its_way(page):
    page.press("Tab")
    assert page.run("document.activeElement.textContent") == "Skip to the report"
    assert page.run("document.activeElement.getBoundingClientRect().left >= 0")
    page.press("Enter")
    assert page.run("document.activeElement.id") == "main"
    page.press("Tab")
    style = "getComputedStyle(document.activeElement)"
    assert page.run(f"{style}.outlineStyle") == "solid"
    assert page.run(f"parseFloat({style}.outlineWidth)") >= 2


def test_a_bad_number_leads_to_its_picture(page):
    page.click("document.querySelector('#cases ~ .scroll td a')")
    assert page.run(
        "(() => { const name = decodeURIComponent(location.hash.slice(1));"
        "const place = document.getElementById(name).getBoundingClientRect();"
        "return place.top >= 0 && place.top < innerHeight })()"
    )


def test_the_methods_text_can_be_copied(page):
    page.run("document.getElementById('copy').scrollIntoView()")
    page.click("document.getElementById('copy')")
    said = page.run(
        "new Promise(done => setTimeout("
        "() => done(document.getElementById('copied').textContent), 300))"
    )
    assert said in ("Copied.", "Selected: copy it with Ctrl+C.")
    text = page.run("document.getElementById('methods-text').innerText")
    assert "[1] " in text
    assert "References" in text


def test_it_prints(page):
    page.call("Emulation.setEmulatedMedia", media="print")
    assert page.run("getComputedStyle(document.querySelector('nav')).display") == "none"
    assert page.call("Page.printToPDF")["data"].startswith("JVBERi")  # %PDF


def test_the_window_shows_something(page):
    shown = Image.open(io.BytesIO(page.picture())).convert("L")
    assert shown.size == (1280, 800)
    assert len(shown.getcolors()) > 20
