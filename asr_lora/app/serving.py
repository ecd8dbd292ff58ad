"""What every page of the project shares: its address, its server, its look, and the line that an error becomes."""

import errno
import ipaddress
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gradio as gr
from markupsafe import escape
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse

from asr_lora.config.stages import AppConfig
from asr_lora.reporting.pages import environment
from asr_lora.runtime.console import log
from asr_lora.runtime.errors import ConfigError, ExternalError, UserError

QUIET = {"api_visibility": "private", "show_progress": "hidden"}  # for events that take no time
EVERY = 2.0  # seconds between two looks at what is to be done beside serving


def address(settings: AppConfig) -> str:
    """Returns the URL of the page."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"http://{host}:{settings.port}"


def delete_old(folder: Path, age: float) -> None:
    """Deletes the folders in `folder` that are older than `age` seconds."""
    for each in folder.iterdir():
        if each.is_dir() and each.stat().st_mtime < time.time() - age:
            shutil.rmtree(each, ignore_errors=True)  # a browser may be reading it: the next call deletes the rest


def is_loopback(host: str) -> bool:
    """Whether a server that is bound to this name or address is reachable only from this machine."""
    return all(ipaddress.ip_address(found[4][0]).is_loopback for found in socket.getaddrinfo(host, None))


def check_address(settings: AppConfig) -> None:
    """Raises ExternalError for a port in use, ConfigError for a host or port that cannot be bound."""
    try:
        family, *_, place = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
            probe.bind(place)
            probe.listen()
    except OSError as error:  # also of an unknown name
        if error.errno == errno.EADDRINUSE:
            raise ExternalError(
                f"app.port: another program uses port {settings.port} of {settings.host}; end it, or set another "
                f"port, app.port={settings.port % 65_535 + 1}"
            ) from error
        name, way_out = "app.host", "127.0.0.1 is this machine only, 0.0.0.0 all its addresses"
        if error.errno == errno.EACCES:
            name, way_out = "app.port", "ports below 1024 need an administrator; app.port=7860 does not"
        raise ConfigError(
            f"{name}: must be available, got {settings.host}:{settings.port} ({error.strerror}); {way_out}"
        ) from error


class OwnPageOnly:
    """Refuses what pages of other sites ask for in the browser of a user; ASGI middleware.

    A browser names the page that asks in Origin, which must be of the address that is asked (Host); and a page for this
    machine alone is not asked under another machine's name, as after DNS rebinding. `hosts` are the names of this
    machine; None: other machines may ask, under names that are not known here.
    """

    def __init__(self, app: Any, hosts: Sequence[str] | None) -> None:
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] in ("http", "websocket"):
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
            if not self.is_own(headers.get("host", ""), headers.get("origin")):
                await PlainTextResponse("this page answers itself alone", status_code=403)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def is_own(self, host: str, origin: str | None) -> bool:
        """Whether a request with these headers is of the page itself, or of no page."""
        if origin is not None and origin.partition("://")[2] != host:
            return False
        name = host.rpartition("]")[0].removeprefix("[") or host.partition(":")[0]
        return self.hosts is None or name.lower() in self.hosts


@contextmanager
def scratch_folder(stage: str) -> Iterator[Path]:
    """Yields a folder for what a page's server writes, which goes with the page."""
    with TemporaryDirectory(prefix=f"asr_lora-{stage}-") as folder:
        os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False"}
        yield Path(folder)


def serve(made: Any, settings: AppConfig, script: str = "") -> Any:
    """Starts the server in threads of its own, with a `<script>` of the page's own; the caller closes it."""
    style = environment(autoescape=False).get_template("app.css").render()
    hosts = ["localhost", "127.0.0.1", "::1", settings.host.lower()] if is_loopback(settings.host) else None
    made.launch(
        server_name=f"[{settings.host}]" if ":" in settings.host else settings.host, server_port=settings.port,
        share=False, prevent_thread_lock=True, quiet=True, show_error=True, footer_links=[], ssr_mode=False,
        mcp_server=False, enable_monitoring=False, run_history=False, pwa=False,
        max_file_size=settings.max_megabytes * 1_000_000,
        app_kwargs={"middleware": [Middleware(OwnPageOnly, hosts)]},
        theme=_theme(), head=f"<style>{style}</style>{script}",
    )  # fmt: skip
    return made


def serve_until_stopped(
    made: Any, settings: AppConfig, stage: str, others: str, scratch: Path,
    work: Callable[[], object] = lambda: None, script: str = "",
) -> Any:  # fmt: skip
    """Serves a page until Ctrl-C or SIGTERM, and calls `work` every other second; the caller then closes it.

    `others` says what those can do who reach it from other machines, which is logged where they can. What the server
    wrote into `scratch` is deleted after app.keep_minutes.
    """
    page = serve(made, settings, script)
    if not is_loopback(settings.host):
        log(f"app.host: {settings.host} is reachable from other machines: anyone who can reach it can {others}")
    with suppress(KeyboardInterrupt):
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the caller ends in order then, too
        log(f"{stage}: {address(settings)} (Ctrl-C ends it)")
        while True:
            time.sleep(EVERY)
            delete_old(scratch, 60 * settings.keep_minutes)
            work()
    return page


def page_error(error: UserError) -> Any:
    """Returns the error as one line for the page."""
    return gr.Error(str(escape(error)), print_exception=False)


def _theme() -> Any:
    """Returns gradio's theme in the colors of the report, light or dark like the system."""
    fill = {
        "body_background_fill": "paper", "body_text_color": "ink", "body_text_color_subdued": "soft",
        "background_fill_primary": "card", "background_fill_secondary": "wash", "block_background_fill": "card",
        "block_border_color": "line", "border_color_primary": "line", "block_label_background_fill": "card",
        "block_label_text_color": "soft", "block_title_text_color": "soft", "block_info_text_color": "soft",
        "input_background_fill": "paper", "input_border_color": "line", "color_accent": "tuned",
        "button_secondary_background_fill": "wash", "button_secondary_background_fill_hover": "line",
        "button_secondary_text_color": "ink", "button_secondary_border_color": "line",
        "button_primary_background_fill": "tuned", "button_primary_background_fill_hover": "tuned",
        "button_primary_border_color": "tuned", "button_primary_border_color_hover": "tuned",
        "button_primary_text_color": "paper", "slider_color": "tuned", "stat_background_fill": "line",
        "loader_color": "tuned", "input_border_color_focus": "tuned",
    }  # fmt: skip
    colors = {f"{name}{end}": f"var(--{color})" for name, color in fill.items() for end in ("", "_dark")}
    del colors["color_accent_dark"]  # gradio has no such variable
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    return gr.themes.Base(**fonts).set(input_border_width="1px", **colors)
