"""The report in a real browser: it sorts, answers hover and keys, fetches nothing, fits a phone."""

import contextlib
import shutil

import pytest
from helpers import synthetic_runs

from bocb_jax.coupling import curves
from bocb_jax.coupling.analysis import analyze
from bocb_jax.coupling.scores import from_results
from bocb_jax.report import write

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")

EVIL = '<img src=x onerror="document.title=`hacked`">'
BACKBONES = ["resnet_mini", "vit_mini", "swin_mini", "convnext_mini", EVIL]
OPTIMIZERS = ["sgd", "adamw", "lamb", "lion", "adan"]
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update"]  # fmt: skip


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs")
    frame = synthetic_runs.results(BACKBONES, OPTIMIZERS, rates=3, seeds=2, failing={(1, 0)})
    synthetic_runs.write_curves(frame, workdir)
    table = from_results(frame)
    folder = tmp_path_factory.mktemp("out") / "report"
    drawn = ("shares", "critical_difference")
    found = curves.read(table, workdir)
    write.write(analyze(table, resamples=20), folder, curves=found, pictures=drawn)
    return (folder / "index.html").as_uri()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        launched = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield launched
        launched.close()


@contextlib.contextmanager
def opened(browser, address, width=1280, height=1000, scheme="light"):
    """Open the page; afterwards, it must have fetched nothing else and logged nothing."""
    logged, fetched = [], []
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    page.on("console", lambda message: logged.append(message.text))
    page.on("pageerror", lambda error: logged.append(str(error)))
    page.on("request", lambda request: fetched.append(request.url))
    page.goto(address)
    yield page
    page.close()
    assert logged == []
    assert fetched == [address]


def column(page, number):
    """Return the scores in a column of the heat map, from the top."""
    texts = page.locator(f"#heat tbody tr td:nth-of-type({number})").all_inner_texts()
    return [float(text.strip("★▲▼°")) for text in texts]


def test_heat_map_sorts_by_a_backbone_and_back(browser, address):
    with opened(browser, address) as page:
        first = column(page, 1)
        assert len(first) == len(OPTIMIZERS)
        head = page.locator("#heat thead th[data-b] button").first
        head.click()
        assert column(page, 1) == sorted(first, reverse=True)
        assert (
            page.locator("#heat thead th[data-b]").first.get_attribute("aria-sort") == "descending"
        )
        head.click()
        assert column(page, 1) == sorted(first)
        page.locator("#unsort").click()
        assert column(page, 1) == first


def test_heat_map_sorts_by_an_optimizer_with_cells_under_their_heads(browser, address):
    with opened(browser, address) as page:
        page.locator("#heat tbody th button").nth(2).click()
        heads = [th.get_attribute("data-b") for th in page.locator("#heat thead th[data-b]").all()]
        for row in page.locator("#heat tbody tr").all():
            cells = [td.get_attribute("data-b") for td in row.locator("td").all()]
            assert cells == heads
        texts = page.locator("#heat tbody tr").nth(2).locator("td").all_inner_texts()
        scores = [float(text.strip("★▲▼°")) for text in texts]
        assert scores == sorted(scores, reverse=True)


def test_hover_shows_the_details_of_a_cell(browser, address):
    with opened(browser, address) as page:
        card = page.locator("#card")
        assert card.is_hidden()
        cell = page.locator("#heat tbody td").first
        cell.scroll_into_view_if_needed()
        page.wait_for_timeout(300)  # scrolling hides the card, so let it end
        cell.hover()
        assert card.is_visible()
        text = card.inner_text()
        for fact in ("score", "learning rate", "weight decay", "seeds", "behind the best"):
            assert fact in text
        assert card.locator("svg .mine").count() == 1
        page.mouse.move(5, 5)
        assert card.is_hidden()


