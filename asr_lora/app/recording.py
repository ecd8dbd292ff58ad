"""The page where people read sentences aloud: one at a time, by keys, kept as soon as they say so."""

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import gradio as gr
import numpy as np

from asr_lora.app.serving import QUIET, page_error
from asr_lora.corpus.recorded import RecordedFolder, Recording, speaker_id
from asr_lora.data.quality import CLIPPED, decibels
from asr_lora.reporting.pages import environment
from asr_lora.runtime.errors import ExternalError, UserError
from asr_lora.speech import audio
from asr_lora.speech.limits import MAX_SECONDS

QUIET_PEAK = -26.0  # dBFS: speech whose loudest sample is below the level that ITU-T P.56 has for its mean is too quiet
RATES = (8_000, 192_000)  # Hz, of sound cards


@dataclass(frozen=True)
class Take:
    """What the browser recorded: (samples,) at 16 kHz, of the sentence `at`; `peak` in dBFS, `clipped` a share."""

    at: int
    samples: audio.Waveform
    peak: float
    clipped: float

    @property
    def seconds(self) -> float:
        return len(self.samples) / audio.SAMPLE_RATE


def parse_take(sent: str) -> Take:
    """Returns what the page sent: JSON with at, rate and pcm, 16-bit samples in base64.

    Raises ExternalError for nothing, for what is silent or too long, and for what no page sends.
    """
    if not sent:
        raise ExternalError("nothing is recorded yet: press space, read the sentence, press space again")
    try:
        given = json.loads(sent)
        at, rate = int(given["at"]), int(given["rate"])
        whole = np.frombuffer(base64.b64decode(given["pcm"], validate=True), "<i2")
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:  # binascii.Error, too
        raise ExternalError("this is no recording of the page; reload it") from error
    samples = whole.astype(np.float32) / np.float32(2**15)
    if not RATES[0] <= rate <= RATES[1]:
        raise ExternalError(f"the microphone's rate, {rate:,} Hz, is not between {RATES[0]:,} and {RATES[1]:,}")
    if not audio.can_resample(rate):
        raise ExternalError(f"the microphone's rate, {rate:,} Hz, is none that can be resampled; set it to 48,000 Hz")
    if problem := audio.audio_problem(samples, rate):
        raise ExternalError(f"the recording is {problem}; is it the right microphone?")
    level = np.abs(samples)
    clipped = float(np.mean(level >= audio.FULL_SCALE))
    return Take(at, audio.resample(samples, rate), decibels(float(level.max())), clipped)


def warnings_of(take: Take) -> list[str]:
    """Returns what is wrong with the level of a recording."""
    found = []
    if take.clipped >= CLIPPED:
        found.append("clipped: turn the microphone down, or sit further away, and record it again (r)")
    if take.peak < QUIET_PEAK:
        found.append("too quiet: turn the microphone up, or come nearer, and record it again (r)")
    return found


