"""The end of a run for a notebook, as JSON on standard output:  python -m asr_lora.reporting.notebook runs

It has the last run of that folder: `table`, the error rates as HTML; `clips`, three of them with `sound`, a file, or
null where it is missing, and `text`, the reference and both hypotheses as HTML with the differences marked; `page`, the
report's file; `adapter`, the folder of what was trained.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from asr_lora.data.manifest import audio_suffix, encoded_audio
from asr_lora.reporting import summary
from asr_lora.reporting.tables import change, leading_first, normalizer_label, strength_cell
from asr_lora.runs import folder as run
from asr_lora.runs.finding import last_run
from asr_lora.runtime.console import log, log_error
from asr_lora.runtime.errors import ConfigError, ExternalError, UserError
from asr_lora.runtime.streams import set_up_streams

CLIPS = 3
NAMES = ("base", "fine-tuned")


def notebook_end(folder: Path) -> dict[str, Any]:
    """Returns what a notebook shows of a scored run, with the keys of this module's JSON.

    Raises ConfigError if the run is not scored yet.
    """
    facts = run.read_scores(folder)
    if not facts:
        raise ConfigError(f"run_dir: must be of a scored run, got {folder}; make eval scores it")
    split, own = next(iter(facts.items()))
    lines, language = run.read_hypotheses(folder, split), own["language"]
    rates = [strength_cell({**figures, "language": language}) for figures in (own["baseline"], own)]
    rows = zip((*NAMES, "difference"), (*rates, change(own)), strict=True)
    rate = leading_first(language)[0].upper()
    table = Markup("<table><caption>{}</caption>{}</table>").format(
        f"{rate} of {own['clips']} {split} clips, normalized by {normalizer_label(own)}; in brackets 95 % intervals",
        Markup().join(Markup("<tr><td>{}</td><td>{}</td></tr>").format(*row) for row in rows),
    )
    sounds = folder / "report" / "clips"
    sounds.mkdir(parents=True, exist_ok=True)
    clips = [
        {"sound": _sound(at, lines[at], sounds), "text": _text(label, lines[at], language)}
        for label, at in summary.chosen(lines)[:CLIPS]
    ]
    page, trained = folder / "report" / "index.html", run.tuned(folder)
    return {"table": table, "clips": clips, "page": str(page), "adapter": str(trained)}


def _sound(at: int, line: Mapping[str, Any], folder: Path) -> str | None:
    """Writes a clip's file, named as the report names those of its page, and returns its path."""
    file = folder / f"{at}.{audio_suffix(line)}"
    try:
        file.write_bytes(encoded_audio(line))
    except ExternalError as error:
        log(f"no player: {error}")
        return None
    return str(file)


def _text(label: str, line: Mapping[str, Any], language: str) -> Markup:
    reference, both = summary.aligned(line, language)
    rows = [(summary.counted(label, line), Markup("{}").format(reference))]
    for name, chunks in zip(NAMES, both, strict=True):
        words = (Markup("<mark>{}</mark>" if bad else "{}").format(word) for word, bad in summary.marked(chunks))
        rows.append((name, Markup(" ").join(words)))
    return Markup("<br>").join(Markup("<b>{}</b>: {}").format(*row) for row in rows)


def main() -> None:
    """Prints the JSON of the last run in the folder that the command line names."""
    set_up_streams()
    try:
        sys.stdout.write(json.dumps(notebook_end(last_run(Path(sys.argv[1])))) + "\n")
    except UserError as error:
        log_error(f"error: {error}")
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
