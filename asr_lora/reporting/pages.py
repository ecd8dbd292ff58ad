"""Templates of pages and model cards, and the functions that templates can call."""

import re
import shlex
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from asr_lora.config.schema import WHOLE
from asr_lora.data.manifest import audio_suffix, encoded_audio
from asr_lora.evaluation import metrics
from asr_lora.model.adapter_folder import is_whole
from asr_lora.model.cost import PUBLISHED, dimensions
from asr_lora.model.hub import is_hub_id, is_local
from asr_lora.model.pretrained import load_config, resolve
from asr_lora.reporting import charts, long_tables, tables
from asr_lora.reporting.tables import leading_first, normalizer_label
from asr_lora.runs.folder import read_contexts
from asr_lora.runs.folder import settings as recorded_settings
from asr_lora.runtime.console import log
from asr_lora.runtime.errors import ExternalError
from asr_lora.runtime.files import write_text
from asr_lora.speech import audio
from asr_lora.speech.normalizer import primary_metric

# Splits a value of Hydra's grammar into quoted parts, parts between the brackets and commas of lists and dictionaries
# (an interpolation is part of the text), and these brackets and commas.
PIECE = re.compile(r""""(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|(?:\$\{[^}]*\}|\\.|[^,{}\[\]"'])+|.""", re.DOTALL)
TASK = "automatic-speech-recognition"
NAMED = re.compile(r"(\s*(?:[\w.+-]+:\s*)*)(.*?)(\s*)", re.DOTALL)  # prefixes such as `path: ` and `shards:`, the value
REMOTE = ("hf:", "mdc:")  # prefixes of names on a server
NOT_PATHS = ("export.push", "data.columns")  # settings whose slashes are not of paths


def unbroken(text: str) -> Markup:
    """Returns HTML without line breaks in parentheses, so that an interval stays on one line."""
    safe = str(escape(text))  # a plain string: strings that are put into Markup are escaped
    marked = re.sub(r"\([^()]*\)", r'<span class="whole">\g<0></span>', safe)
    return Markup(f"<span>{marked}</span>")  # one element, which a narrow screen shows beside its name


