"""Scores base and fine-tuned model:  python -m asr_lora.eval [run_dir=runs/...] [eval.limit=null]

Without overrides it scores the run that runs/last names; the overrides of train name the same run here. Both models
decode the same clips with the same settings and Whisper's fallback, unquantized, on the run's own split and on all of
eval.sets. Writes eval/<set>/{hypotheses.jsonl,metrics.json}, of long recordings {transcripts.jsonl,long.json}, and with
eval.strengths=[...] eval/strengths.json, with eval.contexts=[...] eval/contexts.json. Under torchrun the processes
share the clips of a run. 'eval.models=[{model: openai/whisper-small},{model: runs/nl-...}]' compares models of any kind
on the test clips of data.source instead.
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from asr_lora.config.compose import Config, job_overrides, to_dict
from asr_lora.config.schema import ModelConfig
from asr_lora.data.languages import KEY
from asr_lora.data.manifest import LOCATION_FIELDS, training_clips
from asr_lora.decoding import generate
from asr_lora.evaluation import error_analysis, metrics
from asr_lora.evaluation.adapter_strength import AdapterSelector
from asr_lora.evaluation.contexts import score_contexts
from asr_lora.evaluation.eval_sets import EvalSet, decode_sets, eval_sets, set_normalizer
from asr_lora.evaluation.languages import by_language
from asr_lora.evaluation.long_decoding import decode_long_sets
from asr_lora.evaluation.long_sets import long_sets, score_set
from asr_lora.evaluation.prompts import score_prompt
from asr_lora.model import adapter_folder
from asr_lora.model.hardware import Hardware, agreed, resolve_hardware
from asr_lora.reporting import long_tables, models, tables
from asr_lora.reporting.pages import write_card
from asr_lora.runs import folder as run
from asr_lora.runs.finding import find_run
from asr_lora.runs.launch import launch, one_process
from asr_lora.runtime import distributed
from asr_lora.runtime.console import log
from asr_lora.runtime.files import read_json, sha256_text, write_json, write_jsonl
from asr_lora.speech.normalizer import Normalizer, scoring_units
from asr_lora.systems.comparison import score_systems
from asr_lora.systems.system import Common


def evaluate(config: Config, command: Sequence[str] | None = None) -> dict[str, Any]:
    """Writes and prints the metrics of every set, and returns those of `eval.split`.

    `command` is the command line if it was another module's. Sets that were scored before with the same inputs are not
    scored again. Raises ConfigError if the run has no adapter, translates, or another command uses it, and
    RegressionError, after everything is written, if a set lost more than `eval.max_regression`.
    """
    config.model.check_scored()
    hardware = agreed(resolve_hardware(config.hardware, config.model, config.lora, config.training.batch_size))
    with run.lock(config.run):
        config = distributed.rank_zero(lambda: run.open_trained(config))
        return _evaluate(config, hardware, shlex.join(command or ["python", "-m", "asr_lora.eval", *job_overrides()]))


def _evaluate(config: Config, hardware: Hardware, command: str) -> dict[str, Any]:
    sets = distributed.rank_zero(lambda: eval_sets(config.run, config.eval, config.data, config.model))
    selector = AdapterSelector(
        config.run, config.eval, config.data, config.model, config.decoding, hardware, config.seed
    )
    tuned, strength, curve = selector.choose(sets[1:])
    if curve:
        distributed.rank_zero(lambda: tables.show_strengths(curve))
    inputs = distributed.rank_zero(lambda: {each.name: _inputs(config, each, tuned) for each in sets})
    if missing := distributed.rank_zero(
        lambda: [each for each in sets if not _is_scored(config, each, inputs[each.name])]
    ):
        common = {"strength": strength, "average": config.eval.average, "command": command}
        _score(config, hardware, missing, tuned, inputs, common)
    else:
        log(f"already evaluated: {config.run / 'eval'}")
    if config.eval.contexts:
        found = score_contexts(config.eval, config.decoding, config.model, hardware, sets, tuned, config.seed)
        distributed.rank_zero(lambda: write_json(config.run / "eval" / "contexts.json", found))
        distributed.rank_zero(lambda: tables.show_contexts(found))
    if config.eval.prompt:
        prompted = score_prompt(config.eval, config.decoding, config.model, hardware, sets, tuned, config.seed)
        distributed.rank_zero(lambda: write_json(config.run / "eval" / "prompt.json", prompted))
        distributed.rank_zero(lambda: tables.show_prompt(prompted))
    _score_long(config, hardware, tuned)
    return distributed.rank_zero(lambda: _show(config, sets, tuned))


def _show(config: Config, sets: Sequence[EvalSet], tuned: Path) -> dict[str, Any]:
    """Prints the scores, writes the model card, and returns the metrics of `eval.split`."""
    facts = {each.name: read_json(_folder(config, each) / "metrics.json") for each in sets}
    if config.eval.split == "test":  # not dev, which chose the adapter
        _write_card(config, tuned)
    tables.show_run(config.run_name, facts)
    if config.eval.max_regression is not None:
        metrics.check_regressions(tables.with_languages(facts), config.eval.max_regression, config.eval.strict)
    return facts[config.eval.split]


def _folder(config: Config, each: EvalSet) -> Path:
    return config.run / "eval" / each.name


def _score_long(config: Config, hardware: Hardware, tuned: Path) -> None:
    """Transcribes and scores the sets of long recordings, and writes and prints their figures."""
    sets = distributed.rank_zero(lambda: long_sets(config.run, config.eval, config.data, config.model))
    if not sets:
        return
    before, after = (
        decode_long_sets(config.model, config.decoding, hardware, sets, each, config.eval.long_form,
                         config.transcribe.max_segment_seconds)
        for each in (None, tuned)
    )  # fmt: skip
    adapter = distributed.rank_zero(lambda: adapter_folder.fingerprint(tuned))
    for each, base, own in zip(sets, before, after, strict=True):
        facts, lines = score_set(each, base, own, config.eval, config.seed)
        facts |= {"adapter_sha256": adapter, "figures": run.FIGURES}
        folder = config.run / "eval" / each.name
        distributed.rank_zero(lambda: write_jsonl(folder / "transcripts.jsonl", lines))  # noqa: B023 (called at once)
        distributed.rank_zero(lambda: write_json(folder / "long.json", facts))  # noqa: B023 (called at once)
        distributed.rank_zero(lambda: long_tables.show_set(facts))  # noqa: B023 (called at once)
        log(f"transcripts and figures: {folder}")


# ---- scores ----


def _score(
    config: Config, hardware: Hardware, sets: Sequence[EvalSet], tuned: Path, inputs: Mapping[str, Mapping[str, Any]],
    common: Mapping[str, Any],
) -> None:  # fmt: skip
    """Decodes the sets with both models and writes their metrics, each with `common`."""
    names = ", ".join(f"{each.name} ({len(each.clips)} clips)" for each in sets)
    log(f"scoring: {names}, base and fine-tuned model, on {hardware.name}")
    before, after = (decode_sets(config.model, config.decoding, hardware, sets, each) for each in (None, tuned))
    common = {**common, "precision": hardware.merged_precision, "versions": run.versions()}
    distributed.rank_zero(lambda: _write(config, sets, before, after, inputs, common))


def _write(
    config: Config, sets: Sequence[EvalSet], before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]],
    inputs: Mapping[str, Mapping[str, Any]], common: Mapping[str, Any],
) -> None:  # fmt: skip
    trained_on = [row["text"] for row in training_clips(config.run)]
    for each, base, own in zip(sets, before, after, strict=True):
        facts, lines = _scored(config, each, base, own, trained_on)
        facts |= {**common, "inputs": inputs[each.name]}
        folder = _folder(config, each)
        (folder / "metrics.json").unlink(missing_ok=True)  # old metrics must not remain beside new hypotheses
        write_jsonl(folder / "hypotheses.jsonl", lines)
        write_json(folder / "metrics.json", facts)
        log(f"hypotheses and metrics: {folder}")


def _scored(
    config: Config, each: EvalSet, base: Mapping[str, Any], tuned: Mapping[str, Any], trained_on: Sequence[str]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Returns the metrics of a set, and the lines of its hypotheses.jsonl."""
    normal = set_normalizer(config.eval, each)
    references, speakers = [clip["text"] for clip in each.clips], [clip["speaker"] for clip in each.clips]
    clean = metrics.normalized(references, normal, each.languages)
    (before, base_columns), (after, own_columns) = (
        _score_model(config, each, model, normal, clean) for model in (base, tuned)
    )
    delta, without_fallback = (
        metrics.paired_delta(references, base[texts], tuned[texts], speakers, normal, config.seed, each.languages)
        for texts in ("hypotheses", "first")
    )
    delta["without_fallback"] = without_fallback
    sides = base_columns, own_columns
    ran, runs = ([bool(set(signs) - {"silence"}) for signs in side["runaway"]] for side in sides)
    delta["runaway"], delta["runaway_ci95"], _ = metrics.share_delta(ran, runs, speakers, config.seed)
    lines = _lines(each, clean, own_columns | {f"baseline_{name}": values for name, values in base_columns.items()})
    described = [clip | line for clip, line in zip(each.clips, lines, strict=True)]
    seen = {normal(sentence) for sentence in trained_on}
    # Errors of single characters where CER is the primary metric; the `errors` of a line count those of its alignment,
    # in which a Latin word is one unit.
    (base_errors, units), (own_errors, _) = (
        metrics.clip_errors(clean, side["hypothesis_normalized"], each.languages) for side in sides
    )
    facts = {
        "set": each.name,
        "split": each.split,
        "language": each.language,
        "available": each.available,
        "limit": config.eval.limit,
        "leaks_dropped": each.leaks,
        **after,
        "baseline": before,
        "delta": delta,
        **({"languages": languages} if (languages := by_language(each, normal, *sides, config.seed)) else {}),
        "groups": error_analysis.groups(described, units, base_errors, own_errors, seen, config.seed),
    }
    return facts, lines


