"""Common Voice Spontaneous Speech: `sps-corpus-<version>-<date>-<language>/{audios/*.mp3,ss-corpus-<language>.tsv}`.

People answer questions; what they said was transcribed, with marks such as [laugh] in it, which stay. The table says of
each clip in which split it is: train, dev and test where the transcription was validated, else unassigned. A clip that
somebody reported is in ss-reported-audios-<language>.tsv alone. The columns are told in
https://github.com/common-voice/cv-dataset, datasets/spontaneous-speech/README.md.
"""

from pathlib import Path, PurePosixPath

from asr_lora.corpus.clips import Clips
from asr_lora.corpus.columns import Columns
from asr_lora.corpus.common_voice import AUDIOS, SPONTANEOUS, choose, spontaneous_language
from asr_lora.corpus.formats import read
from asr_lora.corpus.records import Gathered, utterance
from asr_lora.corpus.speech import Corpus
from asr_lora.runtime.errors import ChoiceError

COLUMNS = Columns({
    "path": "audio_file", "text": "transcription", "speaker": "client_id", "duration": "duration_ms", "split": "split",
})  # fmt: skip


def find_spontaneous(source: Path, language: str) -> Path | None:
    """The table of the language in `source` or in a folder in it; None where there is no such release at all.

    Raises ChoiceError where there are others only, or its clips are not beside its table.
    """
    tables = [file for depth in ("", "*/", "*/*/") for file in source.glob(f"{depth}{SPONTANEOUS}*.tsv")]
    table = choose(source, language, {file: its for file in tables if (its := spontaneous_language(file))})
    if table is not None and not (table.parent / AUDIOS).is_dir():
        raise ChoiceError(f"data.source: no {AUDIOS}/ beside {table}; a Spontaneous Speech release has both")
    return table


def open_spontaneous(source: Path, release: str, table: Path, language: str, clips: Clips) -> Corpus:
    """From the table and the clips, wherever they were. Raises ChoiceError for a table that is another."""
    gathered = Gathered(str(source))
    header, rows, gathered.left_out[""] = read(table)
    columns = COLUMNS.found_in(header, str(table))
    for number, cells in rows:
        try:
            told = utterance(cells, columns)
            if not told.text.strip():
                raise ValueError("nobody has transcribed it")
        except ValueError as error:
            gathered.leave_out(cells.get("split", ""), f"line {number}", error)
            continue
        gathered.add(told.split, PurePosixPath(told.path).name, told)
    return gathered.corpus(release, language, clips)
