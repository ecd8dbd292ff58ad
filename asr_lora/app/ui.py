"""The page itself, in gradio: what to hear, by which model, and what they said. Nothing comes from another host."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from tempfile import mkdtemp
from typing import Any

import gradio as gr
from markupsafe import escape

from asr_lora.app.models import WHICHEVER, ModelPair, PairResult
from asr_lora.config.stages import AppConfig, EvalConfig
from asr_lora.data.manifest import Clip, audio_suffix, encoded_audio
from asr_lora.decoding.generate import Segment
from asr_lora.decoding.transcriber import FORMATS
from asr_lora.evaluation import error_analysis as findings
from asr_lora.evaluation import metrics
from asr_lora.evaluation.error_analysis import AlignmentChunk
from asr_lora.reporting.pages import environment
from asr_lora.runtime.errors import ExternalError, UserError
from asr_lora.runtime.files import write_text
from asr_lora.speech.normalizer import Normalizer, primary_metric, scoring_units

SHOWN = 80  # characters of a reference in the list of clips
QUIET = {"api_visibility": "private", "show_progress": "hidden"}  # of events that take no time


@dataclass(frozen=True)
class Handlers:
    """What the page does when people touch it; files go below `scratch`, a folder each."""

    pair: ModelPair
    asked: AppConfig
    scratch: Path
    busy: threading.Lock = field(default_factory=threading.Lock)  # an adapter is worn by the one base that all share
    ended: threading.Event = field(default_factory=threading.Event)

    def end(self) -> None:
        """Breaks off what is heard, at the end of its batch: torch aborts where Python ends under it."""
        self.ended.set()
        with self.busy:
            pass

    def clips(self, voice: str) -> Any:
        """The list of a voice's test clips."""
        own = self.pair.voices[voice].clips if voice in self.pair.voices else []
        shown = own[: self.asked.clips]
        part = f", the first {len(shown)} of {len(own):,}" if len(shown) < len(own) else ""
        listed = [(f"{clip['text'][:SHOWN]} ({clip['duration']:.1f} s)", clip["id"]) for clip in shown]
        label = f"or a test clip of the run{part}"
        return gr.Dropdown(listed, value=None, label=label, visible=bool(shown), elem_id="clip")

    def strength(self, voice: str) -> Any:
        """The slider, which is still where a way of tuning has no strengths between none and all."""
        scales = all(each.scales for name, each in self.pair.voices.items() if voice in (name, WHICHEVER))
        info = "0: as untouched, 1: as trained" if scales else "this way of tuning has none but 1"
        return gr.Slider(0, 1, value=1, step=0.05, label="strength", info=info, interactive=scales, elem_id="strength")

    def load(self, voice: str, clip_id: str | None) -> Any:
        """The file of a clip, for the player."""
        if clip_id is None:
            return gr.skip()
        clip = self._clip(voice, clip_id)
        try:
            file = Path(mkdtemp(dir=self.scratch)) / f"clip.{audio_suffix(clip)}"
            file.write_bytes(encoded_audio(clip))
        except UserError as error:
            raise page_error(error) from error
        return str(file)

    def hear(
        self, path: str | None, voice: str, clip_id: str | None, strength: float, bar: Any
    ) -> tuple[str, list[str]]:
        """What is said of a recording, and the files to take along; set against a reference where it is that clip."""
        try:
            file = self._usable(path)
            clip = None if clip_id is None else self._clip(voice, clip_id)
            if clip and encoded_audio(clip) != file.read_bytes():
                clip = None

            def advance(which: str, done: int, of: int) -> None:
                if self.ended.is_set():
                    raise ExternalError("the app has ended")
                bar((done, of), desc=f"{which} model", unit="pieces")

            with self.busy:
                whole = clip is not None
                heard = self.pair.transcribe(file, voice, strength, self.asked.max_minutes, whole, advance)
            shown = render_result(heard, self.pair.scoring, clip["text"] if clip else None)
            return shown, [str(made) for made in files(heard.tuned, file.stem, Path(mkdtemp(dir=self.scratch)))]
        except UserError as error:
            raise page_error(error) from error

    def _clip(self, voice: str, clip_id: str) -> Clip:
        return next(clip for clip in self.pair.voices[voice].clips if clip["id"] == clip_id)

    def _usable(self, path: str | None) -> Path:
        """Raises WorldError where there is no file, or too large a one."""
        if path is None:
            raise ExternalError("there is nothing to hear yet; record something, or choose a file or a clip")
        file = Path(path)
        if not file.is_file():
            raise ExternalError("this recording is deleted by now (app.keep_minutes); record or choose it again")
        if file.stat().st_size > self.asked.max_megabytes * 1_000_000:
            raise ExternalError(f"{file.name}: is larger than {self.asked.max_megabytes} MB (app.max_megabytes)")
        return file


