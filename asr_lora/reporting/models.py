"""Several models on the same clips: the table in the terminal, and the page with every clip."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from asr_lora.evaluation import error_analysis
from asr_lora.evaluation.metrics import delta_interval, interval, percent, points
from asr_lora.reporting.pages import environment, player
from asr_lora.reporting.tables import SHORT_OF_SPEAKERS, leading_first
from asr_lora.runtime.console import format_bytes, log
from asr_lora.runtime.files import atomic_folder, write_text
from asr_lora.runtime.screen import show, show_line
from asr_lora.speech.normalizer import primary_metric, scoring_units

SHOWN = 24  # clips with a player: those on which the models differ most
LEFT = ("model",)


def show_models(facts: Mapping[str, Any]) -> None:
    """Prints models.json: a row for each model."""
    rows = model_rows(facts)
    show_line("")
    show(title(facts), headings(facts), [list(row.values()) for row in rows], notes(facts), left=LEFT)


def title(facts: Mapping[str, Any]) -> str:
    return (
        f"{facts['clips']} {facts['split']} clips of {Path(facts['source']).name}, normalized by {facts['normalizer']}"
    )


def headings(facts: Mapping[str, Any]) -> tuple[str, ...]:
    first, second = leading_first(facts["language"])
    return ("model", first.upper(), f"to {facts['against']}, points", second.upper(), "runaway", "times real time",
            "memory", "size")  # fmt: skip


def model_rows(facts: Mapping[str, Any]) -> list[dict[str, str]]:
    """Returns a row for each model, cells under `headings`."""
    first, second = leading_first(facts["language"])
    rows = []
    for name, own in facts["models"].items():
        delta = own.get("delta")
        difference = delta and f"{points(delta[first])} ({interval(delta_interval(delta, first), points)})"
        cells = (
            name, f"{percent(own[first])} ({interval(own[f'{first}_ci95'])})", difference or "-", percent(own[second]),
            str(own["runaways"]["clips"]), "-" if own["rtfx"] is None else f"{own['rtfx']:.1f}",
            *("-" if own[key] is None else format_bytes(own[key]) for key in ("peak_memory_bytes", "bytes")),
        )  # fmt: skip
        rows.append(dict(zip(headings(facts), cells, strict=True)))
    return rows


def notes(facts: Mapping[str, Any]) -> list[str]:
    """Returns what to say below the table."""
    by = [f"{name}: {own['kind']}, {own['decoded_by']}" for name, own in facts["models"].items()]
    first = next(iter(facts["models"].values()))
    by += [
        f"{name} was trained on {own['trained_on']} of these clips: its rate is no estimate for others"
        for name, own in facts["models"].items()
        if own["trained_on"]
    ]
    return [*by, SHORT_OF_SPEAKERS if first["ci_unit"] == "clip" else ""]


def write_page(folder: Path, facts: Mapping[str, Any], lines: Sequence[Mapping[str, Any]], answer: str = "") -> Path:
    """Writes index.html into `folder`/page, with the clips that it plays beside it; returns its path.

    `answer` is a paragraph above the table.
    """
    language, names = facts["language"], list(facts["models"])
    spread = [max(line["errors"].values()) - min(line["errors"].values()) for line in lines]
    shown = [at for at in sorted(range(len(lines)), key=lambda at: -spread[at])[:SHOWN] if spread[at]]
    with atomic_folder(folder / "page") as page:
        (page / "clips").mkdir()
        examples = [_example(at, lines[at], language, page / "clips") for at in shown]
        text = environment(autoescape=True).get_template("models.html").render(
            title=title(facts), facts=facts, names=names, headings=headings(facts), rows=model_rows(facts),
            notes=notes(facts), examples=examples, rate=primary_metric(language),
            answer=answer,
            lines=[_row(line, names) for line in lines],
        )  # fmt: skip
        write_text(page / "index.html", text)
    if silent := sum(each["sound"] is None for each in examples):
        log(f"{silent} of the shown clips are missing and have no player")
    return folder / "page" / "index.html"


def _example(at: int, line: Mapping[str, Any], language: str, clips: Path) -> dict[str, Any]:
    """Returns a clip with the alignment of every model, and its audio file beside the page (None: missing)."""
    reference = scoring_units(line["reference_normalized"], language)
    units = [scoring_units(text, language) for text in line["hypotheses_normalized"].values()]
    aligned = error_analysis.alignments([reference] * len(units), units)
    sound, wave = player(at, line, clips)
    return {**line, "aligned": dict(zip(line["errors"], aligned, strict=True)), "sound": sound, "wave": wave}


def _row(line: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Returns a clip as the search over all clips shows it."""
    return {
        "id": line["id"], "reference": line["reference"], "errors": [line["errors"][name] for name in names],
        "texts": [line["hypotheses"][name] for name in names],
        "runaway": sorted({sign for signs in line["runaway"].values() for sign in signs}),
    }  # fmt: skip