def _score_model(
    config: Config, each: EvalSet, model: Mapping[str, Any], normal: Normalizer, clean: Sequence[str]
) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Returns a model's metrics and its columns of hypotheses.jsonl; `clean`: normalized references."""
    languages, hypotheses = each.languages, metrics.normalized(model["hypotheses"], normal, each.languages)
    units, said = (list(map(scoring_units, texts, languages)) for texts in (clean, hypotheses))
    aligned = error_analysis.alignments(units, said)
    signs = error_analysis.runaways_of(hypotheses, clean, each.clips, model["truncated"])
    references, speakers = [clip["text"] for clip in each.clips], [clip["speaker"] for clip in each.clips]
    facts = {
        **metrics.score(references, model["hypotheses"], speakers, normal, config.seed, languages),
        **{name: value for name, value in model.items() if name not in ("hypotheses", "first", "truncated")},
        "without_fallback": metrics.score(references, model["first"], speakers, normal, config.seed, languages),
        "runaways": error_analysis.count_runaways(signs),
        **error_analysis.error_counts(aligned),
    }
    errors = [error_analysis.count_edits(chunks) for chunks in aligned]
    return facts, {
        "hypothesis": list(model["hypotheses"]), "hypothesis_normalized": hypotheses, "errors": errors,
        "runaway": signs, "without_fallback": list(model["first"]),
    }  # fmt: skip


