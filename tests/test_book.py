"""The book as a reader's browser shows it, without a network.

Skipped where `make book` has not put Sphinx into .venv, or where there is no browser.
"""

import importlib.util
import io
import re
import shutil
from contextlib import contextmanager

import matplotlib.pyplot as plt
import nbformat
import pytest

from minillama.course import book, sync

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
    None,
)
for needed, found in {
    "`make book` installs Sphinx": importlib.util.find_spec("myst_nb"),
    "pip install -e '.[browser]' installs Playwright": importlib.util.find_spec(
        "playwright"
    ),
    "Chromium or Chrome must be on the path": BROWSER,
}.items():
    if not found:
        pytest.skip(needed, allow_module_level=True)

# Sphinx tells its extensions of its next versions.
pytestmark = pytest.mark.filterwarnings("ignore:.*Check CHANGES for Sphinx")
PAGES = ("00_map", "07_preferences", "19_ppo")
# A browser of its own accord asks for updates and the like.
QUIET = [
    "--no-sandbox",
    "--disable-background-networking",
    "--disable-component-update",
]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(folder, what Sphinx warned of) of a book of all notebooks."""
    out = tmp_path_factory.mktemp("book") / "book"
    return out, book.build(out, sorted(sync.NOTEBOOKS.glob("*.ipynb")))


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=QUIET)
        yield browser
        browser.close()


@contextmanager
def opened(chromium, built, name, scheme="light"):
    """A page of the book, read from disk; it fails if anything is asked for in vain."""
    home = built[0].as_uri()
    context = chromium.new_context(offline=True, color_scheme=scheme)
    page, asked, failed, said = context.new_page(), [], [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("requestfailed", lambda request: failed.append(request.url))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(f"{home}/{name}")
    page.evaluate("window.MathJax && MathJax.startup.promise.then(() => null)")
    yield page
    context.close()
    elsewhere = [url for url in asked if not url.startswith((home, "data:"))]
    assert (elsewhere, failed, said) == ([], [], [])
    assert len(asked) > 10


def count(page, selector):
    return page.locator(selector).count()


def test_sphinx_has_nothing_to_warn_of(built):
    assert built[1] == ""


@pytest.mark.parametrize("name", PAGES)
def test_figures_formulas_and_answers(chromium, built, name):
    cells = nbformat.read(sync.NOTEBOOKS / f"{name}.ipynb", as_version=4).cells
    outputs = [x for cell in cells for x in cell.get("outputs", [])]
    figures = sum("image/png" in x.get("data", {}) for x in outputs)
    answers = sum(x.source.count("<details>") for x in cells)
    with opened(chromium, built, f"{name}.html") as page:
        widths = page.evaluate("[...document.images].map(x => x.naturalWidth)")
        assert len(widths) == figures > 0 and min(widths) > 300
        formulas = count(page, "main .math")
        assert count(page, "main .math mjx-container mjx-math") == formulas > 5
        assert count(page, "mjx-merror") == 0
        assert count(page, "main details") == answers > 0
        folded = page.locator("main details p").first
        assert not folded.is_visible()
        page.locator("main details summary").first.click()
        assert folded.is_visible()
        texts = page.locator("main details").all_text_contents()
        assert not any("**" in text or "$" in text for text in texts)


def test_figures_keep_their_paper_in_the_dark(chromium, built):
    """The page is dark, and the corner of a figure is opaque and light."""
    with opened(chromium, built, "15_whiten.html", "dark") as page:
        assert page.evaluate("document.documentElement.dataset.theme") == "dark"
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert max(map(int, re.findall(r"\d+", dark))) < 60
        image = page.locator("main img").first
        image.scroll_into_view_if_needed()
        shown = plt.imread(io.BytesIO(image.screenshot()))  # (height, width, 3), 0 to 1
        assert shown[5, 5].min() > 0.7


def test_one_finds_ones_way(chromium, built):
    """Contents, links between lessons, previous and next, and the search."""
    with opened(chromium, built, "index.html") as page:
        assert count(page, "main .toctree-wrapper a") >= len(PAGES)
        page.locator("main .toctree-wrapper a", has_text="15 ·").click()
        page.wait_for_url("**/15_whiten.html")
        page.locator("main a", has_text="14_policy_gradient").click()
        page.wait_for_url("**/14_policy_gradient.html")
        page.locator("a.right-next").click()
        page.wait_for_url("**/15_whiten.html")
        page.locator("a.left-prev").click()
        page.wait_for_url("**/14_policy_gradient.html")
    with opened(chromium, built, "search.html?q=whitening") as page:
        page.wait_for_selector("#search-results li a")
        assert "15 ·" in page.locator("#search-results").inner_text()