def environment(autoescape: bool) -> Environment:
    """Returns the Jinja environment; `autoescape` for HTML, where markup in a corpus must stay text."""
    made = Environment(
        loader=PackageLoader("asr_lora", "reporting/templates"), autoescape=autoescape, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    made.filters |= {
        "percent": metrics.percent, "points": metrics.points, "interval": metrics.interval,
        "interval_points": lambda bounds: metrics.interval(bounds, metrics.points), "difference": metrics.difference,
        "unbroken": unbroken, "shared_command": shared_command,
    }  # fmt: skip
    made.globals |= {
        "primary_metric": primary_metric, "leading_first": tables.leading_first,
        "delta_interval": metrics.delta_interval, "normalizer_label": tables.normalizer_label,
        "rate_cell": tables.rate_cell, "change": tables.change, "context_note": tables.context_note,
        "fallback_note": tables.fallback_note, "runaways": tables.runaways, "small": tables.small,
        "strength_cell": tables.strength_cell, "strength_label": tables.strength_label, "is_best": tables.is_best,
        "context_label": tables.context_label, "safe_note": tables.safe_note,
        "long_title": long_tables.title, "long_headings": long_tables.headings, "long_rows": long_tables.rows_of,
        "long_notes": long_tables.notes,
        "with_languages": tables.with_languages,
        "drawn_of": tables.drawn_of, "sample_note": tables.sample_note, "shared_value": shared_value,
        "tuning_label": tables.tuning_label,
        "CHOSEN_ON_DEV": tables.CHOSEN_ON_DEV, "FOLDED": tables.FOLDED,
    }  # fmt: skip
    return made


def player(at: int, line: Mapping[str, Any], clips: Path) -> tuple[str | None, Any]:
    """Writes the sound of a clip into `clips`, beside a page; returns its link and its waveform, None where it is gone.

    The file is named after the clip's index `at`: an id can be longer than a file name, or be a path to elsewhere.
    """
    file = clips / f"{at}.{audio_suffix(line)}"
    try:
        recording = encoded_audio(line)
        wave = charts.waveform(audio.decode(recording)[0])
        file.write_bytes(recording)
    except ExternalError as error:
        log(f"no player on the page: {error}")
        return None, None
    return f"clips/{file.name}", wave


def hub_id(checkpoint: str) -> str | None:
    """Returns the Hub id of a checkpoint, or OpenAI's for a folder of that name and dimensions.

    None for a folder of another name or of other dimensions, which the Hub may not have.
    """
    if not is_local(checkpoint):
        return resolve(checkpoint)[0]
    folder = Path(checkpoint).expanduser()
    named = f"openai/whisper-{folder.name.removeprefix('faster-').removeprefix('whisper-')}"
    return named if PUBLISHED.get(named) == dimensions(load_config(checkpoint).to_dict()) else None


def write_card(
    folder: Path, run: Path, license_name: str | None, trained: Mapping[str, Any], summary: Mapping[str, Any],
    facts: Mapping[str, Mapping[str, Any]], checkpoint: str,
) -> None:  # fmt: skip
    """Writes the model card (README.md) into the `folder` of an adapter or whole model of a run.

    `trained` is train/metrics.json, `summary` data/summary.json, and `facts` are the metrics of every set, the run's
    own first. `checkpoint` is the base model, which may lie elsewhere than the run recorded.
    """
    settings = recorded_settings(run)
    base = hub_id(checkpoint) or Path(checkpoint).expanduser().name
    split, own = next(iter(facts.items()))
    results = [
        EvalResult(
            task_type=TASK, task_name="Speech recognition", dataset_type=summary["release"] if name == split else name,
            dataset_name=summary["release"] if name == split else name, dataset_config=part["language"],
            dataset_split=scored["split"], metric_type=rate, metric_value=round(100 * part[rate], 2),
            metric_name=f"{rate.upper()} (%), normalized by {normalizer_label(scored)}",
        )
        for name, scored in facts.items()
        for part in scored.get("languages", {"": scored}).values()
        for rate in leading_first(part["language"])
        if part[rate] is not None
    ]  # fmt: skip
    whole = is_whole(folder)
    tokens = {token for drawn in summary["splits"].values() for token in drawn.get("languages", ())}
    # The corpus's language, also where Whisper decodes with another's token; the Hub has no regions.
    languages = [settings["data"]["language"].partition("-")[0], *sorted(tokens - {own["language"]})]
    data = ModelCardData(
        language=languages if len(languages) > 1 else languages[0],
        base_model=base, library_name="transformers" if whole else "peft", license=license_name,
        datasets=[summary["release"]], metrics=["wer", "cer"], pipeline_tag=TASK,
        tags=["whisper", "fine-tuned" if whole else "lora", "asr_lora"],
        model_name=settings["run_name"], eval_results=results,
    )  # fmt: skip
    text = environment(autoescape=False).get_template("card.md").render(
        base=base, published=hub_id(checkpoint), split=split, own=own, facts=facts, settings=settings, trained=trained,
        summary=summary, whole=whole, merged=whole and settings["lora"]["kind"] not in WHOLE,
        this="this model" if whole else "with this adapter", contexts=read_contexts(run, own),
    )  # fmt: skip
    file, card = folder / "README.md", str(ModelCard(f"---\n{data}\n---\n\n{text}"))
    if not file.is_file() or file.read_text(encoding="utf-8") != card:
        write_text(file, card)


def shared_command(command: str) -> str:
    """Returns a command line with the values of its overrides shortened by `shared_value`."""
    try:
        arguments = shlex.split(command)
    except ValueError:  # an unclosed quote, in a damaged record
        arguments = command.split()
    return shlex.join(map(_argument, arguments))


def _argument(argument: str) -> str:
    key, equals, value = argument.partition("=")
    if not equals:
        return argument if argument.startswith("~") else _path(argument)  # ~key removes a setting
    return f"{key}={shared_value(key.lstrip('+'), value)}"


def shared_value(key: str, value: str) -> str:
    """Returns a setting's value with local paths shortened to their last part; Hub ids and URLs stay.

    The user, password, query and fragment of a URL are removed, since they may be secret.
    """
    if key in NOT_PATHS or (key == "model.checkpoint" and is_hub_id(value.strip("\"'"))):
        return value
    return "".join(map(_piece, PIECE.findall(value)))


def _piece(piece: str) -> str:
    if piece[0] in "\"'" and len(piece) > 1:
        return f"{piece[0]}{_piece(piece[1:-1])}{piece[-1]}" if piece[1:-1] else piece
    found = NAMED.fullmatch(piece)
    if found is None:
        return piece
    before, rest, after = found.groups()
    if before.endswith(REMOTE):
        return piece
    if rest.startswith("//"):
        scheme = re.split(r":\s*", before)[-2]
        return f"{before.removesuffix(f'{scheme}:')}{_url(f'{scheme}:{rest}')}{after}"
    return f"{before}{_path(rest)}{after}"


def _url(address: str) -> str:
    parts = urlsplit(address)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment=""))


def _path(path: str) -> str:
    if path.startswith("~") and "/" not in path:  # ~name would name another user
        return "~"
    if "/" not in path:
        return path
    home = path.rstrip("/") in ("", str(Path.home()))
    return "~" if home and path.strip("/") else PurePosixPath(path).name or path
