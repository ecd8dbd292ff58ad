"""HTML pages, parsed and opened in a real browser."""

import importlib.util
import os
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

HOSTILE = "<script>1</script>\"'&amp;ש🎈"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Page(HTMLParser):
    """A parsed page: the tags in order, and the text outside scripts and styles."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.json, self._inside = "", "", ""
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag if tag in ("script", "style") else self._inside

    def handle_endtag(self, tag: str) -> None:
        self._inside = "" if tag == self._inside else self._inside

    def handle_data(self, data: str) -> None:
        if self._inside == "script" and self.tags[-1][1].get("type") == "application/json":
            self.json += data
        elif not self._inside:
            self.text += data


def opened(browser: Any, file: Path, scheme: str, width: int) -> tuple[Any, list[str]]:
    """Opens the page in a window `width` pixels wide.

    Returns it and a list that collects the browser's errors.
    """
    page = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 800})
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("dialog", lambda dialog: errors.append(f"dialog: {dialog.message}"))
    page.on("request", lambda request: None if request.url.startswith(("file:", "data:"))
            else errors.append(request.url))  # fmt: skip
    page.goto(file.as_uri())
    if folder := os.environ.get("ASR_LORA_SCREENSHOTS"):  # to inspect them by eye
        page.screenshot(path=f"{folder}/{file.parent.name}-{scheme}-{width}.png", full_page=True)
    return page, errors


def violations(page: Any) -> list[str]:
    """Returns what axe-core finds that is serious or critical, on the page as it is shown."""
    package = importlib.util.find_spec("axe_playwright_python")
    assert package is not None and package.origin is not None, "uv sync --inexact --group test"
    page.evaluate(Path(package.origin).with_name("axe.min.js").read_text(encoding="utf-8"))
    found = page.evaluate("axe.run({resultTypes: ['violations']})")["violations"]
    return [
        f"{each['impact']} {each['id']}: {each['nodes'][0]['html']} {each['nodes'][0]['failureSummary']}"
        for each in found
        if each["impact"] in ("serious", "critical")
    ]


def seconds_of_players(page: Any) -> list[float]:
    """Returns the seconds of audio of every player, as decoded by the browser; 0 where it cannot decode."""
    seconds: list[float] = page.evaluate(
        """() => Promise.all([...document.querySelectorAll("audio")].map(player => new Promise(done => {
            player.addEventListener("loadedmetadata", () => done(player.duration));
            player.addEventListener("error", () => done(0));
            player.preload = "metadata"; player.load();
        })))"""
    )
    return seconds
