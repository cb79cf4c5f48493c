"""The page: whole, safe, small, and nothing asked of the network."""

import re
from html.parser import HTMLParser

import pytest

from posttrain.reports.html import html_page
from posttrain.reports.part import Example, Finding, Part, Report
from posttrain.reports.tables import Cell, Table
from tests.reports.sample_report import sample_report
from tests.reports.samples import LONG

VOID = {"meta", "link"}


class Elements(HTMLParser):
    """Every element with its attributes; raises where one is closed that is not open."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


@pytest.fixture(scope="module")
def page() -> str:
    return html_page(sample_report())


@pytest.fixture(scope="module")
def elements(page: str) -> Elements:
    return Elements(page)


def one_part(part: Part) -> str:
    return html_page(Report("title", "subtitle", (part,)))


def test_every_element_is_closed_and_every_id_is_there_once(elements: Elements) -> None:
    assert elements.open == []
    ids = [attributes["id"] for _, attributes in elements.found if "id" in attributes]
    assert len(ids) == len(set(ids)) > 20
    linked = {link["href"] for link in elements.named("a")}
    assert linked == {f"#{part.key}" for part in sample_report().parts}
    assert {link[1:] for link in linked} <= set(ids)


def test_nothing_is_asked_of_the_network_and_nothing_runs(page: str, elements: Elements) -> None:
    assert elements.named("script") == elements.named("img") == elements.named("iframe") == []
    for _, attributes in elements.found:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:"))
    assert not re.search(r"url\((?!#)|@import", page)
    (policy,) = (m["content"] for m in elements.named("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:")


def test_a_page_of_eight_models_is_small() -> None:
    assert len(html_page(sample_report(LONG)).encode()) < 800_000


def test_texts_of_models_cannot_become_markup(page: str) -> None:
    assert "<script>alert(1)" not in page
    assert "&lt;/pre&gt;&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "⟨U+001B⟩[31m ⟨U+202E⟩gnp.exe" in page
    assert not set("\x1b\u202e") & set(page)


def test_no_place_for_a_text_lets_markup_through() -> None:
    evil = "<b onclick=x>&\"'"
    table = Table(evil, (evil, evil), ((Cell(evil), Cell(evil, evil, 'bold evil"><b>')),), evil)
    part = Part("key", evil, (Finding("note", evil),), (), (table,), (Example(evil, ((evil, evil),), (evil,)),), evil)
    page = html_page(Report(evil, evil, (part, Part("other", evil, absent=evil))))
    Elements(page)
    assert "<b" not in page.replace("<body", "")
    assert page.count("&lt;b onclick=x&gt;&amp;&quot;&#x27;") == 22


def test_findings_have_a_mark_and_a_word_beside_their_colour() -> None:
    tones = ("better", "worse", "cannot tell", "warning", "note")
    page = one_part(Part("key", "Part", findings=tuple(Finding(tone, "text") for tone in tones)))
    found = re.findall(r'<i aria-hidden="true">(.)</i>([a-z ]+)</span>', page)
    assert tuple(word for _, word in found) == tones
    assert len({mark for mark, _ in found}) == len(tones)


def test_the_first_part_leads(elements: Elements) -> None:
    classes = [section.get("class") for section in elements.named("section")]
    assert classes[0] == "lead"
    assert "lead" not in classes[1:]


def test_an_absent_part_is_a_line_with_its_reason_and_a_command() -> None:
    page = one_part(Part("judge", "Judge", absent="No judge. Run `posttrain eval --judge <url>`"))
    assert (
        '<section id="judge" class="absent"><h2>Judge</h2>'
        "<p>No judge. Run <code>posttrain eval --judge &lt;url&gt;</code></p></section>"
    ) in page
    assert '<li class="missing"><a href="#judge">' in page


def test_long_texts_fold_and_are_there_whole() -> None:
    text = "\n".join(f"line {i}" for i in range(40))
    page = one_part(Part("key", "Part", examples=(Example("one", (("a", text), ("b", "short"))),)))
    assert page.count("<details>") == 1
    assert f"<pre>{text}</pre>" in page
    assert "line 7 …</span>" in page
    assert f"show all {len(text)} characters" in page
    assert "<pre>short</pre>" in page


def test_an_empty_text_says_so() -> None:
    page = one_part(Part("key", "Part", examples=(Example("one", (("a", " \n"),)),)))
    assert '<h4>a</h4><p class="dim">empty</p>' in page


def test_what_was_asked_stands_over_the_answers() -> None:
    texts = (("prompt", "p"), ("gold", "g"), ("base", "x"), ("sft", "y"))
    page = one_part(Part("key", "Part", examples=(Example("one", texts, ("fixed",)),)))
    assert re.findall(r'<div class="(text[^"]*)"><h4>(\w+)', page) == [
        ("text asked", "prompt"),
        ("text asked", "gold"),
        ("text", "base"),
        ("text", "sft"),
    ]
    assert '<ul class="marks"><li>fixed</li></ul>' in page


def test_tables_keep_details_and_known_styles() -> None:
    rows = ((Cell("base"), Cell("3.0%", "2.0 to 4.0", "bold green"), Cell("x", style="blink")),)
    page = one_part(Part("key", "Part", tables=(Table("Accuracy", ("model", "score", "x"), rows, "in `points`"),)))
    assert '<th scope="row"><span>base</span></th>' in page
    assert '<td><span class="bold green">3.0%</span> <small>2.0 to 4.0</small></td><td>x</td>' in page
    assert '<p class="caption">in <code>points</code></p>' in page


def test_figures_say_what_they_show(elements: Elements) -> None:
    drawings = elements.named("svg")
    figures = [figure for part in sample_report().parts for figure in part.figures]
    assert [drawing["aria-label"] for drawing in drawings] == [figure.alt for figure in figures]