def test_arrow_keys_move_through_the_cells(browser, address):
    with opened(browser, address) as page:
        page.locator("#heat tbody td").first.focus()
        title = page.locator("#card h4")
        before = title.inner_text()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowDown")
        assert title.inner_text() != before
        focused = page.evaluate("[document.activeElement.cellIndex, "
                                "document.activeElement.parentNode.rowIndex]")  # fmt: skip
        assert focused == [2, 2]
        assert page.locator("#heat td[tabindex='0']").count() == 1
        page.keyboard.press("Escape")
        assert page.locator("#card").is_hidden()


def test_other_measures_and_tables_sort(browser, address):
    with opened(browser, address) as page:
        page.locator("#measure").select_option("regret")
        shown = page.locator("#heat tbody td").all_inner_texts()
        regrets = [float(text) for text in shown if text != "·"]  # the dot: no run finished
        assert min(regrets) == 0
        assert regrets.count(0) >= len(BACKBONES)
        table = page.locator("#optimizers table.data").first
        index = next(
            i for i, th in enumerate(table.locator("thead th").all(), 1)
            if th.inner_text().startswith("mean regret")
        )  # fmt: skip
        table.locator(f"thead th:nth-child({index}) button").click()
        values = [float(td.get_attribute("data-v"))
                  for td in table.locator(f"tbody td:nth-child({index})").all()]  # fmt: skip
        assert values == sorted(values, reverse=True)
        assert len(values) == len(OPTIMIZERS)


@pytest.mark.parametrize("width", [400, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_fits_the_window_and_is_legible(browser, address, width, scheme):
    with opened(browser, address, width, 800, scheme) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("parseFloat(getComputedStyle(document.body).fontSize)") >= 16
        small = page.evaluate(
            "Math.min(...[...document.querySelectorAll('p, li, td, th, button')]"
            ".filter(e => e.offsetParent).map(e => parseFloat(getComputedStyle(e).fontSize)))"
        )
        assert small >= 12
        ratio = page.evaluate(
            """() => {
              const light = (c) => {
                const [r, g, b] = c.match(/[\\d.]+/g).slice(0, 3).map((v) => {
                  v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
                });
                return 0.2126 * r + 0.7152 * g + 0.0722 * b;
              };
              const pairs = [[document.querySelector('p'), document.body]];
              pairs.push([document.querySelector('.source'), document.body]);
              for (const td of document.querySelectorAll('#heat td')) pairs.push([td, td]);
              return Math.min(...pairs.map(([ink, paper]) => {
                const a = light(getComputedStyle(ink).color);
                const b = light(getComputedStyle(paper).backgroundColor);
                return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
              }));
            }"""
        )
        assert ratio >= 4.5  # WCAG AA


def test_on_a_phone_a_touched_cell_shows_its_card_inside_the_window(browser, address):
    with opened(browser, address, 400, 800) as page:
        cell = page.locator("#heat tbody td").nth(6)
        cell.scroll_into_view_if_needed()
        page.wait_for_timeout(300)
        cell.click()
        box = page.locator("#card").bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 400
        assert box["y"] + box["height"] <= 800


def test_names_with_markup_are_shown_not_run(browser, address):
    with opened(browser, address) as page:
        page.wait_for_timeout(100)
        assert page.title() == "Backbone-optimizer coupling"
        assert page.locator("img").count() == 0
        assert EVIL in page.locator("#heat thead").inner_text()
        page.locator("#heat thead th[data-b]").filter(has_text="<img").locator("button").click()
        assert page.title() == "Backbone-optimizer coupling"


def test_theme_switches_and_back(browser, address):
    with opened(browser, address) as page:
        paper = "getComputedStyle(document.body).backgroundColor"
        before = page.evaluate(paper)
        page.locator("#theme").click()
        assert page.evaluate(paper) != before
        page.locator("#theme").click()
        assert page.evaluate(paper) == before


def test_readable_without_scripts(browser, address):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(address)
    assert page.locator("#heat tbody td").count() == len(BACKBONES) * len(OPTIMIZERS)
    assert page.locator("#theme").is_hidden()
    context.close()
