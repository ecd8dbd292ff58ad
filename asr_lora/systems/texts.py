"""Systems that cannot be run here: a table of their hypotheses, a line a clip."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from asr_lora.corpus.columns import Columns
from asr_lora.corpus.table_files import as_cell, read_rows
from asr_lora.data.manifest import Clip, name_in_corpus
from asr_lora.evaluation.eval_sets import EvalSet
from asr_lora.runtime.errors import ConfigError, check, listed
from asr_lora.runtime.files import existing
from asr_lora.systems.system import System

# Names of the columns, the likeliest first; of a leaderboard's manifest pred_text, not text, which is the reference.
TEXTS = ("hypothesis", "pred_text", "prediction", "transcription", "transcript", "text", "sentence")
CLIPS = ("id", "clip", "path", "audio_filepath", "file", "filename", "audio")


def of_file(name: str, file: str) -> System:
    """Returns the system of a table (CSV, TSV, JSON lines, ...) with a column of clips and one of texts.

    Raises ConfigError, when it is read, for clips without a text and texts without a clip, which it names.
    """
    path = existing(Path(file), "eval.models.hypotheses")
    check("eval.models.hypotheses", path, "a file", path.is_file())

    def transcribe(each: EvalSet) -> dict[str, Any]:
        return {"hypotheses": matched(path, each.clips)}

    return System(name, "texts", path.name, None, transcribe)


def matched(path: Path, clips: Sequence[Clip]) -> list[str]:
    """Returns the text of each clip in a table, found by the clip's id, or its name with or without a suffix."""
    table = read_rows(path, columns=Columns({}, {}))
    if table.malformed:
        raise ConfigError(f"eval.models: {path} has damaged rows ({table.malformed[0]}, ...); mend them")
    columns = {column.strip().lower(): column for column in table.header}
    text, key = (next((columns[name] for name in names if name in columns), None) for names in (TEXTS, CLIPS))
    if text is None or key is None:
        raise ConfigError(
            f"eval.models: {path} has the columns {listed(table.header)}; it needs one of {', '.join(CLIPS)} and one "
            f"of {', '.join(TEXTS)}"
        )
    texts: dict[str, str] = {}
    for line, row in table.rows:
        own = as_cell(row.get(key)).strip()
        if own in texts:
            raise ConfigError(f"eval.models: {path} has two texts of {own} (line {line}); leave one")
        texts[own] = as_cell(row.get(text)).encode("utf-8", "replace").decode()
    found, missing = [], []
    for clip in clips:
        named = next((each for each in _names(clip) if each in texts), None)
        found.append(texts.pop(named) if named is not None else "")
        missing += [clip["id"]] if named is None else []
    if missing or texts:
        raise ConfigError(
            f"eval.models: {path} must have a text for every clip; {len(missing)} are missing ({listed(missing)}), "
            f"{len(texts)} are of no clip ({listed(texts)}); eval.limit and data.seed draw the clips"
        )
    return found


def _names(clip: Clip) -> list[str]:
    """Returns the names by which a table may call a clip, the surest first."""
    path, own = PurePosixPath(clip["path"]), PurePosixPath(name_in_corpus(clip))
    return [clip["id"], str(own), str(path), own.name, own.stem]
