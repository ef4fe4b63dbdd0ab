"""The built site in a headless Chromium, from disk: links, errors, the width of a phone, dark mode and search."""

import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlparse

import chromium
import pytest

ROOT = Path(__file__).parents[1]
PHONE = 390

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("sphinx")
    if not chromium.PROGRAM:
        pytest.skip("needs Chromium")
    folder = tmp_path_factory.mktemp("site")
    subprocess.run([sys.executable, "-m", "sphinx", "-q", "-W", ROOT / "docs", folder], check=True)
    return folder


def pages_of(site):
    return sorted(page for page in site.rglob("*.html") if "_static" not in page.parts)


def test_links_lead_to_files_and_headings(site):
    pages = pages_of(site)
    assert len(pages) > 40
    anchors = {page: set(re.findall(r'\bid="([^"]+)"', page.read_text("utf-8"))) for page in pages}
    broken = []
    for page in pages:
        for target in re.findall(r'(?:href|src)="([^"]+)"', page.read_text("utf-8")):
            address = urlparse(target)
            if address.scheme or target.startswith("//"):
                continue
            file = (page.parent / unquote(address.path)).resolve() if address.path else page
            if not file.exists() or (address.fragment and file in anchors and address.fragment not in anchors[file]):
                broken.append(f"{page.relative_to(site)}: {target}")
    assert not broken


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_pages_load_nothing_from_elsewhere_and_fit_a_phone(site, dark):
    faults = []
    with chromium.Page(width=PHONE, height=800, mobile=True, dark=dark) as page:
        for file in pages_of(site):
            page.events.clear()
            page.open(file.as_uri())
            name = file.relative_to(site)
            faults += [f"{name}: {problem}" for problem in page.problems()]
            faults += [f"{name}: loads {url}" for url in page.requests() if not url.startswith("file:")]
            width = page.evaluate("document.scrollingElement.scrollWidth")
            if width > PHONE:
                faults.append(f"{name}: {width} pixels wide on a phone of {PHONE}")
            if page.evaluate("[...document.images].some(image => image.complete && !image.naturalWidth)"):
                faults.append(f"{name}: a picture is missing")
            background = page.evaluate("getComputedStyle(document.body).backgroundColor")
            levels = [int(level) for level in re.findall(r"\d+", background)[:3]]
            if (sum(levels) < 300) != dark:
                faults.append(f"{name}: background {background} in {'dark' if dark else 'light'} mode")
    assert not faults


def test_search_works_from_disk(site):
    with chromium.Page() as page:
        page.open((site / "search.html").as_uri() + "?q=dropout")
        page.wait_for("document.querySelector('#search-results a[href*=\"tour/overfitting\"]') !== null")
        assert page.evaluate("document.querySelectorAll('#search-results li').length") >= 3
