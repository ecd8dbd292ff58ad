"""Records sentences that you read aloud, as a corpus:  python -m asr_lora.record record.prompts=sentences.txt

Then open http://127.0.0.1:7860. One sentence at a time: space records and stops, Enter keeps it and shows the next, r
records it again, p plays it, n skips it, b goes back. What is kept is in record.out at once, as clips/ and train.tsv,
which data.source reads; the same command goes on at the first sentence that a speaker has not read. Ctrl-C ends it.
"""

from collections.abc import Callable
from pathlib import Path

from asr_lora.config.compose import Config
from asr_lora.corpus.prompts import read_prompts, reading_seconds
from asr_lora.corpus.recorded import RecordedFolder
from asr_lora.data.finding import check_prompts
from asr_lora.data.labels import label_filter, text_problem
from asr_lora.data.sources import named_columns
from asr_lora.model.hub import weights_are_here
from asr_lora.runs.launch import launch
from asr_lora.runtime.commands import to_install, to_run
from asr_lora.runtime.console import log

try:
    from asr_lora.app import recording, serving
except ImportError as missing:
    absent = f"error: record: needs {missing.name}, which is not installed; {to_install('app')}"
    raise SystemExit(absent) from missing


def record(config: Config) -> None:
    """Serves the page until Ctrl-C or SIGTERM.

    Raises ConfigError or ExternalError if the address, the sentences or the folder cannot be used.
    """
    serving.check_address(config.app)
    language, out = config.data.language, Path(config.record.out).expanduser()
    prompts = read_prompts(check_prompts(config.record.prompts), language, _problem(config), named_columns(config.data))
    minutes = sum(map(reading_seconds, prompts.sentences)) / 60
    log(f"{config.record.prompts}: {len(prompts.sentences):,} sentences, read slowly {minutes:.0f} min")
    folder = RecordedFolder(out, language)
    opened = not serving.is_loopback(config.app.host)
    with serving.scratch_folder("record") as scratch:
        page = serving.serve_until_stopped(
            recording.page(recording.Handlers(prompts.sentences, folder), opened), config.app, "record",
            f"record into {out}, without a password; browsers allow the microphone only on localhost or over https",
            scratch, script=recording.script(),
        )  # fmt: skip
        page.close(verbose=False)
    rows = folder.rows()
    log(
        f"record: {len(rows):,} recordings of {len({row.client_id for row in rows})} speakers, "
        f"{sum(row.milliseconds for row in rows) / 60_000:.1f} min, in {out}; "
        f"{to_run('train', f'data.language={language}', f'data.source={out}')}"
    )


def _problem(config: Config) -> Callable[[str], str | None]:
    """Returns a function that gives why a sentence cannot be a label; its tokens count where the base model is here."""
    if not weights_are_here(config.model.checkpoint):
        log(f"model.checkpoint: {config.model.checkpoint} is not here: the tokens of sentences do not count")
        return text_problem
    problem = label_filter(config.model, config.data.language)
    return lambda sentence: problem(sentence, "")


if __name__ == "__main__":
    launch(record)
