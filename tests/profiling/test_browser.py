"""The profile's page in headless Chromium: what a reader sees, and that nothing else is asked for."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from bnn_compiler.profiling.html_report import Subject, html_report

from .browser import Tab, find_chromium, open_tab
from .made_up import HOST, HOSTILE, profile, report


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    program = find_chromium()
    if program is None:
        pytest.skip("no Chromium here; scripts/setup-browser installs Debian's")
    with open_tab(program, tmp_path_factory.mktemp("chromium")) as opened:
        yield opened


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(html_report(Subject(HOSTILE, "a machine", "1.0"), report(), profile()), encoding="utf-8")
    return path


def test_a_page_that_does_load_is_noticed(tab: Tab, tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text(f"<title>bad</title><script src='{HOST}'></script><script>document.title = 'owned'</script>")
    tab.open(bad)
    assert HOST in tab.requested()
    assert tab.evaluate("document.title") == "owned"


def test_nothing_but_the_file_is_asked_for(tab: Tab, page: Path) -> None:
    tab.open(page)
    assert tab.requested() == [page.as_uri()]
    assert not [event for event in tab.events if event.get("method") == "Log.entryAdded"]


def test_names_are_shown_and_not_run(tab: Tab, page: Path) -> None:
    tab.open(page)
    assert tab.evaluate("document.title") == f"{HOSTILE} – bnnc profile"
    assert tab.evaluate("document.querySelector('h1').textContent") == HOSTILE
    assert tab.evaluate("document.querySelectorAll('script, img, iframe, a').length") == 0
    cell = "[...document.querySelectorAll('#layers + div tbody th')].map(cell => cell.textContent)"
    assert HOSTILE in tab.evaluate(cell)


def test_bars_are_as_long_as_times(tab: Tab, page: Path) -> None:
    tab.open(page)
    widths = "[...document.querySelectorAll('td.chart .bar')].map(bar => bar.getBoundingClientRect().width)"
    found = tab.evaluate(widths)
    layers = profile()["layers"]
    ours, theirs = found[0::2], found[1::2]
    assert ours == pytest.approx([layer["us"] / layers[0]["us"] * ours[0] for layer in layers], abs=1.5)
    times = [layer["onnxruntime_us"] or 0.0 for layer in layers]
    assert theirs == pytest.approx([time / max(times) * max(theirs) for time in times], abs=1.5)
    shares = tab.evaluate(
        "[...document.querySelectorAll('.whole div')].map(part => part.getBoundingClientRect().width)"
    )
    assert shares == pytest.approx([share * sum(shares) for share in profile()["shares"].values()], abs=1)


@pytest.mark.parametrize("width", [390, 1250])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_readable_in_both_schemes_and_on_a_phone(tab: Tab, page: Path, scheme: str, width: int) -> None:
    tab.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
    tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    tab.open(page)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width  # tables scroll by themselves
    colours = tab.evaluate("(style => [style.color, style.backgroundColor])(getComputedStyle(document.body))")
    text, background = (luminance(colour) for colour in colours)
    assert (text < background) == (scheme == "light")
    brighter, darker = max(text, background), min(text, background)
    assert (brighter + 0.05) / (darker + 0.05) >= 7  # the contrast that WCAG 2 calls AAA
    picture = tab.screenshot()
    assert picture.startswith(b"\x89PNG") and struct.unpack(">I", picture[16:20]) == (width,)


def test_whoever_sees_no_picture_is_told(tab: Tab, page: Path) -> None:
    tab.open(page)
    tab.call("Accessibility.enable")
    nodes = tab.call("Accessibility.getFullAXTree")["nodes"]
    images = [str(node["name"]["value"]) for node in nodes if node.get("role", {}).get("value") == "image"]
    assert any(name.startswith("Shares of a run: binary") for name in images)
    assert "Roofline of the kernels that compute layers" in images


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2) of ``rgb(r, g, b)``."""
    channels = [int(part) / 255 for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
