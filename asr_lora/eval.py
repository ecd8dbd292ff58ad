"""Scores a run, untouched against tuned:  python -m asr_lora.eval [run_dir=runs/...] [eval.limit=null]

Without words it scores the run that runs/last names; other words name the run as they did for train. Both models
decode the same clips with the same settings, unquantised, on the run's own split and on all of eval.sets. Leaves
eval/<set>/{hypotheses.jsonl,metrics.json}; with eval.strengths=[...] eval/strengths.json too.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hydra.core.hydra_config import HydraConfig

from asr_lora import decode, findings, metrics, run, tables
from asr_lora.card import write_card
from asr_lora.config import Config, plain
from asr_lora.errors import ChoiceError, RegressionError
from asr_lora.files import read_json, read_jsonl, write_json, write_jsonl
from asr_lora.hardware import Hardware, look
from asr_lora.hearing import heard, precision
from asr_lora.launch import launch, named_run
from asr_lora.manifest import PLACE
from asr_lora.model import adapter
from asr_lora.prepare import clips, language
from asr_lora.progress import say
from asr_lora.sets import Set, evaluated
from asr_lora.text import Normalizer, leading


def evaluate(config: Config) -> dict[str, Any]:
    """Writes and shows the metrics of every set, and returns those of `eval.split`.

    What was scored the same way before is shown again. Raises ChoiceError when the run has no adapter, and
    RegressionError, once all is written, when fine-tuning cost more on a set than `eval.max_regression`.
    """
    if not run.adapter(config.run).is_dir():
        raise ChoiceError(f"run_dir: no adapter in {config.run}/train; the same words with asr_lora.train finish it")
    hardware, sets = look(config), evaluated(config)
    strength = _best_strength(config, hardware, sets[1:]) if config.eval.strengths else config.eval.strength
    tuned = _adapter(config, strength)
    asked = {each.name: _asked(config, each, tuned) for each in sets}
    if missing := [each for each in sets if not _is_scored(config, each, asked[each.name])]:
        _score(config, hardware, missing, tuned, asked, strength)
    else:
        say(f"already evaluated: {config.run / 'eval'}")
    facts = {each.name: read_json(_folder(config, each) / "metrics.json") for each in sets}
    if config.eval.split == "test":  # a card tells nothing of the clips that chose the adapter
        _write_card(config, tuned)
    tables.show_run(config.run_name, facts)
    _refuse_regressions(config, facts)
    return facts[config.eval.split]


def _folder(config: Config, each: Set) -> Path:
    return config.run / "eval" / each.name


def _normalizer(config: Config, each: Set) -> Normalizer:
    return Normalizer(config.eval.normalizer, each.language, config.eval.numbers)


# ---- scores ----


def _score(
    config: Config, hardware: Hardware, sets: Sequence[Set], tuned: Path, asked: Mapping[str, Mapping[str, Any]],
    strength: float,
) -> None:  # fmt: skip
    """Decodes and writes."""
    named = ", ".join(f"{each.name} ({len(each.clips)} clips)" for each in sets)
    say(f"{config.run_name}: {named}, untouched and tuned, on {hardware.name}")
    before, after = heard(config, hardware, sets, None), heard(config, hardware, sets, tuned)
    trained_on = [row["text"] for row in read_jsonl(run.manifest(config.run, "train"))]
    for each, untouched, own in zip(sets, before, after, strict=True):
        facts, lines = _scored(config, each, untouched, own, trained_on)
        facts |= {
            "strength": strength, "average": config.eval.average, "precision": precision(hardware),
            "versions": run.versions(), "asked": asked[each.name],
        }  # fmt: skip
        folder = _folder(config, each)
        (folder / "metrics.json").unlink(missing_ok=True)  # or an interruption here would leave it beside other lines
        write_jsonl(folder / "hypotheses.jsonl", lines)
        write_json(folder / "metrics.json", facts)
        say(f"hypotheses and metrics: {folder}")


def _scored(
    config: Config, each: Set, untouched: Mapping[str, Any], tuned: Mapping[str, Any], trained_on: Sequence[str]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The metrics of a set, and the lines of its hypotheses.jsonl."""
    normal, rate = _normalizer(config, each), leading(each.language)
    references, speakers = [clip["text"] for clip in each.clips], [clip["speaker"] for clip in each.clips]
    clean = [normal(reference) for reference in references]
    words = [len(reference.split()) for reference in clean]

    def judged(model: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, list[Any]]]:
        """What the metrics say of a model, and the columns that it has in hypotheses.jsonl."""
        said = [normal(text) for text in model["hypotheses"]]
        aligned = findings.alignments(clean, said)
        signs = [
            findings.runaway(text, reference, clip["duration"], cut)
            for text, reference, clip, cut in zip(said, clean, each.clips, model["cut"], strict=True)
        ]
        facts = {
            **metrics.score(references, model["hypotheses"], speakers, normal, config.seed),
            **{name: value for name, value in model.items() if name not in ("hypotheses", "cut")},
            "runaways": findings.runaways(signs),
            "confusions": findings.confusions([chunks for chunks, count in zip(aligned, words, strict=True) if count]),
        }
        wrong = [findings.errors(chunks) for chunks in aligned]
        return facts, {
            "hypothesis": list(model["hypotheses"]), "hypothesis_normalized": said, "errors": wrong, "runaway": signs,
        }  # fmt: skip

    (before, base), (after, own) = judged(untouched), judged(tuned)
    columns = own | {f"baseline_{name}": values for name, values in base.items()}
    lines = [
        {
            **{name: clip[name] for name in ("id", "path", "duration", "speaker")},
            **({name: clip[name] for name in PLACE if name in clip} if {"start", "offset"} & set(clip) else {}),
            "reference": clip["text"],
            "reference_normalized": clean[at],
            **{name: values[at] for name, values in columns.items()},
        }
        for at, clip in enumerate(each.clips)
    ]
    described = [clip | line for clip, line in zip(each.clips, lines, strict=True)]
    seen = {normal(sentence) for sentence in trained_on}
    # In the units of the rate that leads; `errors` of a line are always words.
    (base_errors, units), (own_errors, _) = (
        metrics.clip_errors(clean, side["hypothesis_normalized"], rate) for side in (base, own)
    )
    facts = {
        "set": each.name,
        "split": each.split,
        "language": each.language,
        "available": each.available,
        "leaks_dropped": each.leaks,
        **after,
        "baseline": before,
        "delta": metrics.paired_delta(
            references, untouched["hypotheses"], tuned["hypotheses"], speakers, normal, config.seed
        ),
        "groups": findings.groups(described, units, base_errors, own_errors, seen, config.seed),
    }
    return facts, lines


