"""A page where people speak to a model:  python -m asr_lora.app [run_dir=runs/...]   then http://127.0.0.1:7860

The untouched base and the tuned model hear the same recording, side by side: the last run's, or that of the run that
the words name; 'adapters={nl: runs/nl-..., es: runs/es-...}': several on one base, to choose from. Nothing is sent
anywhere; recordings lie in a temporary folder until app.keep_minutes are over, or the app ends. Ctrl-C ends it.
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

from asr_lora.app import models as pair
from asr_lora.config.compose import Config, job_overrides
from asr_lora.config.stages import AppConfig
from asr_lora.model.hardware import resolve_hardware
from asr_lora.runs import folder as run
from asr_lora.runs.launch import find_run, launch
from asr_lora.runtime.console import log
from asr_lora.runtime.errors import ConfigError, ExternalError, to_install

try:
    from asr_lora.app import ui as layout
except ImportError as missing:
    absent = f"error: app: needs {missing.name}, which is not installed; {to_install('app')}"
    raise SystemExit(absent) from missing


EVERY = 30.0  # seconds between two looks at how old recordings are


def app(config: Config) -> None:
    """Serves the page until Ctrl-C or SIGTERM. Raises ChoiceError or WorldError for what it cannot be opened with."""
    refuse_taken(config.app)
    hardware, words = (
        resolve_hardware(config.hardware, config.model, config.lora, config.training.batch_size),
        job_overrides(),
    )
    if config.adapters:
        both = pair.with_adapters(config, config.adapters, hardware, words)
    else:
        folder = find_run(config)
        log(f"run: {folder}")
        both = pair.of_run(config, run.recorded_config(folder, config, words), hardware)
    if both.base is not both.tuned:
        log(f"lora={both.kind} tunes the base's own weights: two whole models are held in memory")
    with TemporaryDirectory(prefix="asr_lora-app-") as scratch:
        os.environ |= {"GRADIO_TEMP_DIR": scratch, "GRADIO_ANALYTICS_ENABLED": "False"}
        opened = not is_loopback(config.app.host)
        acts = layout.Handlers(both, config.app, Path(scratch))
        page = layout.serve(layout.page(acts, opened), config.app)
        if opened:
            log(
                f"app.host: {config.app.host} is more than this machine: whoever can reach it may speak to the model, "
                "hear the run's test clips and read their texts, without a password and unencrypted; and browsers "
                "allow a microphone only on localhost or over https"
            )
        with suppress(KeyboardInterrupt):
            signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that recordings go then, too
            log(f"app: {address(config.app)} (Ctrl-C ends it)")
            while True:
                time.sleep(EVERY)
                forget(Path(scratch), 60 * config.app.keep_minutes)
        acts.end()
        page.close(verbose=False)
    log("app: ended, and the recordings are deleted")


def address(asked: AppConfig) -> str:
    host = f"[{asked.host}]" if ":" in asked.host else asked.host
    return f"http://{host}:{asked.port}"


def forget(folder: Path, age: float) -> None:
    """Deletes what lies in `folder` for longer than `age` seconds."""
    for each in folder.iterdir():
        if each.is_dir() and each.stat().st_mtime < time.time() - age:
            shutil.rmtree(each, ignore_errors=True)  # a browser may be fetching it: the next look takes the rest


def is_loopback(host: str) -> bool:
    """Whether only this machine itself can reach what is bound to that name or address."""
    return all(ipaddress.ip_address(found[4][0]).is_loopback for found in socket.getaddrinfo(host, None))


def refuse_taken(asked: AppConfig) -> None:
    """Raises WorldError for a port that another program has, ChoiceError for a host or port that cannot be had."""
    try:
        family, *_, place = socket.getaddrinfo(asked.host, asked.port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server will
            probe.bind(place)
            probe.listen()
    except OSError as error:  # an unknown name is one, too
        if error.errno == errno.EADDRINUSE:
            raise ExternalError(
                f"app.port: another program has port {asked.port} of {asked.host}; end that, or name another port, "
                f"app.port={asked.port % 65_535 + 1}"
            ) from error
        name, way_out = "app.host", "127.0.0.1 is this machine alone, 0.0.0.0 whoever can reach it"
        if error.errno == errno.EACCES:
            name, way_out = "app.port", "those below 1024 are the administrator's; app.port=7860 is nobody's"
        raise ConfigError(
            f"{name}: must be one that can be had, got {asked.host}:{asked.port} ({error.strerror}); {way_out}"
        ) from error


if __name__ == "__main__":
    launch(app)
