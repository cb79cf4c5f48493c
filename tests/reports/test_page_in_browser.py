"""The page as a browser shows it: no error, no request, nothing wider than the window."""

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from html import escape
from pathlib import Path

import pytest

from posttrain.reports.html import html_page
from tests.reports.sample_report import sample_report
from tests.reports.samples import LONG

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--enable-logging=stderr",
    "--v=0",
    "--dump-dom",
    "--host-resolver-rules=MAP * ~NOTFOUND",
)
PROBE = """onload = () => {
  const page = document.getElementById("page");
  const root = page.contentDocument.documentElement;
  const found = document.createElement("pre");
  found.id = "found";
  found.textContent = JSON.stringify({
    overflow: root.scrollWidth - root.clientWidth,
    width: root.clientWidth,
    requests: page.contentWindow.performance.getEntriesByType("resource").map(entry => entry.name),
  });
  document.body.append(found);
}"""

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine")


@dataclass(frozen=True)
class Opened:
    """What a page did: its messages on the console, its requests, and how many px it is too wide."""

    console: list[str]
    requests: list[str]
    overflow: int


def opened(page: str, width: int, directory: Path) -> Opened:
    """Open the page in a frame of that width, since a browser's window cannot be as narrow as a phone's."""
    file = directory / "frame.html"
    frame = f'<iframe id="page" style="border: 0; width: {width}px; height: 900px" srcdoc="{escape(page)}"></iframe>'
    file.write_text(f'<!doctype html><meta charset="utf-8"><body>{frame}<script>{PROBE}</script>')
    command = [BROWSER, *FLAGS, f"--user-data-dir={directory / 'profile'}", file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    shown = re.search(r'<pre id="found">(.*?)</pre>', done.stdout)
    assert shown, done.stderr
    found = json.loads(shown[1])
    assert found["width"] == width
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return Opened(console, found["requests"], found["overflow"])


@pytest.fixture(scope="module")
def page() -> str:
    """A page whose names and tables are hard to fit."""
    return html_page(sample_report(LONG))


@pytest.mark.parametrize("width", [400, 1600])
def test_the_page_opens_quietly_and_is_no_wider_than_its_window(page: str, width: int, tmp_path: Path) -> None:
    assert opened(page, width, tmp_path) == Opened([], [], 0)


def test_the_check_sees_what_is_too_wide_and_what_the_policy_refuses(page: str, tmp_path: Path) -> None:
    broken = '<div style="width: 900px">wide</div><img src="http://example.invalid/x.png"></main>'
    found = opened(page.replace("</main>", broken), 400, tmp_path)
    assert found.overflow > 400
    assert any("Content Security Policy" in line and "x.png" in line for line in found.console)


def test_the_check_sees_a_request(tmp_path: Path) -> None:
    page = '<!doctype html><body><img src="http://example.invalid/x.png">'
    assert opened(page, 400, tmp_path).requests == ["http://example.invalid/x.png"]