def page(acts: Handlers, opened: bool) -> Any:
    """The page as a gr.Blocks; `opened` says that other machines can reach it."""
    first, *others = acts.pair.voices
    with gr.Blocks(title="asr_lora", analytics_enabled=False) as made:
        gr.HTML(_head(acts, opened), elem_id="head")
        with gr.Row():
            with gr.Column(min_width=300):
                audio = gr.Audio(
                    sources=["microphone", "upload"], type="filepath", label="what they hear", editable=False,
                    buttons=[],
                )  # fmt: skip
            with gr.Column(min_width=300):
                clip = acts.clips(first)
                names = [first, *others, WHICHEVER] if others else [first]
                voice = gr.Dropdown(names, value=first, label="adapter", visible=bool(others), elem_id="voice")
                strength = acts.strength(first)
                start = gr.Button("Transcribe", variant="primary", elem_id="start")
        said = gr.HTML(elem_id="said")
        with gr.Row(visible=False) as row:
            taken = [gr.DownloadButton(f"tuned text as {suffix}", size="sm") for suffix in ("txt", "srt")]

        def hear(path: str | None, name: str, clip_id: str | None, strong: float, bar: Any = gr.Progress()) -> Any:  # noqa: B008 (gradio's way)
            shown, files = acts.hear(path, name, clip_id, strong, bar)
            return shown, gr.Row(visible=True), *files

        def forget() -> Any:
            return "", gr.Row(visible=False)

        voice.input(lambda name: (acts.clips(name), acts.strength(name)), voice, [clip, strength], **QUIET)
        clip.input(acts.load, [voice, clip], audio, **QUIET).then(forget, None, [said, row], **QUIET)
        for own in (audio.upload, audio.stop_recording, audio.clear):  # no clip of the run any more
            own(lambda: (None, *forget()), None, [clip, said, row], **QUIET)
        start.click(
            hear, [audio, voice, clip, strength], [said, row, *taken], concurrency_limit=1, show_progress_on=said,
            api_visibility="private",
        )  # fmt: skip
    return made.queue(max_size=acts.asked.max_queue)


def serve(made: Any, asked: AppConfig) -> Any:
    """Opens the page for browsers, in threads of its own; the caller closes it."""
    made.launch(
        server_name=f"[{asked.host}]" if ":" in asked.host else asked.host, server_port=asked.port, share=False,
        prevent_thread_lock=True, quiet=True, show_error=True, footer_links=[], ssr_mode=False, mcp_server=False,
        enable_monitoring=False, run_history=False, pwa=False, max_file_size=asked.max_megabytes * 1_000_000,
        theme=_theme(), head=f"<style>{environment(autoescape=False).get_template('app.css').render()}</style>",
    )  # fmt: skip
    return made


def page_error(error: UserError) -> Any:
    """As one line on the page; the app goes on."""
    return gr.Error(str(escape(error)), print_exception=False)


def _head(acts: Handlers, opened: bool) -> str:
    pair = acts.pair
    return environment(autoescape=True).get_template("app.html").render(
        names=", ".join(pair.voices), base=PurePath(pair.base.base.checkpoint).name, asked=acts.asked,
        opened=opened, two=pair.base is not pair.tuned,
    )  # fmt: skip


