"""Scores a run, untouched against tuned:  python -m asr_lora.eval [run_dir=runs/...] [eval.limit=null]

Without words it scores the run that runs/last names; other words name the run as they did for train. Both models
decode the same clips with the same settings, unquantised. Leaves eval/<split>/{hypotheses.jsonl,metrics.json}.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from rich.console import Console
from rich.table import Table
from transformers import WhisperForConditionalGeneration

from asr_lora import decode, metrics, run
from asr_lora.checkpoint import identity, load_config, load_processor
from asr_lora.config import Config, plain, typed
from asr_lora.errors import ChoiceError
from asr_lora.files import cache_dir, read_json, write_json, write_jsonl
from asr_lora.hardware import Hardware, free_memory, look
from asr_lora.launch import launch
from asr_lora.manifest import Clip
from asr_lora.model import adapter, whisper
from asr_lora.prepare import clips, language
from asr_lora.progress import progress, say
from asr_lora.text import normalizer

PROMPT_TOKENS = 4  # start, language, task, no timestamps


def evaluate(config: Config) -> dict[str, Any]:
    """Writes, shows and returns the metrics of `eval.split`; what was scored the same way before is shown again.

    Raises ChoiceError when the run has no adapter.
    """
    if not run.adapter(config.run).is_dir():
        raise ChoiceError(f"run_dir: no adapter in {config.run}/train; the same words with asr_lora.train finish it")
    folder = config.run / "eval" / config.eval.split
    asked = _asked(config)
    if (folder / "metrics.json").is_file() and (facts := read_json(folder / "metrics.json"))["asked"] == asked:
        say(f"already evaluated: {folder}")
    else:
        facts, lines = _evaluate(config)
        facts["asked"] = asked
        (folder / "metrics.json").unlink(missing_ok=True)  # or an interruption here would leave it beside other lines
        write_jsonl(folder / "hypotheses.jsonl", lines)
        write_json(folder / "metrics.json", facts)
        say(f"hypotheses and metrics: {folder}")
    show(config, facts)
    return facts


def decoding(config: Config, hardware: Hardware, short: bool) -> decode.Decoding:
    """The run's way of making hypotheses; `short` where the model was trained on contexts of less than 30 s.

    An untouched model is always heard at 30 s: at less it never stops talking.
    Raises ChoiceError for what the checkpoint cannot do.
    """
    spoken, asked = language(config), config.decoding.max_new_tokens
    most = load_config(config.model.checkpoint).max_target_positions - PROMPT_TOKENS
    if asked is not None and asked > most:
        raise ChoiceError(f"decoding.max_new_tokens: must be at most {most} with this checkpoint, got {asked}")
    return decode.Decoding(
        language=spoken,
        task=config.model.task,
        num_beams=config.decoding.num_beams,
        max_new_tokens=asked or most,
        tokens_per_second=config.decoding.tokens_per_second,
        margin=config.decoding.margin if short and config.decoding.context == "auto" else None,
        batch_size=max(1, hardware.decode_batch // config.decoding.num_beams),  # a beam takes a clip's memory
    )


def _evaluate(config: Config) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The metrics, and the lines of hypotheses.jsonl."""
    hardware = look(config)
    rows = clips(config, config.eval.split, config.eval.limit)
    say(f"{config.run_name}: {len(rows)} {config.eval.split} clips, untouched and tuned, on {hardware.name}")
    before = _heard(config, hardware, rows, None)
    after = _heard(config, hardware, rows, run.adapter(config.run))

    untouched, tuned = before["hypotheses"], after["hypotheses"]
    references, speakers = [row["text"] for row in rows], [row["speaker"] for row in rows]
    rule = config.eval.normalizer, config.seed
    normal = normalizer(config.eval.normalizer)
    lines = [
        {
            **{name: row[name] for name in ("id", "path", "duration", "speaker")},
            "reference": row["text"],
            "hypothesis": tuned_text,
            "reference_normalized": normal(row["text"]),
            "hypothesis_normalized": normal(tuned_text),
            "baseline_hypothesis": text,
            "baseline_hypothesis_normalized": normal(text),
        }
        for row, text, tuned_text in zip(rows, untouched, tuned, strict=True)
    ]
    facts = {
        "available": read_json(run.summary(config.run))["splits"][config.eval.split]["available"],
        **metrics.score(references, tuned, speakers, *rule),
        **_decoded(after),
        "baseline": {**metrics.score(references, untouched, speakers, *rule), **_decoded(before)},
        "delta": metrics.paired_delta(references, untouched, tuned, speakers, *rule),
        "precision": _precision(hardware),
        "versions": run.versions(),
    }
    return facts, lines


