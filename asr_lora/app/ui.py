"""The page in gradio: audio input, adapter, both transcripts; loads nothing from other hosts."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from tempfile import mkdtemp
from typing import Any

import gradio as gr

from asr_lora.app.models import DETECTED, ModelPair, PairResult
from asr_lora.app.serving import QUIET, page_error
from asr_lora.config.stages import AppConfig, EvalConfig
from asr_lora.data.manifest import Clip, audio_suffix, encoded_audio
from asr_lora.decoding.generate import Segment
from asr_lora.decoding.transcriber import FORMATS, prompt_of
from asr_lora.evaluation import error_analysis, metrics
from asr_lora.evaluation.error_analysis import AlignmentChunk
from asr_lora.reporting.pages import environment
from asr_lora.runtime.errors import ExternalError, UserError
from asr_lora.runtime.files import write_text
from asr_lora.speech.normalizer import Normalizer, primary_metric, scoring_units

SHOWN = 80  # characters of a reference in the list of clips


@dataclass(frozen=True)
class Handlers:
    """The event handlers of the page; each file gets a folder of its own below `scratch`."""

    pair: ModelPair
    settings: AppConfig
    scratch: Path
    busy: threading.Lock = field(default_factory=threading.Lock)  # all users share one base, with one active adapter
    ended: threading.Event = field(default_factory=threading.Event)

    def end(self) -> None:
        """Stops a running transcription after its batch: torch aborts if Python exits during it."""
        self.ended.set()
        with self.busy:
            pass

    def clips(self, choice: str) -> Any:
        """Returns the list of an adapter's test clips."""
        own = self.pair.choices[choice].clips if choice in self.pair.choices else []
        shown = own[: self.settings.clips]
        part = f", the first {len(shown)} of {len(own):,}" if len(shown) < len(own) else ""
        listed = [(f"{clip['text'][:SHOWN]} ({clip['duration']:.1f} s)", clip["id"]) for clip in shown]
        label = f"or a test clip of the run{part}"
        return gr.Dropdown(listed, value=None, label=label, visible=bool(shown), elem_id="clip")

    def strength(self, choice: str) -> Any:
        """Returns the slider, disabled for tuning methods that cannot be scaled."""
        scales = all(each.scales for name, each in self.pair.choices.items() if choice in (name, DETECTED))
        info = "0: base model, 1: as trained" if scales else "this tuning method cannot be scaled"
        return gr.Slider(0, 1, value=1, step=0.05, label="strength", info=info, interactive=scales, elem_id="strength")

    def load(self, choice: str, clip_id: str | None) -> Any:
        """Writes a clip's file for the player, and returns its path."""
        if clip_id is None:
            return gr.skip()
        clip = self._clip(choice, clip_id)
        try:
            file = Path(mkdtemp(dir=self.scratch)) / f"clip.{audio_suffix(clip)}"
            file.write_bytes(encoded_audio(clip))
        except UserError as error:
            raise page_error(error) from error
        return str(file)

    def transcribe(
        self, path: str | None, choice: str, clip_id: str | None, strength: float, bar: Any, prompt: str = ""
    ) -> tuple[str, list[str]]:
        """Returns the HTML of both transcripts (with error rates for a test clip) and files to download."""
        try:
            file = self._usable(path)
            clip = None if clip_id is None else self._clip(choice, clip_id)
            if clip and encoded_audio(clip) != file.read_bytes():
                clip = None

            def advance(which: str, done: int, of: int) -> None:
                if self.ended.is_set():
                    raise ExternalError("the app has ended")
                bar((done, of), desc=f"{which} model", unit="segments")

            with self.busy:
                whole = clip is not None
                most = self.settings.max_minutes
                result = self.pair.transcribe(file, choice, strength, most, whole, advance, prompt)
            shown = render_result(result, self.pair.scoring, clip["text"] if clip else None)
            return shown, [str(made) for made in files(result.tuned, file.stem, Path(mkdtemp(dir=self.scratch)))]
        except UserError as error:
            raise page_error(error) from error

    def _clip(self, choice: str, clip_id: str) -> Clip:
        return next(clip for clip in self.pair.choices[choice].clips if clip["id"] == clip_id)

    def _usable(self, path: str | None) -> Path:
        """Returns the path of an uploaded file. Raises ExternalError for a missing or too large one."""
        if path is None:
            raise ExternalError("no recording yet; record audio, or choose a file or a clip")
        file = Path(path)
        if not file.is_file():
            raise ExternalError("this recording has been deleted (app.keep_minutes); record or choose it again")
        if file.stat().st_size > self.settings.max_megabytes * 1_000_000:
            raise ExternalError(f"{file.name}: is larger than {self.settings.max_megabytes} MB (app.max_megabytes)")
        return file


