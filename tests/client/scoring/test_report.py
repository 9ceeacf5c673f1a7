"""The page about a run: its numbers are the summary's, it loads nothing, and it reads well wherever it is looked at."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import Result

Losswire = Callable[..., Result]

CHROMIUM = shutil.which("chromium")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--allow-file-access-from-files",
    "--hide-scrollbars",
)  # fmt: skip

GENERATOR = np.random.default_rng(12)
NAMES = np.array(["ann", "<script>alert(1)</script>", '$x^2$ & "y"', "日本"])


@pytest.fixture
def run(losswire: Losswire, tmp_path: Path) -> Path:
    """A run with groups that have awkward names, ignored rows, a NaN and a shard that was skipped."""
    for folder, noise in (("now", 1.0), ("then", 2.0)):
        (tmp_path / folder).mkdir()
        for number in range(3):
            target = GENERATOR.integers(0, 6, 80)
            logits = 4 * np.eye(6)[target] + noise * GENERATOR.normal(size=(80, 6))
            target[::16] = -100
            logits[5] = np.nan if number == 1 else 0
            np.savez(
                tmp_path / folder / f"part-{number}.npz",
                logits=logits.astype(np.float32), target=target, writer=NAMES[np.arange(80) % 4],
            )  # fmt: skip
        np.savez(tmp_path / folder / "broken.npz", logits=np.ones((4, 6)), target=np.zeros(3, int), writer=NAMES)
        options = ("--group-by", "writer", "--on-error", "skip")
        assert losswire("score", folder, "--out", f"out-{folder}", *options).exit_code == 3
    return tmp_path / "out-now"


class Page(HTMLParser):
    """The numbers of each element that has an id, in the order in which they stand, and what the page loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.numbers: dict[str, list[float]] = {}
        self.loaded: list[str] = []
        self.tags: list[str] = []
        self._section = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.tags.append(tag)
        self._section = attributes.get("id") or self._section
        if tag == "data":
            self.numbers.setdefault(self._section, []).append(float(str(attributes["value"])))
        reference = attributes.get("src") or attributes.get("href") or attributes.get("xlink:href")
        if reference and not reference.startswith("#"):
            self.loaded.append(reference)


def require_numbers_of(page: Page, summary: dict[str, Any]) -> None:
    tiles = {
        "loss": "loss", "perplexity": "perplexity", "bits": "bits", "accuracy": "accuracy", "counted": "counted",
        "calibration-error": "calibration_error", "ignored": "ignored",
    }  # fmt: skip
    for name, key in tiles.items():
        assert page.numbers[name] == [summary[key]]
    assert page.numbers["nonfinite"][0] == summary["nonfinite"] == 1
    assert page.numbers["worst"] == [
        row[key] for row in summary["worst"][:25] for key in ("row", "confidence", "loss")
    ]  # fmt: skip
    columns = ("loss", "perplexity", "accuracy", "counted", "ignored", "nonfinite", "loss_sum", "weight_sum")
    for section in ("groups", "classes"):
        parts = sorted(summary[section].values(), key=lambda part: -part["loss"])
        assert page.numbers[section] == [part[column] for part in parts for column in columns]


def test_the_numbers_are_those_of_the_summary_and_nothing_is_loaded(losswire: Losswire, run: Path) -> None:
    assert losswire("report", run, "--compare", run.parent / "out-then").exit_code == 0
    text = (run / "report.html").read_text()
    page = Page(text)
    require_numbers_of(page, json.loads((run / "summary.json").read_text()))
    assert page.loaded == []
    assert "script" not in page.tags
    assert not re.search(r"url\((?!#)|@import", text)
    assert page.tags.count("svg") == 5
    assert "broken.npz" in text
    assert "compared with out-then" in text
    assert "points from" in text