@dataclass(frozen=True)
class Handlers:
    """The event handlers of the page; they return HTML. `at` is the index of the sentence shown, -1 for none."""

    sentences: Sequence[str]
    folder: RecordedFolder

    def start(self, name: str | None) -> tuple[str, str]:
        """Returns the first sentence that a speaker has not read, and an empty notice."""
        return self._next(name, -1), ""

    def resume(self, name: str | None) -> tuple[Any, Any]:
        """Returns what `start` does, for a name that the browser has stored; without one, nothing changes."""
        return self.start(name) if (name or "").strip() else (gr.skip(), gr.skip())

    def skip(self, at: object, name: str | None) -> tuple[str, str]:
        with _errors_on_page():
            return self._next(name, self._index(at)), ""

    def back(self, at: object, name: str | None) -> tuple[str, str]:
        """Returns the sentence before, read or not."""
        with _errors_on_page():
            shown = self._index(at)
            before = len(self.sentences) - 1 if shown < 0 else max(0, shown - 1)
            return self._shown(self.folder.of_speaker(speaker_id(name or "")), before), ""

    def measure(self, sent: str) -> str:
        """Returns the level of a recording that has just ended."""
        with _errors_on_page():
            take = parse_take(sent)
        return _render("recorded", take=take, warnings=warnings_of(take))

    def keep(self, sent: str, at: object, name: str | None) -> tuple[str, str]:
        """Writes a recording; returns the next sentence that is not read, and what was kept."""
        with _errors_on_page():
            take, client = parse_take(sent), speaker_id(name or "")
            if take.at != at or not 0 <= take.at < len(self.sentences):
                raise ExternalError("that recording is of another sentence; record this one")
            flac = audio.encode_flac(take.samples, audio.SAMPLE_RATE)
            self.folder.keep(client, self.sentences[take.at], flac, take.seconds)
        return self._next(name, take.at), _render("kept", take=take, warnings=[])

    def _index(self, at: object) -> int:
        """Returns the index of the sentence shown. Raises ExternalError for what no page sends."""
        if not isinstance(at, int | float) or at not in range(-1, len(self.sentences)):
            raise ExternalError("there is no such sentence; reload the page")
        return int(at)

    def _next(self, name: str | None, at: int) -> str:
        """Returns the next sentence after `at` that is not read, from the beginning after the last."""
        if not (name or "").strip():
            return _render("prompt", at=-1, nameless=True)
        with _errors_on_page():
            done = self.folder.of_speaker(speaker_id(str(name)))
        order = [*range(at + 1, len(self.sentences)), *range(at + 1)]
        return self._shown(done, next((each for each in order if self.sentences[each] not in done), -1))

    def _shown(self, done: Mapping[str, Recording], at: int) -> str:
        own = [done[sentence] for sentence in self.sentences if sentence in done]
        sentence = self.sentences[at] if at >= 0 else ""
        return _render(
            "prompt", at=at, sentence=sentence, before=done.get(sentence), done=len(own), of=len(self.sentences),
            minutes=sum(each.milliseconds for each in own) / 60_000, language=self.folder.language,
        )  # fmt: skip


@contextmanager
def _errors_on_page() -> Iterator[None]:
    """Shows the line of an error that a user can fix on the page."""
    try:
        yield
    except UserError as error:
        raise page_error(error) from error


def script() -> str:
    """Returns the page's script, for its head."""
    made = environment(autoescape=False).get_template("recording.js").render(longest=MAX_SECONDS, quiet=QUIET_PEAK)
    return f"<script>{made}</script>"


def page(handlers: Handlers, opened: bool) -> Any:
    """Builds the page, a gr.Blocks; `opened`: other machines can reach it."""
    with gr.Blocks(title="asr_lora: record", analytics_enabled=False) as made:
        gr.HTML(_render("head", opened=opened), elem_id="head")
        speaker = gr.Textbox(label="your name, kept as a hash alone", elem_id="speaker", max_lines=1, max_length=100)
        prompt = gr.HTML(_render("prompt", at=-1, nameless=True), elem_id="prompt")
        with gr.Row(elem_id="keys"):
            record = gr.Button("Record, stop (space)", variant="primary", elem_id="record")
            keep = gr.Button("Keep, next (Enter)", elem_id="keep")
            again = gr.Button("Again (r)", elem_id="again")
            play = gr.Button("Play (p)", elem_id="play")
            skip = gr.Button("Skip (n)", elem_id="skip")
            back = gr.Button("Back (b)", elem_id="back")
        gr.HTML(_render("meter"), elem_id="meter")
        notice = gr.HTML(elem_id="notice")
        measure = gr.Button("measure", visible="hidden", elem_id="measure")
        sent, at = gr.Textbox(visible=False), gr.Number(visible=False)
        both, leave = [prompt, notice], "(at, name) => recorder.leave(name)"

        made.load(None, speaker, speaker, js="(typed) => typed || recorder.name()").then(
            handlers.resume, speaker, both, **QUIET
        )
        for event in (speaker.submit, speaker.blur):
            event(handlers.start, speaker, both, js="(name) => [recorder.named(name)]", **QUIET)
        record.click(None, js="() => recorder.toggle()")
        play.click(None, js="() => recorder.play()")
        again.click(None, js="() => recorder.again()")
        measure.click(handlers.measure, sent, notice, js="() => [recorder.sent()]", **QUIET)
        kept = keep.click(
            handlers.keep, [sent, at, speaker], both, js="(sent, at, name) => recorder.keep(name)", **QUIET
        )
        kept.success(None, js="() => recorder.kept()")
        kept.failure(None, js="() => recorder.answered()")
        skip.click(handlers.skip, [at, speaker], both, js=leave, **QUIET)
        back.click(handlers.back, [at, speaker], both, js=leave, **QUIET)
    return made


def _render(part: str, **values: Any) -> str:
    return environment(autoescape=True).get_template("recording.html").render(part=part, **values)
