"""The page: whole, safe with any name, and without a network. ``test_browser`` looks at it as a reader does."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from bnn_compiler.profiling.html_report import Subject, html_report
from bnn_compiler.profiling.roofline import make_roofline

from .made_up import HOST, HOSTILE, profile, report

VOID = {"meta", "br"}
LOADING = {"src", "href", "srcset", "data", "action", "xlink:href", "background", "poster"}


class Page(HTMLParser):
    """Elements, attributes and text of a page; elements must nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def page(**options: bool) -> str:
    return html_report(Subject(HOSTILE, "a machine", "1.0"), report(), profile(**options))


@pytest.mark.parametrize("compared", [True, False])
@pytest.mark.parametrize("peaks", [True, False])
def test_sections(compared: bool, peaks: bool) -> None:
    parsed = Page(page(compared=compared, peaks=peaks))
    names = [value for name, value in parsed.attributes if name == "id"]
    assert {"shares", "layers", "kernels", "trees", "float", "notes"} <= set(names)
    assert ("svg" in parsed.elements) == peaks
    assert parsed.elements.count("table") >= 5
    assert parsed.elements.count("caption") == parsed.elements.count("table")


def test_facts() -> None:
    text = Page(page()).text
    assert "45 µs" in text and "250 µs" in text and "5.6×" in text and "5 MB" in text and "4.1 kB" in text


def test_names_are_text() -> None:
    parsed = Page(page())
    assert "script" not in parsed.elements and "img" not in parsed.elements
    assert not [name for name, _ in parsed.attributes if name.startswith("on")]
    assert parsed.text.count(HOSTILE) >= 5
    assert f"found {HOSTILE}" in parsed.text


def test_nothing_is_loaded() -> None:
    text = page()
    parsed = Page(text)
    assert HOST in parsed.text  # a name is shown, but is no reference
    assert not [value for name, value in parsed.attributes if name in LOADING]
    assert not re.search(r"@import|url\(|<link|<script|<iframe|<object|<base", text)
    assert "default-src 'none'" in text


def test_the_chart_has_its_text() -> None:
    parsed = Page(page())
    assert parsed.elements.count("desc") == 1
    told = " ".join(parsed.text)
    assert "binary: 1,000 GMAC/s" in told and "memory: 20 GB/s" in told
    assert "80.0 % of its roof" in told


def test_roofs() -> None:
    made = profile()
    assert made["peaks"] is not None
    roofline = make_roofline(made["kernels"], made["peaks"])
    assert roofline is not None
    stem, binary = roofline.points
    # 100 MACs per byte at 400 GB/s from the first cache are more than the core computes.
    assert (stem.intensity, stem.roof) == (100, 60)
    assert binary.roof == 1000 and binary.part == pytest.approx(0.8)
    assert binary.y < stem.y  # faster is higher
    inside = [roofline.left <= point.x <= roofline.right for point in roofline.points]
    assert all(inside) and all(roofline.top <= point.y <= roofline.bottom for point in roofline.points)
    for line in (*roofline.ceilings, *roofline.slopes):
        assert roofline.left <= line.x1 < line.x2 <= roofline.right
        assert roofline.top <= line.y2 <= line.y1 <= roofline.bottom


def test_no_roofline_without_measurable_layers() -> None:
    made = profile()
    assert made["peaks"] is not None
    assert make_roofline([kernel for kernel in made["kernels"] if not kernel["macs"]], made["peaks"]) is None