@pytest.mark.parametrize("name", ['g" onload="alert(1)', "a\\b", "\\1"])
def test_the_name_of_the_groups_stays_text(losswire: Losswire, tmp_path: Path, name: str) -> None:
    arrays: dict[str, Any] = {"logits": np.eye(3), "target": np.arange(3), name: np.array(["x", "y", "z"])}
    np.savez(tmp_path / "a.npz", **arrays)
    assert losswire("score", "a.npz", "--out", "out", "--group-by", name).exit_code == 0
    assert losswire("report", "out").exit_code == 0
    labels: list[str] = []

    class Labels(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            assert "onload" not in dict(attrs)
            labels.append(dict(attrs).get("aria-label") or "")

    Labels().feed((tmp_path / "out" / "report.html").read_text())
    assert any(name in label for label in labels)


def test_a_report_may_be_written_elsewhere_and_leaves_the_run_as_it_was(losswire: Losswire, run: Path) -> None:
    before = sorted(path.name for path in run.iterdir())
    assert losswire("report", run, "--out", run.parent / "page.html").exit_code == 0
    assert sorted(path.name for path in run.iterdir()) == before
    assert (run.parent / "page.html").stat().st_size > 10_000


def test_a_run_without_rows_or_classes_has_a_report_too(losswire: Losswire, tmp_path: Path) -> None:
    np.savez(tmp_path / "none.npz", logits=np.ones((0, 3), np.float32), target=np.ones(0, int))
    np.savez(tmp_path / "soft.npz", logits=np.ones((2, 3), np.float32), target=np.full((2, 3), 1 / 3, np.float32))
    for name in ("none", "soft"):
        assert losswire("score", f"{name}.npz", "--out", name).exit_code == 0
        assert losswire("report", name).exit_code == 0


def test_a_folder_without_a_summary_is_refused(losswire: Losswire, run: Path) -> None:
    (run / "summary.json").unlink()
    result = losswire("report", run)
    assert result.exit_code == 4
    assert "holds no summary.json" in result.stderr


def in_chromium(page: Path, *flags: str) -> str:
    """The document as Chromium has it once it is shown."""
    assert CHROMIUM is not None
    profile = f"--user-data-dir={page.parent / 'profile'}"
    command = [CHROMIUM, *FLAGS, profile, *flags, "--virtual-time-budget=3000", "--dump-dom", f"file://{page}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    return done.stdout


@needs_chromium
def test_chromium_shows_the_numbers_of_the_summary(losswire: Losswire, run: Path) -> None:
    losswire("report", run)
    shown = in_chromium(run / "report.html")
    require_numbers_of(Page(shown), json.loads((run / "summary.json").read_text()))


MEASURE = """<!doctype html><style>iframe {border: 0; height: 900px}</style>
<iframe id=f src=report.html width=WIDTH></iframe>
<script>f.onload = () => { const d = f.contentDocument, s = e => f.contentWindow.getComputedStyle(e);
const found = {width: d.documentElement.scrollWidth, page: s(d.body).backgroundColor, ink: s(d.body).color,
bar: s(d.querySelector('svg path[style*="--accent"]')).fill, cut: [...d.querySelectorAll('svg text')].filter(t => {
const a = t.getBoundingClientRect(), b = t.closest('svg').getBoundingClientRect();
return a.left < b.left - 1 || a.right > b.right + 1; }).length};
document.body.innerHTML = '<pre id=found>' + JSON.stringify(found) + '</pre>'; }</script>"""


def measured(run: Path, width: int, *flags: str) -> dict[str, Any]:
    """How the page looks in a window of that width."""
    (run / "measure.html").write_text(MEASURE.replace("WIDTH", str(width)))
    [found] = re.findall(r'<pre id="found">(.*?)</pre>', in_chromium(run / "measure.html", *flags))
    answer: dict[str, Any] = json.loads(found)
    return answer


def luminance(color: str) -> float:
    """The relative luminance of `rgb(r, g, b)`, as WCAG 2 defines it."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(factor * part for factor, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@needs_chromium
@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_fits_a_phone_and_a_desk_and_cuts_no_text(losswire: Losswire, run: Path, width: int) -> None:
    losswire("report", run)
    found = measured(run, width)
    assert (found["width"], found["cut"]) == (width, 0)


@needs_chromium
def test_text_and_plots_stand_out_in_light_and_in_dark(losswire: Losswire, run: Path) -> None:
    losswire("report", run)
    light = measured(run, 800)
    dark = measured(run, 800, "--force-dark-mode", "--blink-settings=preferredColorScheme=0")
    assert luminance(light["page"]) > 0.8
    assert luminance(dark["page"]) < 0.1
    for found in (light, dark):
        assert contrast(found["page"], found["ink"]) > 7
        assert contrast(found["page"], found["bar"]) > 3
