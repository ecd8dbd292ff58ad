"""Serves a web page that compares two models:  python -m asr_lora.app [run_dir=runs/...]

Then open http://127.0.0.1:7860. The base and the fine-tuned model transcribe the same recording, side by side. Uses the
last run, or the one that the overrides name; 'adapters={nl: runs/nl-..., es: runs/es-...}' offers several adapters on
one base. Recordings stay on this machine, in a temporary folder for app.keep_minutes or until the app ends. Ctrl-C
ends it.
"""

import errno
import ipaddress
import os
import shutil
import signal
import socket
import time
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from asr_lora.app import models
from asr_lora.config.compose import Config, job_overrides
from asr_lora.config.stages import AppConfig
from asr_lora.model.hardware import resolve_hardware
from asr_lora.runs import folder as run
from asr_lora.runs.finding import find_run
from asr_lora.runs.launch import launch
from asr_lora.runtime.commands import to_install
from asr_lora.runtime.console import log
from asr_lora.runtime.errors import ConfigError, ExternalError

try:
    from asr_lora.app import ui
except ImportError as missing:
    absent = f"error: app: needs {missing.name}, which is not installed; {to_install('app')}"
    raise SystemExit(absent) from missing


EVERY = 30.0  # seconds between two deletions of old recordings


def app(config: Config) -> None:
    """Serves the page until Ctrl-C or SIGTERM.

    Raises ConfigError or ExternalError if the address, the run or the adapters cannot be used.
    """
    check_address(config.app)
    hardware = resolve_hardware(config.hardware, config.model, config.lora, config.training.batch_size)
    overrides = job_overrides()
    if config.adapters:
        pair = models.with_adapters(config, config.adapters, hardware, overrides)
    else:
        folder = find_run(config, overrides)
        log(f"run: {folder}")
        pair = models.of_run(config, run.recorded_config(folder, config, overrides), hardware)
    if pair.base is not pair.tuned:
        log(f"lora={pair.kind} changes the weights of the base model: two models are in memory")
    with TemporaryDirectory(prefix="asr_lora-app-") as scratch:
        os.environ |= {"GRADIO_TEMP_DIR": scratch, "GRADIO_ANALYTICS_ENABLED": "False"}
        opened = not is_loopback(config.app.host)
        handlers = ui.Handlers(pair, config.app, Path(scratch))
        page = ui.serve(ui.page(handlers, opened), config.app)
        if opened:
            log(
                f"app.host: {config.app.host} is reachable from other machines: anyone who can reach it can use the "
                "model, play the run's test clips and read their texts, without a password and unencrypted; browsers "
                "allow the microphone only on localhost or over https"
            )
        with suppress(KeyboardInterrupt):
            signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that recordings are deleted then, too
            log(f"app: {address(config.app)} (Ctrl-C ends it)")
            while True:
                time.sleep(EVERY)
                delete_old(Path(scratch), 60 * config.app.keep_minutes)
        handlers.end()
        page.close(verbose=False)
    log("app: ended, and the recordings are deleted")


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


if __name__ == "__main__":
    launch(app)