def _heard(config: Config, hardware: Hardware, rows: Sequence[Clip], tuned: Path | None) -> dict[str, Any]:
    """What the model hears with the adapter of the folder `tuned`, or untouched, and what decoding took.

    Kept in the cache by all that it follows from: a sweep decodes the untouched model once, and scoring the same
    hypotheses under another normaliser decodes nothing.
    """
    short = tuned is not None and adapter.trained_on_short(tuned)
    settings = decoding(config, hardware, short)
    follows_from = {
        "checkpoint": identity(config.model.checkpoint),
        "adapter": None if tuned is None else _sha256(tuned),
        "clips": [row["sha256"] for row in rows],
        "decoding": asdict(replace(settings, batch_size=0)),
        "precision": _precision(hardware),
        "versions": {name: version for name, version in run.versions().items() if name in ("torch", "transformers")},
    }
    content = hashlib.sha256(json.dumps(follows_from, sort_keys=True).encode()).hexdigest()
    kept = cache_dir() / "hypotheses" / f"{content}.json"
    name = "untouched" if tuned is None else "tuned"
    if kept.is_file():
        say(f"{name}: these clips were decoded before; hypotheses from {kept}")
        return {**read_json(kept), "cached": True}
    heard = _decode(config, hardware, rows, tuned, settings)
    write_json(kept, heard)
    return {**heard, "cached": False}


def _decode(
    config: Config, hardware: Hardware, rows: Sequence[Clip], tuned: Path | None, settings: decode.Decoding
) -> dict[str, Any]:
    free_memory()
    started = time.perf_counter()
    processor = load_processor(config.model.checkpoint)
    model: WhisperForConditionalGeneration = whisper.load(
        config.model.checkpoint, _precision(hardware), hardware.device
    )
    if tuned is not None:
        model = adapter.merge(model, tuned)
    loaded = time.perf_counter()
    with progress(f"decoding {'untouched' if tuned is None else 'tuned'}", total=len(rows)) as bar:
        heard = decode.transcribe(model, processor, rows, settings, bar.advance)
    return {
        "hypotheses": [hypothesis.text for hypothesis in heard],
        "runaway": sum(hypothesis.cut for hypothesis in heard),
        "device": hardware.name,
        "context": "full" if settings.margin is None else "short",
        "audio_seconds": sum(row["duration"] for row in rows),
        "seconds": time.perf_counter() - loaded,
        "load_seconds": loaded - started,
    }


def _decoded(heard: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of a decoding, as they stand in metrics.json."""
    figures = {name: value for name, value in heard.items() if name != "hypotheses"}
    return {**figures, "rtfx": heard["audio_seconds"] / heard["seconds"]}


def _precision(hardware: Hardware) -> str:
    """Of the merged model: never quantised, since merging into 8 bits rounds the adapter away and decodes slower."""
    return "fp16" if hardware.device.type == "cuda" else "fp32"


def _asked(config: Config) -> dict[str, Any]:
    """What the result depends on, beside the manifest."""
    return {
        "adapter_sha256": _sha256(run.adapter(config.run)),
        "limit": config.eval.limit,
        "normalizer": config.eval.normalizer,
        "decoding": plain(config)["decoding"],
    }


def _sha256(adapter: Path) -> str:
    """Of its weights, its configuration (which scales them) and its context."""
    names = ("adapter_model.safetensors", "adapter_config.json", "asr_lora.json")
    files = (file for name in names if (file := adapter / name).is_file())
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def show(config: Config, facts: dict[str, Any]) -> None:
    """The before/after table, on standard output."""
    clips_of = f"{facts['clips']} of {facts['available']} {config.eval.split} clips"
    table = Table(title=f"{config.run_name}: {clips_of}, normalised by '{facts['normalizer']}'")
    for heading in ("", "WER", "95 % interval", "CER", "seconds"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, figures in (("untouched", facts["baseline"]), ("tuned", facts)):
        rates = _percent(figures["wer"]), _interval(figures["wer_ci95"]), _percent(figures["cer"])
        table.add_row(name, *rates, f"{figures['seconds']:.1f}")
    delta = facts["delta"]
    table.add_row("difference in points", _points(delta["wer"]), _interval(delta["ci95"], _points), "", "")
    if facts["ci_unit"] == "clip":
        table.caption = "intervals over clips: too few known speakers for them to say anything about other speakers"
    Console().print(table)


def _percent(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:.1%}"


def _points(difference: float | None) -> str:
    return "-" if difference is None else f"{difference * 100:+.1f}"


def _interval(bounds: Sequence[float] | None, shown: Callable[[float], str] = _percent) -> str:
    return "-" if bounds is None else " to ".join(map(shown, bounds))


def main(config: Config) -> None:
    """Finds the run that the words mean, and scores it with its own settings."""
    overrides = list(HydraConfig.get().overrides.task)
    about_evaluation = tuple(f"{group}{end}" for group in ("eval", "decoding", "hardware") for end in (".", "="))
    about_run = [word for word in overrides if not word.startswith(about_evaluation)]
    folder = config.run
    if not any(word for word in about_run if not word.startswith("runs_dir=")):
        folder = run.last(Path(config.runs_dir))
    elif not run.settings_file(folder).is_file():  # trained with the usual decoding, and now heard with another
        folder = typed(compose("config", about_run)).run
    say(f"run: {folder}")
    evaluate(run.as_recorded(folder, config, overrides))


if __name__ == "__main__":
    launch(main)