def page(handlers: Handlers, opened: bool) -> Any:
    """Builds the page, a gr.Blocks; `opened`: other machines can reach it."""
    first, *others = handlers.pair.choices
    with gr.Blocks(title="asr_lora", analytics_enabled=False) as made:
        gr.HTML(_head(handlers, opened), elem_id="head")
        with gr.Row():
            with gr.Column(min_width=300):
                audio = gr.Audio(
                    sources=["microphone", "upload"], type="filepath", label="recording", editable=False,
                    buttons=[],
                )  # fmt: skip
            with gr.Column(min_width=300):
                clip = handlers.clips(first)
                names = [first, *others, DETECTED] if others else [first]
                choice = gr.Dropdown(names, value=first, label="adapter", visible=bool(others), elem_id="adapter")
                strength = handlers.strength(first)
                prompt = gr.Textbox(
                    prompt_of(handlers.pair.settings.prompt, handlers.pair.settings.hotwords),
                    label="names and terms to expect", elem_id="prompt", max_lines=3, max_length=1000,
                )  # fmt: skip
                start = gr.Button("Transcribe", variant="primary", elem_id="start")
        result = gr.HTML(elem_id="result")
        with gr.Row(visible=False) as row:
            downloads = [gr.DownloadButton(f"fine-tuned text as {suffix}", size="sm") for suffix in ("txt", "srt")]

        def transcribe(
            path: str | None, name: str, clip_id: str | None, scale: float, words: str, bar: Any = gr.Progress()  # noqa: B008 (as gradio requires)
        ) -> Any:  # fmt: skip
            shown, files = handlers.transcribe(path, name, clip_id, scale, bar, words)
            return shown, gr.Row(visible=True), *files

        def clear() -> Any:
            return "", gr.Row(visible=False)

        choice.input(lambda name: (handlers.clips(name), handlers.strength(name)), choice, [clip, strength], **QUIET)
        clip.input(handlers.load, [choice, clip], audio, **QUIET).then(clear, None, [result, row], **QUIET)
        for event in (audio.upload, audio.stop_recording, audio.clear):  # the audio is no test clip any more
            event(lambda: (None, *clear()), None, [clip, result, row], **QUIET)
        start.click(
            transcribe, [audio, choice, clip, strength, prompt], [result, row, *downloads], concurrency_limit=1,
            show_progress_on=result, api_visibility="private",
        )  # fmt: skip
    return made.queue(max_size=handlers.settings.max_queue)


def _head(handlers: Handlers, opened: bool) -> str:
    pair = handlers.pair
    return environment(autoescape=True).get_template("app.html").render(
        names=", ".join(pair.choices), base=PurePath(pair.base.base.checkpoint).name, settings=handlers.settings,
        opened=opened, two=pair.base is not pair.tuned,
    )  # fmt: skip


def render_result(result: PairResult, scoring: EvalConfig, reference: str | None) -> str:
    """Returns HTML of both texts with their differences marked, and with a `reference` their error rates.

    Raises ConfigError if `scoring` sets numbers as words for a language that num2words does not have.
    """
    normalizer = Normalizer(scoring.normalizer, result.language, scoring.numbers)
    texts = {"base": joined(result.base), "tuned": joined(result.tuned)}
    return environment(autoescape=True).get_template("app_result.html").render(
        result=result, chunks=differences(texts["base"], texts["tuned"], normalizer), normalizer=normalizer,
        truncated={name: sum(each.truncated for each in getattr(result, name)) for name in texts},
        scored=None if reference is None else scored(reference, texts, normalizer),
        rate=primary_metric(result.language),
    )  # fmt: skip


def joined(segments: Sequence[Segment]) -> str:
    """Returns the texts of all segments as one."""
    return " ".join(segment.text for segment in segments)


def differences(base: str, tuned: str, normalizer: Normalizer) -> list[AlignmentChunk]:
    """Aligns both texts by words as written; words that are equal when normalized are equal."""
    words = [scoring_units(text, normalizer.language).split() for text in (base, tuned)]
    # One key for every word, so that indices of keys are indices of words; a lone dash is its own key.
    keys = [" ".join("".join(normalizer(word).split()) or word for word in side) for side in words]
    (aligned,), at, made = error_analysis.alignments(keys[:1], keys[1:]), [0, 0], []
    for chunk in aligned:
        sides = [words[i][at[i] : at[i] + len(part)] for i, part in enumerate((chunk.reference, chunk.hypothesis))]
        at = [at[0] + len(sides[0]), at[1] + len(sides[1])]
        made.append(AlignmentChunk(chunk.kind, *sides))
    return made


def scored(reference: str, texts: dict[str, str], normalizer: Normalizer) -> dict[str, Any]:
    """Scores each model's text: chunks, errors, units of the reference and rate by model.

    `reference` of the result is normalized. Without a word in it `units` is 0 and the rate None.
    """
    clean = {name: normalizer(text) for name, text in {"reference": reference, **texts}.items()}
    units = {name: scoring_units(text, normalizer.language) for name, text in clean.items()}
    found: dict[str, Any] = {"reference": clean["reference"]}
    for name in texts:
        (errors,), (of,) = metrics.clip_errors([clean["reference"]], [clean[name]], str(normalizer.language))
        (chunks,) = error_analysis.alignments([units["reference"]], [units[name]])
        found[name] = {"chunks": chunks, "errors": errors, "units": of, "rate": errors / of if of else None}
    return found


def files(segments: Sequence[Segment], name: str, folder: Path) -> list[Path]:
    """Writes text and subtitles into `folder` as `name`.txt and .srt, and returns their paths."""
    made = [folder / f"{name}.{suffix}" for suffix in ("txt", "srt")]
    for file in made:
        write_text(file, FORMATS[file.suffix.removeprefix(".")](segments))
    return made