def _asked(config: Config, each: Set, tuned: Path) -> dict[str, Any]:
    """What the result depends on."""
    said = [[clip[name] for name in ("sha256", "text", "speaker")] for clip in each.clips]
    return {
        "adapter_sha256": adapter.digest(tuned),
        "clips_sha256": hashlib.sha256(json.dumps(said).encode()).hexdigest(),
        "decoder": decode.VERSION,
        "asr_lora": version("asr_lora"),  # another one may write other figures, from the same hypotheses
        "language": each.language,
        "normalizer": str(_normalizer(config, each)),
        "decoding": plain(config)["decoding"],
    }


def _is_scored(config: Config, each: Set, asked: Mapping[str, Any]) -> bool:
    kept = _folder(config, each) / "metrics.json"
    return kept.is_file() and read_json(kept)["asked"] == asked


def _write_card(config: Config, tuned: Path) -> None:
    """From every set that this adapter was scored on in the same way, now or before."""
    base = read_json(tuned / "adapter_config.json")["base_model_name_or_path"]
    trained, drawn = read_json(run.train_metrics(config.run)), read_json(run.summary(config.run))
    write_card(tuned, base, config, trained, drawn, run.scored(config.run))


# ---- the adapter that is scored ----


def _adapter(config: Config, strength: float) -> Path:
    """The run's adapter, or what `eval.average` and a strength make of it: an ordinary one, beside it."""
    source = _source(config)
    if strength == 1:
        return source
    scaled = source.with_name(f"{source.name}-strength{strength:g}")
    adapter.scaled(source, strength, scaled)
    say(f"at strength {strength:g}: {scaled}")
    return scaled


