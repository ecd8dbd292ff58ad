"""Which adapter is scored: as trained, the mean of several, or at the strength that is best on dev; nothing trains."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from asr_lora.data.preparation import split_clips
from asr_lora.evaluation import metrics
from asr_lora.evaluation.eval_sets import Set, heard, normalizer
from asr_lora.model import adapter_folder as stored
from asr_lora.model import arithmetic
from asr_lora.model.hardware import Hardware
from asr_lora.model.pretrained import language_token
from asr_lora.runs import folder as run
from asr_lora.runtime import distributed as ranks
from asr_lora.runtime.console import say
from asr_lora.runtime.errors import ChoiceError
from asr_lora.runtime.files import write_json
from asr_lora.speech.normalizer import leading

if TYPE_CHECKING:
    from asr_lora.config.compose import Config

SHOWN = (
    "clips", "wer", "wer_ci95", "cer", "cer_ci95", "empty_references", "hallucinated_words", "hallucinating",
)  # fmt: skip


def chosen(config: "Config", hardware: Hardware, others: Sequence[Set]) -> tuple[Path, float, dict[str, Any] | None]:
    """The folder of the adapter, an ordinary one beside the run's own unless it is that, and its strength.

    With `eval.strengths` the best on dev, and the curve of all of them on dev and on the `others`, which is kept in
    eval/strengths.json; else no curve.
    Raises ChoiceError for what training has not kept, or what does not scale to the untouched model.
    """
    source = ranks.first_does(lambda: _source(config))
    strength, context, curve = config.eval.strength, _context(config, source), None
    if config.eval.strengths:
        curve = _curve(config, hardware, source, others)
        strength, context = curve["best"], curve["best_context"]
    if strength == 1 and context == _context(config, source):
        return source, strength, curve
    scaled = source.with_name(f"{source.name}-strength{strength:g}")
    ranks.first_does(lambda: arithmetic.scaled(source, strength, scaled, config.model.checkpoint))
    say(f"at strength {strength:g}, heard at 30 s: {scaled}")
    return scaled, strength, curve


def _source(config: "Config") -> Path:
    """Raises ChoiceError when training kept fewer adapters than are to be averaged."""
    best, wanted = run.tuned(config.run), config.eval.average
    if wanted is None:
        return best
    kept = sorted(run.kept_adapters(config.run).glob("step-*"))[-wanted:]
    if len(kept) < wanted:
        raise ChoiceError(
            f"eval.average: training kept {len(kept)} adapters ({run.kept_adapters(config.run)}), not {wanted}; "
            "training.keep_adapters says how many of the last it keeps, one a checkpoint (training.save_steps) and one "
            "a dev decoding"
        )
    mean = best.with_name(f"{best.name}-average{wanted}")
    arithmetic.averaged(kept, mean)
    say(f"the mean of {', '.join(path.name for path in kept)}: {mean}")
    return mean


def _context(config: "Config", source: Path) -> str:
    """At which an adapter as trained is heard: short or full."""
    return "short" if stored.trained_on_short(source) and config.decoding.context == "auto" else "full"


def _curve(config: "Config", hardware: Hardware, source: Path, others: Sequence[Set]) -> dict[str, Any]:
    """Every strength's figures, and which is the best: the lowest error rate on dev.

    Of equals it is the least strength, and the shorter context. Scaled adapters are decoded at 30 s, 0 being the base
    model: at less than full strength a model knows no short context. Where the adapter as trained knows them, it is
    compared at its own too, as it would be used.
    """
    dev = ranks.first_does(lambda: split_clips(config.run, config.data, config.model, "dev", config.data.dev_clips))
    sets = [Set("dev", "dev", language_token(config.model, config.data.language), dev, len(dev)), *others]
    points = [(strength, "full") for strength in sorted(set(config.eval.strengths))]
    if _context(config, source) == "short":
        points.append((1.0, "short"))
    curve = [_point(config, hardware, source, sets, *point) for point in points]
    rate = leading(language_token(config.model, config.data.language))
    if curve[0]["sets"]["dev"][rate] is None:
        raise ChoiceError(f"eval.normalizer: {config.eval.normalizer} leaves no word of the dev references")
    best = min(curve, key=lambda point: (point["sets"]["dev"][rate], point["strength"], point["context"] != "short"))
    found = {
        "curve": curve, "best": best["strength"], "best_context": best["context"],
        "adapter_sha256": stored.digest(source), "average": config.eval.average,
        "normalizer": str(normalizer(config, sets[0])), "figures": run.FIGURES,
    }  # fmt: skip
    ranks.first_does(lambda: write_json(config.run / "eval" / "strengths.json", found))
    return found


def _point(
    config: "Config", hardware: Hardware, source: Path, sets: Sequence[Set], strength: float, context: str
) -> dict[str, Any]:
    """What is heard in every set at a strength and context, in figures."""
    with TemporaryDirectory() as scratch:
        tuned: Path | None = source
        if strength == 0:
            tuned = None
        elif (strength, context) != (1, _context(config, source)):
            tuned = Path(scratch) / "adapter"
            arithmetic.scaled(source, strength, tuned, config.model.checkpoint)
        models = heard(config, hardware, sets, tuned)
    point: dict[str, Any] = {"strength": strength, "context": context, "sets": {}}
    for each, model in zip(sets, models, strict=True):
        references, speakers = ([clip[name] for clip in each.clips] for name in ("text", "speaker"))
        facts = metrics.score(references, model["hypotheses"], speakers, normalizer(config, each), config.seed)
        point["sets"][each.name] = {"language": each.language, **{name: facts[name] for name in SHOWN}}
    return point