def _theme() -> Any:
    """gradio's own, in the colours of the report: those follow the system, light or dark."""
    fill = {
        "body_background_fill": "paper", "body_text_color": "ink", "body_text_color_subdued": "soft",
        "background_fill_primary": "card", "background_fill_secondary": "wash", "block_background_fill": "card",
        "block_border_color": "line", "border_color_primary": "line", "block_label_background_fill": "card",
        "block_label_text_color": "soft", "block_title_text_color": "soft", "block_info_text_color": "soft",
        "input_background_fill": "paper", "input_border_color": "line", "color_accent": "tuned",
        "button_secondary_background_fill": "wash", "button_secondary_background_fill_hover": "line",
        "button_secondary_text_color": "ink", "button_secondary_border_color": "line",
        "button_primary_background_fill": "tuned", "button_primary_background_fill_hover": "tuned",
        "button_primary_border_color": "tuned", "button_primary_border_color_hover": "tuned",
        "button_primary_text_color": "paper", "slider_color": "tuned", "stat_background_fill": "line",
        "loader_color": "tuned", "input_border_color_focus": "tuned",
    }  # fmt: skip
    colors = {f"{name}{end}": f"var(--{color})" for name, color in fill.items() for end in ("", "_dark")}
    del colors["color_accent_dark"]  # which it does not know
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    return gr.themes.Base(**fonts).set(input_border_width="1px", **colors)


def render_result(heard: PairResult, scoring: EvalConfig, reference: str | None) -> str:
    """HTML: both texts with the words in which they differ; with a `reference` each against that, and its error rate.

    Raises ChoiceError where `scoring` asks for numbers as words in a language whose numbers cannot be read.
    """
    normalizer = Normalizer(scoring.normalizer, heard.language, scoring.numbers)
    said = {"untouched": joined(heard.base), "tuned": joined(heard.tuned)}
    return environment(autoescape=True).get_template("app_result.html").render(
        heard=heard, chunks=differences(said["untouched"], said["tuned"], normalizer), normalizer=normalizer,
        cut={name: sum(each.truncated for each in getattr(heard, name)) for name in said},
        scored=None if reference is None else scored(reference, said, normalizer), rate=primary_metric(heard.language),
    )  # fmt: skip


def joined(segments: Sequence[Segment]) -> str:
    return " ".join(segment.text for segment in segments)


def differences(untouched: str, tuned: str, normalizer: Normalizer) -> list[AlignmentChunk]:
    """The two aligned word by word, as they were written; what normalising makes alike (capitals, commas) is equal."""
    words = [scoring_units(text, normalizer.language).split() for text in (untouched, tuned)]
    # A key a word, so that what is aligned has the places of what is shown: a lone dash is its own.
    keys = [" ".join("".join(normalizer(word).split()) or word for word in side) for side in words]
    (aligned,), at, made = findings.alignments(keys[:1], keys[1:]), [0, 0], []
    for chunk in aligned:
        sides = [words[i][at[i] : at[i] + len(part)] for i, part in enumerate((chunk.reference, chunk.hypothesis))]
        at = [at[0] + len(sides[0]), at[1] + len(sides[1])]
        made.append(AlignmentChunk(chunk.kind, *sides))
    return made


def scored(reference: str, said: dict[str, str], normalizer: Normalizer) -> dict[str, Any]:
    """The reference as it is compared, and each model against it: chunks, errors, units of the reference and the rate.

    Without a word in the reference `units` is 0 and the rate None.
    """
    clean = {name: normalizer(text) for name, text in {"reference": reference, **said}.items()}
    units = {name: scoring_units(text, normalizer.language) for name, text in clean.items()}
    found: dict[str, Any] = {"reference": clean["reference"]}
    for name in said:
        (errors,), (of,) = metrics.clip_errors([clean["reference"]], [clean[name]], str(normalizer.language))
        (chunks,) = findings.alignments([units["reference"]], [units[name]])
        found[name] = {"chunks": chunks, "errors": errors, "units": of, "rate": errors / of if of else None}
    return found


def files(segments: Sequence[Segment], name: str, folder: Path) -> list[Path]:
    """The text and the subtitles, written into `folder` as `name`.txt and .srt."""
    made = [folder / f"{name}.{suffix}" for suffix in ("txt", "srt")]
    for file in made:
        write_text(file, FORMATS[file.suffix.removeprefix(".")](segments))
    return made