def _source(config: Config) -> Path:
    """Raises ChoiceError when training kept fewer adapters than are to be averaged."""
    best, wanted = run.adapter(config.run), config.eval.average
    if wanted is None:
        return best
    kept = sorted(run.kept_adapters(config.run).glob("step-*"))[-wanted:]
    if len(kept) < wanted:
        raise ChoiceError(
            f"eval.average: training kept {len(kept)} adapters ({run.kept_adapters(config.run)}), not {wanted}; "
            "training.keep_adapters says how many it keeps, one every training.save_steps"
        )
    mean = best.with_name(f"{best.name}-average{wanted}")
    adapter.averaged(kept, mean)
    say(f"the mean of {', '.join(path.name for path in kept)}: {mean}")
    return mean


def _best_strength(config: Config, hardware: Hardware, others: Sequence[Set]) -> float:
    """The strength of the lowest error rate on dev (of equals the least), after a table of all over every set.

    All are heard at 30 s, 0 being the untouched model: at less than full strength a model knows no short context.
    """
    source, dev = _source(config), clips(config, "dev", config.data.dev_clips)
    sets, curve = [Set("dev", "dev", language(config), dev, len(dev)), *others], []
    for strength in sorted(set(config.eval.strengths)):
        point: dict[str, Any] = {"strength": strength, "sets": {}}
        with TemporaryDirectory() as scratch:
            tuned = Path(scratch) / "adapter" if strength else None
            if tuned:
                adapter.scaled(source, strength, tuned)
            models = heard(config, hardware, sets, tuned)
        for each, model in zip(sets, models, strict=True):
            normal = _normalizer(config, each)
            references, speakers = [clip["text"] for clip in each.clips], [clip["speaker"] for clip in each.clips]
            facts = metrics.score(references, model["hypotheses"], speakers, normal, config.seed)
            shown = ("clips", "wer", "wer_ci95", "cer", "cer_ci95", "hallucinated_words")
            point["sets"][each.name] = {"language": each.language, **{name: facts[name] for name in shown}}
        curve.append(point)
    rate = leading(language(config))
    if curve[0]["sets"]["dev"][rate] is None:
        raise ChoiceError(f"eval.normalizer: {config.eval.normalizer} leaves no word of the dev references")
    best: float = min(curve, key=lambda point: point["sets"]["dev"][rate])["strength"]
    found = {
        "curve": curve, "best": best, "adapter_sha256": adapter.digest(source), "average": config.eval.average,
        "normalizer": str(_normalizer(config, sets[0])),
    }  # fmt: skip
    write_json(config.run / "eval" / "strengths.json", found)
    tables.show_strengths(curve, best)
    return best


# ---- the gate ----


def _refuse_regressions(config: Config, facts: Mapping[str, Mapping[str, Any]]) -> None:
    limit = config.eval.max_regression
    if limit is None:
        return
    rates = {name: leading(scored["language"]) for name, scored in facts.items()}
    verdicts = {name: metrics.verdict(scored["delta"], rates[name], limit) for name, scored in facts.items()}
    failing = ["exceeded", "undecided"] if config.eval.strict else ["exceeded"]
    told = {name: tables.difference(facts[name]["delta"], rates[name]) for name in facts}
    for name, verdict in verdicts.items():
        say(f"eval.max_regression={limit:g}, {name}: {verdict}, {told[name]}")
    if failed := [f"{name} ({verdict}, {told[name]})" for name, verdict in verdicts.items() if verdict in failing]:
        raise RegressionError(
            f"eval.max_regression: must be at most {limit * 100:g} points on every set, got {'; '.join(failed)}; turn "
            "the adapter down (eval.strengths=[0.25,0.5,0.75,1]), train on more kinds of speech, or score more clips"
        )


def main(config: Config) -> None:
    """Scores the run that the words mean, with its own settings."""
    folder = named_run(config)
    say(f"run: {folder}")
    evaluate(run.as_recorded(folder, config, list(HydraConfig.get().overrides.task)))


if __name__ == "__main__":
    launch(main)
