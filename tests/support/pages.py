"""HTML pages, parsed and opened in a real browser."""

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def served_page(stage: str, *words: str) -> Iterator[tuple[str, subprocess.Popen[str], list[str]]]:
    """Starts a stage that serves a page, on a free port: its address, its process and the lines that it logs."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore it, as their children
    command = [sys.executable, "-m", f"asr_lora.{stage}", "hardware=cpu", f"app.port={port}", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines: list[str] = []
    opened = threading.Event()

    def read() -> None:
        for line in process.stdout or ():
            lines.append(line.rstrip())
            if line.startswith(f"{stage}: http"):
                opened.set()
        opened.set()

    thread = threading.Thread(target=read)
    thread.start()
    try:
        assert opened.wait(120) and process.poll() is None, lines
        yield f"http://127.0.0.1:{port}/", process, lines
    finally:
        process.terminate()  # so that it deletes its folder
        process.wait()
        thread.join()
        if process.stdout:
            process.stdout.close()


def problems_of(page: Any, address: str) -> list[str]:
    """Returns a list that collects a page's problems: errors, and requests to other hosts than `address`."""
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    own = (address, "data:", f"blob:{address}")
    page.on("request", lambda request: None if request.url.startswith(own) else wrong.append(request.url))
    return wrong


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
