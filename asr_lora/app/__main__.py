"""Serves a web page that compares two models:  python -m asr_lora.app [run_dir=runs/...]

Then open http://127.0.0.1:7860. The base and the fine-tuned model transcribe the same recording, side by side. Uses the
last run, or the one that the overrides name; 'adapters={nl: runs/nl-..., es: runs/es-...}' offers several adapters on
one base. Recordings stay on this machine, in a temporary folder for app.keep_minutes or until the app ends. Ctrl-C
ends it.
"""

from asr_lora.app import models
from asr_lora.config.compose import Config, job_overrides
from asr_lora.model.hardware import resolve_hardware
from asr_lora.runs import folder as run
from asr_lora.runs.finding import find_run
from asr_lora.runs.launch import launch
from asr_lora.runtime.commands import to_install
from asr_lora.runtime.console import log

try:
    from asr_lora.app import serving, ui
except ImportError as missing:
    absent = f"error: app: needs {missing.name}, which is not installed; {to_install('app')}"
    raise SystemExit(absent) from missing


def app(config: Config) -> None:
    """Serves the page until Ctrl-C or SIGTERM.

    Raises ConfigError or ExternalError if the address, the run or the adapters cannot be used.
    """
    serving.check_address(config.app)
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
    with serving.scratch_folder("app") as scratch:
        opened = not serving.is_loopback(config.app.host)
        handlers = ui.Handlers(pair, config.app, scratch)
        page = serving.serve_until_stopped(
            ui.page(handlers, opened),
            config.app,
            "app",
            "use the model, play the run's test clips and read their texts, without a password and unencrypted; "
            "browsers allow the microphone only on localhost or over https",
            scratch,
        )
        handlers.end()
        page.close(verbose=False)
    log("app: ended, and the recordings are deleted")


if __name__ == "__main__":
    launch(app)
