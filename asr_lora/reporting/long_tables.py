"""Long recordings as terminal tables: a set's by way of transcribing, and what exports make of one."""

from collections.abc import Mapping, Sequence
from typing import Any

from asr_lora.evaluation.metrics import SMALL, difference, interval, percent
from asr_lora.runtime.screen import show, show_line

LEFT = ("model", "difference", "skipped", "repeated")  # columns that are aligned left


def show_set(found: Mapping[str, Any]) -> None:
    """Prints eval/<set>/long.json."""
    show_line("")
    show(title(found), headings(found), rows_of(found), notes(found), left=LEFT)


def title(found: Mapping[str, Any]) -> str:
    minutes = found["audio_seconds"] / 60
    return f"{found['set']}: {found['recordings']} long recordings, {minutes:.1f} min"


def headings(found: Mapping[str, Any]) -> tuple[str, ...]:
    rate = next(iter(found["ways"].values()))["rate"].upper()
    return "cut by", "model", rate, *LEFT[1:], "no speech", "near 0.2, 0.5 s", "times real time"


def rows_of(found: Mapping[str, Any]) -> list[list[str]]:
    """Returns for every way of cutting a row for each model, under `headings`."""
    rows = []
    for way, scored in found["ways"].items():
        for model, figures in (("base", scored["baseline"]), ("fine-tuned", scored)):
            rows.append([
                way, model, f"{percent(figures['error_rate'])} ({interval(figures['error_rate_ci95'])})",
                difference(scored["delta"], "error_rate") if figures is scored else "",
                *_cells(figures)[1:],
                f"{percent(figures['boundaries_within_0.2'])}, {percent(figures['boundaries_within_0.5'])}",
                f"{figures['rtfx']:.1f}",
            ])  # fmt: skip
    return rows


def notes(found: Mapping[str, Any]) -> list[str]:
    """Returns what the columns mean, and over what the intervals are."""
    scored = next(iter(found["ways"].values()))
    over = f"{scored['clips']} sentences"
    if scored.get("ci_unit") == "stretch":
        over += ", those of 30 s drawn as one"
    else:
        over += ": too few for stretches of 30 s, though what is skipped is skipped together, so they are too narrow"
    few = f"; fewer than {SMALL}: a small sample" if scored["clips"] < SMALL else ""
    return [
        "cut by: vad at pauses; sequential by Whisper's own timestamps, windows of 30 s; previous_text so, each window "
        "with the text before it as prompt; the others are tools at their defaults",
        "skipped, repeated: more than 10 words in a row deleted, inserted; no speech: text more than 0.5 s from every "
        "sentence; near: boundaries of sentences with one of a segment within 0.2 and 0.5 s",
        f"normalized by {found['normalizer']}; intervals over {over}{few}",
    ]


def show_exports(rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints what exports make of a long recording, a row for every format and way; nothing where none had one."""
    if not (verified := [row for row in rows if "long" in row]):
        return
    ours, length = verified[0]["long"]["ours"], verified[0]["long"]["recording_seconds"]
    shown = [["ours", "timestamps", *_cells(ours), ""]]
    shown += [
        [row["format"], way, *_cells(figures), f"{figures['rtfx']:.1f}"]
        for row in verified
        for way, figures in row["long"]["ways"].items()
    ]
    note = (
        "this model skips or repeats text by itself: cut recordings at pauses (VAD), or train with experiment=long_form"
        if ours["skipped"] or ours["repeated"]
        else ""
    )
    headings = ("format", "with", "error rate", "skipped", "repeated", "no speech", "times real time")
    show_line("")
    show(f"a recording of {length / 60:.1f} min, each runtime at its defaults", headings, shown, [note], left=("with",))


def _cells(figures: Mapping[str, Any]) -> list[str]:
    """Returns the cells of a transcript: error rate, skipped and repeated text, text without speech."""
    return [
        percent(figures["error_rate"]),
        *(f"{figures[what]} ({figures[f'{what}_words']} words)" for what in ("skipped", "repeated")),
        f"{figures['words_without_speech']} words",
    ]
