"""Links between pages lead somewhere, anchors included, and tables agree with the code."""

import re

import pytest
from helpers.pages import PAGES, ROOT, name_of

from bocb_jax import __version__, list_optimizers, model_card, optimizer_info, paper
from bocb_jax.models.factory import MODELS
from bocb_jax.recipes import REASONS

LINK = re.compile(r"(?<!`)\[[^\]\[]*\]\(([^)\s]+)\)")
README = (ROOT / "README.md").read_text("utf-8")


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and MyST make them."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target in LINK.findall(text):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path) if path else page
        assert linked.exists(), target
        if anchor and "_generated" not in linked.read_text("utf-8"):
            assert anchor in anchors(linked.read_text("utf-8")), target


def test_every_page_is_in_the_table_of_contents():
    index = (ROOT / "docs/index.md").read_text("utf-8")
    listed = set(re.findall(r"^([\w/]+)$", index, re.MULTILINE))
    pages = {p.relative_to(ROOT / "docs").with_suffix("").as_posix() for p in PAGES
             if ROOT / "docs" in p.parents}  # fmt: skip
    assert listed == pages - {"index"}


def test_the_citation_is_of_this_version():
    found = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text("utf-8"), re.MULTILINE)
    assert found[1] == __version__


def test_readme_is_short():
    assert len(README.splitlines()) <= 200


def test_backbones_in_the_readme():
    found = re.findall(r"^\| `(\w+)`(?: \(`\w+`\))? \| ([\d,]+) \|.*\| (\w+), (\d+) \|$", README,
                       re.MULTILINE)  # fmt: skip
    assert len(found) == 21
    for name, count, recipe, size in found:
        card = model_card(name)
        assert int(count.replace(",", "")) == (card.num_params or int(count.replace(",", "")))
        assert (card.recipe, str(card.input_size)) == (recipe, size)
    assert {row["model"] for row in paper.rows("backbones")} <= {name for name, *_ in found}


def test_optimizers_in_the_readme():
    section = README.partition("## Optimizers")[2].partition("\n## ")[0]
    for category, names in re.findall(r"^\| (.+?)(?::.*?)? \| (`.*`) \|$", section, re.MULTILINE):
        for name in re.findall(r"`([^`]+)`", names):
            info = optimizer_info(name)
            if category in "abcd":
                assert info.category == category
    assert {f"`{n}`" for n in list_optimizers() if "+" not in n} <= set(
        re.findall("`.+?`", section)
    )


def test_every_reason_is_among_the_deviations():
    page = (ROOT / "docs/deviations.md").read_text("utf-8")
    for _, _, setting in REASONS:
        assert f"| `{setting}`" in page


def test_variants_are_among_the_deviations():
    page = (ROOT / "docs/deviations.md").read_text("utf-8")
    assert len(MODELS.names()) > 21
    for name in ("alexnet", "efficientnet", "mixer", "moganet", "transnext", "identityformer"):
        assert f"`{name}" in page
