"""The page is whole, runs nothing, and shows foreign text as text."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from transloom.pipeline.compare.report import Picture, Table, write_report
from transloom.pipeline.compare.sentences import most_different

EVIL = '<script>alert("1")</script><img src=x onerror=alert(1)> & "quoted" \'too\' {{ 7 * 7 }}'


class Page(HTMLParser):
    """What a browser would make of it: elements with their attributes, and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def page(tmp_path: Path) -> tuple[str, Page]:
    for name in ("light.png", "dark.png"):
        (tmp_path / name).write_bytes(b"\x89PNG")
    said = {EVIL: [f"{EVIL} one"], "second": [f"two {EVIL}"]}
    sentences = most_different({EVIL: [1.0], "second": [2.0]}, said, [EVIL], [EVIL], 5)
    parts = [
        Table(EVIL, ["a", EVIL], [[EVIL, EVIL]], EVIL),
        Picture(EVIL, tmp_path / "light.png", tmp_path / "dark.png", EVIL),
    ]
    languages = {"source": '"><script>', "target": "de"}
    write_report(tmp_path / "report.html", EVIL, [EVIL], parts, sentences, [EVIL], languages)
    html = (tmp_path / "report.html").read_bytes().decode()
    return html, Page(html)


def test_foreign_text_is_shown_as_text(page) -> None:
    html, parsed = page
    assert "<script" not in html and "onerror=alert(1)>" not in html
    assert {"script", "iframe", "link", "object"}.isdisjoint(tag for tag, _ in parsed.elements)
    assert not [name for _, attributes in parsed.elements for name in attributes if name.startswith("on")]
    assert parsed.text.count('<script>alert("1")</script>') >= 9
    assert "{{ 7 * 7 }}" in parsed.text


def test_nothing_is_fetched(page) -> None:
    _, parsed = page
    addresses = [
        value or ""
        for tag, attributes in parsed.elements
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "action", "data")
    ]
    assert addresses
    assert all(address.startswith(("#", "data:image/png;base64,")) for address in addresses)


def test_the_policy_allows_no_script_and_this_style_alone(page) -> None:
    import base64
    import hashlib

    html, parsed = page
    policy = next(
        attributes["content"]
        for tag, attributes in parsed.elements
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    )
    style = re.search(r"<style>(.*?)</style>", html, re.DOTALL)
    assert style and policy
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert (
        policy == f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    assert not any("style" in attributes for _, attributes in parsed.elements)


def test_differences_are_told_in_words_too(page) -> None:
    _, parsed = page
    assert "differs, not in the reference: " in parsed.text
    marks = [attributes["class"] for tag, attributes in parsed.elements if tag == "mark"]
    assert "wrong" in marks and "right" in marks  # the legend's, at least
