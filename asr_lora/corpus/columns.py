"""What the columns of a table of one's own are called, as `data.columns` says it or as such tables usually do."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from asr_lora.runtime.errors import ChoiceError

# By what a column is to us: its usual names, the likeliest first (Common Voice, NeMo, audiofolder, DeepSpeech, ...).
USUAL = {
    "path": (
        "path", "audio_filepath", "audio_file", "audio_path", "file", "file_name", "filename", "file_path", "filepath",
        "audio", "wav", "wav_filename",
    ),
    "text": ("sentence", "text", "transcript", "transcription"),
    "speaker": ("client_id", "speaker", "speaker_id"),
    "start": ("start", "offset"),
    "end": ("end",),
    "duration": ("duration", "duration_ms", "duration[ms]"),
    "split": ("split",),
}  # fmt: skip


@dataclass(frozen=True)
class Columns:
    """The names that the settings give, by what they are to us; those not named are guessed."""

    named: Mapping[str, str] = field(default_factory=dict)

    def found_in(self, header: Sequence[str], table: str, needed: Sequence[str] = ("path", "text")) -> dict[str, str]:
        """The columns of `header` by what they are to us, capitals aside where they are guessed.

        Raises ChoiceError where one that is named is not there and cannot be guessed, or none is found for a `needed`.
        """
        plain = {column.strip().lower(): column for column in reversed(header)}
        found: dict[str, str] = {}
        for meaning, usual in USUAL.items():
            name = self.named.get(meaning)
            guess = next((plain[each] for each in usual if each in plain), None)
            if name in header:
                found[meaning] = str(name)
            elif guess is not None:
                found[meaning] = guess
            elif name is not None:
                raise ChoiceError(f"data.columns: {meaning}={name} is no column of {table} (got: {', '.join(header)})")
        if lacking := [meaning for meaning in needed if meaning not in found]:
            names = " or ".join(", ".join(USUAL[meaning]) for meaning in lacking)
            says = ",".join(f"{meaning}: <its name>" for meaning in lacking)
            raise ChoiceError(
                f"data.columns: no column of {table} tells the {' and the '.join(lacking)}, such as {names} "
                f"(got: {', '.join(header) or 'nothing'}); say 'data.columns={{{says}}}'"
            )
        return found


GUESSED = Columns()