def _lines(each: EvalSet, clean: Sequence[str], columns: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Returns the lines of hypotheses.jsonl: location, reference and columns of each clip."""
    return [
        {
            **{name: clip[name] for name in ("id", "path", "duration", "speaker")},
            **(
                {name: clip[name] for name in LOCATION_FIELDS if name in clip}
                if {"start", "offset"} & set(clip)
                else {}
            ),
            **({KEY: clip[KEY]} if KEY in clip else {}),
            "reference": clip["text"],
            "reference_normalized": clean[at],
            **{name: values[at] for name, values in columns.items()},
        }
        for at, clip in enumerate(each.clips)
    ]


def _inputs(config: Config, each: EvalSet, tuned: Path) -> dict[str, Any]:
    """Returns everything that the scores depend on."""
    fields = ("sha256", "text", "speaker")
    clips = [
        [*(clip[name] for name in fields), *(clip[name] for name in (KEY,) if name in clip)] for clip in each.clips
    ]
    return {
        "adapter_sha256": adapter_folder.fingerprint(tuned),
        "clips_sha256": sha256_text(json.dumps(clips)),
        "decoder": generate.VERSION,
        "figures": run.FIGURES,
        "asr_lora": version("asr_lora"),
        "language": each.language,
        "normalizer": str(set_normalizer(config.eval, each)),
        "decoding": to_dict(config)["decoding"],
    }


def _is_scored(config: Config, each: EvalSet, inputs: Mapping[str, Any]) -> bool:
    kept = _folder(config, each) / "metrics.json"
    return kept.is_file() and read_json(kept).get("inputs") == inputs


def _write_card(config: Config, tuned: Path) -> None:
    """Writes the model card from all sets that this adapter was scored on with the same settings."""
    trained, drawn = run.training_metrics(config.run), read_json(run.summary(config.run))
    scores, base = run.read_scores(config.run), config.model.checkpoint
    write_card(tuned, config.run, config.report.license, trained, drawn, scores, base)


def score_models(config: Config, kind: str = "models") -> tuple[Path, dict[str, Any], list[dict[str, Any]]]:
    """Scores the models of eval.models on data.source; returns the folder of the results, models.json and its lines.

    The folder is eval.out, by default one of `kind` beside the runs. Raises as `score_systems` does.
    """
    if distributed.world_size() > 1:
        raise one_process("eval.models")
    out = Path(config.eval.out).expanduser() if config.eval.out else None
    if out:
        out.mkdir(parents=True, exist_ok=True)  # fails now, not after hours of decoding
    hardware = resolve_hardware(config.hardware, config.model, config.lora, config.training.batch_size)

    def open_run(folder: Path) -> ModelConfig:
        return run.open_trained(run.recorded_config(folder, config, job_overrides())).model

    common = Common(config.model, config.decoding, hardware, config.data.language, open_run)
    facts, lines = score_systems(config.eval, config.data, common, config.seed)
    held = "" if facts["split"] == "test" else f"-{facts['split']}"
    name = f"{config.data.language}-{Path(facts['release'] or facts['source']).name.partition('.tar')[0]}{held}"
    folder = out or Path(config.runs_dir) / kind / name
    write_jsonl(folder / "hypotheses.jsonl", lines)
    write_json(folder / "models.json", facts)
    models.show_models(facts)
    return folder, facts, lines


def compare_models(config: Config) -> Path:
    """Scores the models of eval.models, and returns the folder of their table, texts and page."""
    folder, facts, lines = score_models(config)
    log(f"page: {models.write_page(folder, facts, lines)}")
    return folder


def main(config: Config) -> None:
    """Scores the run that the overrides name, with its recorded settings; or the models of eval.models."""
    if config.eval.models:
        compare_models(config)
        return
    folder = find_run(config, job_overrides())
    log(f"run: {folder}")
    evaluate(run.recorded_config(folder, config, job_overrides()))


if __name__ == "__main__":
    launch(main, several=True)
