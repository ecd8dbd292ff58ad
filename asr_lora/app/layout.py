"""The page itself, in gradio: what to hear, by which model, and what they said. Nothing comes from another host."""

from pathlib import Path, PurePath
from tempfile import mkdtemp
from typing import Any

import gradio as gr
from markupsafe import escape

from asr_lora.app import answer
from asr_lora.app.pair import WHICHEVER, Pair
from asr_lora.branches import AppConfig
from asr_lora.errors import UserError, WorldError
from asr_lora.manifest import Clip, extension, sound
from asr_lora.page import environment

SHOWN = 80  # characters of a reference in the list of clips


def page(pair: Pair, asked: AppConfig, scratch: Path, opened: bool) -> Any:
    """The page as a gr.Blocks; files go below `scratch`, and `opened` says that other machines can reach it."""
    age = round(60 * asked.keep_minutes)
    first = next(iter(pair.voices))
    with gr.Blocks(title="asr_lora", analytics_enabled=False, delete_cache=(min(age, 60), age)) as made:
        gr.HTML(_head(pair, asked, opened), elem_id="head")
        with gr.Row():
            with gr.Column(min_width=300):
                audio = gr.Audio(
                    sources=["microphone", "upload"], type="filepath", label="what they hear", editable=False,
                    buttons=[],
                )  # fmt: skip
            with gr.Column(min_width=300):
                clip = gr.Dropdown(
                    _listed(pair, first, asked), value=None, label="or a test clip of the run", elem_id="clip",
                    visible=any(voice.clips for voice in pair.voices.values()),
                )  # fmt: skip
                several = [WHICHEVER] if len(pair.voices) > 1 else []
                voice = gr.Dropdown([*pair.voices, *several], value=first, label="adapter", visible=bool(several))
                strength = _slider(pair, first)
                start = gr.Button("Transcribe", variant="primary", elem_id="start")
        said = gr.HTML(elem_id="said")
        with gr.Row(visible=False) as row:
            taken = [gr.DownloadButton(f"tuned text as {suffix}", size="sm") for suffix in ("txt", "srt")]

        def chosen(name: str) -> tuple[Any, Any]:
            return gr.Dropdown(_listed(pair, name, asked), value=None), _slider(pair, name)

        def loaded(name: str, clip_id: str | None) -> Any:
            if clip_id is None:
                return gr.skip()
            wanted = _clip(pair, name, clip_id)
            try:
                file = Path(mkdtemp(dir=scratch)) / f"clip.{extension(wanted)}"
                file.write_bytes(sound(wanted))
            except UserError as error:
                raise _told(error) from error
            return str(file)

        def heard(path: str | None, name: str, clip_id: str | None, strong: float, bar: Any = gr.Progress()) -> Any:  # noqa: B008 (gradio's way)
            if path is None:
                raise _told(WorldError("there is nothing to hear yet; record something, or choose a file or a clip"))
            file, wanted = Path(path), None if clip_id is None else _clip(pair, name, clip_id)
            try:
                if file.stat().st_size > asked.max_megabytes * 1_000_000:
                    raise WorldError(f"{file.name}: is larger than {asked.max_megabytes} MB (app.max_megabytes)")
                whole = wanted is not None and sound(wanted) == file.read_bytes()
                advance = lambda which, done, of: bar((done, of), desc=f"{which} model", unit="pieces")  # noqa: E731
                both = pair.hear(file, name, strong, asked.max_minutes, whole, advance)
                shown = answer.shown(both, pair.scoring, wanted["text"] if wanted and whole else None)
                written = answer.files(both.tuned, file.stem, Path(mkdtemp(dir=scratch)))
            except UserError as error:
                raise _told(error) from error
            return shown, gr.Row(visible=True), *map(str, written)

        quiet = {"api_visibility": "private", "show_progress": "hidden"}
        nothing = lambda: ("", gr.Row(visible=False))  # noqa: E731
        voice.input(chosen, voice, [clip, strength], **quiet)
        clip.input(loaded, [voice, clip], audio, **quiet).then(nothing, None, [said, row], **quiet)
        for own in (audio.upload, audio.stop_recording, audio.clear):  # no clip of the run any more
            own(lambda: (None, *nothing()), None, [clip, said, row], **quiet)
        # One at a time: the adapter that the base wears is the model's own.
        start.click(
            heard, [audio, voice, clip, strength], [said, row, *taken], concurrency_limit=1, show_progress_on=said,
            api_visibility="private",
        )  # fmt: skip
    return made.queue(max_size=asked.max_waiting)


def serve(made: Any, asked: AppConfig) -> Any:
    """Opens the page for browsers, in threads of its own; the caller closes it."""
    made.launch(
        server_name=f"[{asked.host}]" if ":" in asked.host else asked.host, server_port=asked.port, share=False,
        prevent_thread_lock=True, quiet=True, show_error=True, footer_links=[], ssr_mode=False, mcp_server=False,
        enable_monitoring=False, run_history=False, pwa=False, max_file_size=asked.max_megabytes * 1_000_000,
        theme=_theme(), head=f"<style>{environment(autoescape=False).get_template('app.css').render()}</style>",
    )  # fmt: skip
    return made


def _clip(pair: Pair, name: str, clip_id: str) -> Clip:
    return next(clip for clip in pair.voices[name].clips if clip["id"] == clip_id)


def _listed(pair: Pair, name: str, asked: AppConfig) -> list[tuple[str, str]]:
    """What the list of clips says, and the id of each."""
    clips = pair.voices[name].clips if name in pair.voices else []
    return [(f"{clip['text'][:SHOWN]} ({clip['duration']:.1f} s)", clip["id"]) for clip in clips[: asked.clips]]


def _slider(pair: Pair, name: str) -> Any:
    scales = all(voice.scales for own, voice in pair.voices.items() if name in (own, WHICHEVER))
    info = "0: as untouched, 1: as trained" if scales else "this kind of tuning has no strengths between"
    return gr.Slider(0, 1, value=1, step=0.05, label="strength", info=info, interactive=scales)


def _told(error: UserError) -> Any:
    """As one line on the page; the app goes on."""
    return gr.Error(str(escape(error)), print_exception=False, title="This could not be heard")


def _head(pair: Pair, asked: AppConfig, opened: bool) -> str:
    names = ", ".join(pair.voices)
    base = PurePath(pair.untouched.config.model.checkpoint).name
    return environment(autoescape=True).get_template("app.html").render(
        names=names, base=base, asked=asked, opened=opened, two=pair.untouched is not pair.tuned,
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
        "button_secondary_text_color": "ink", "button_secondary_border_color": "line", "button_primary_border_color": "tuned", "button_primary_background_fill": "tuned",
        "button_primary_background_fill_hover": "tuned", "button_primary_text_color": "paper", "slider_color": "tuned",
        "stat_background_fill": "line", "loader_color": "tuned", "input_border_color_focus": "tuned",
    }  # fmt: skip
    both = {f"{name}{end}": f"var(--{color})" for name, color in fill.items() for end in ("", "_dark")}
    usable = {name: value for name, value in both.items() if name != "color_accent_dark"}
    return gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]).set(input_border_width="1px", **usable)
