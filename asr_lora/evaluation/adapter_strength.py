"""Chooses the adapter that is scored: as trained, averaged, or scaled to the best strength on dev."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from asr_lora.config.schema import DataConfig, DecodingConfig, ModelConfig
from asr_lora.config.stages import EvalConfig
from asr_lora.data.preparation import split_clips
from asr_lora.evaluation import metrics
from asr_lora.evaluation.eval_sets import EvalSet, decode_sets, set_normalizer
from asr_lora.model import adapter_folder, arithmetic
from asr_lora.model.hardware import Hardware
from asr_lora.model.pretrained import language_token
from asr_lora.runs import folder
from asr_lora.runtime import distributed
from asr_lora.runtime.console import log
from asr_lora.runtime.errors import ConfigError
from asr_lora.runtime.files import write_json
from asr_lora.speech.normalizer import primary_metric

SCORES = (
    "clips", "wer", "wer_ci95", "cer", "cer_ci95", "empty_references", "hallucinated_words", "hallucination_rate",
)  # fmt: skip


@dataclass(frozen=True)
class AdapterSelector:
    """Chooses which adapter of the run in the folder `run` is scored, by the settings of `eval`."""

    run: Path
    eval: EvalConfig
    data: DataConfig
    model: ModelConfig
    decoding: DecodingConfig
    hardware: Hardware
    seed: int

    def choose(self, others: Sequence[EvalSet]) -> tuple[Path, float, dict[str, Any] | None]:
        """Returns the adapter's folder (the run's, or a new one beside it), its strength, and any curve.

        With `eval.strengths` it is the best on dev, and the curve scores all strengths on dev and on the `others`; it
        is written to eval/strengths.json.
        Raises ConfigError for adapters that training has not kept, or one that does not scale to the base model.
        """
        source = distributed.rank_zero(self._source)
        strength, context, curve = self.eval.strength, self._context(source), None
        if self.eval.strengths:
            curve = self._curve(source, others)
            strength, context = curve["best"], curve["best_context"]
        if strength == 1 and context == self._context(source):
            return source, strength, curve
        scaled = source.with_name(f"{source.name}-strength{strength:g}")
        distributed.rank_zero(lambda: arithmetic.scale_adapter(source, strength, scaled, self.model.checkpoint))
        log(f"at strength {strength:g}, decoded at 30 s: {scaled}")
        return scaled, strength, curve

    def _source(self) -> Path:
        """Returns the adapter at full strength. Raises ConfigError if fewer are kept than are to be averaged."""
        best, wanted, kept_in = folder.tuned(self.run), self.eval.average, folder.kept_adapters(self.run)
        if wanted is None:
            return best
        kept = sorted(kept_in.glob("step-*"))[-wanted:]
        if len(kept) < wanted:
            raise ConfigError(
                f"eval.average: training kept {len(kept)} adapters ({kept_in}), not {wanted}; training.keep_adapters "
                "is how many of the last it keeps, one a checkpoint (training.save_steps) and one a dev decoding"
            )
        mean = best.with_name(f"{best.name}-average{wanted}")
        arithmetic.average_adapters(kept, mean)
        log(f"the mean of {', '.join(path.name for path in kept)}: {mean}")
        return mean

    def _context(self, source: Path) -> str:
        """Returns the context at which an adapter as trained is decoded: short or full."""
        return "short" if adapter_folder.knows_short_context(source) and self.decoding.context == "auto" else "full"

    def _curve(self, source: Path, others: Sequence[EvalSet]) -> dict[str, Any]:
        """Scores every strength, and finds the best: the lowest error rate on dev.

        Of equals it is the smallest strength, and the shorter context. Scaled adapters are decoded at 30 s, 0 being the
        base model: below full strength a model does not know short contexts. An adapter that was trained on short ones
        is scored at its own context too, as it would be used.
        """
        data, language = self.data, language_token(self.model, self.data.language)
        dev = distributed.rank_zero(lambda: split_clips(self.run, data, self.model, "dev", data.dev_clips))
        sets = [EvalSet("dev", "dev", language, dev, len(dev)), *others]
        points = [(strength, "full") for strength in sorted(set(self.eval.strengths))]
        if self._context(source) == "short":
            points.append((1.0, "short"))
        curve = [self._point(source, sets, *point) for point in points]
        rate = primary_metric(language)
        if curve[0]["sets"]["dev"][rate] is None:
            raise ConfigError(f"eval.normalizer: {self.eval.normalizer} leaves no word of the dev references")
        best = min(
            curve, key=lambda point: (point["sets"]["dev"][rate], point["strength"], point["context"] != "short")
        )
        found = {
            "curve": curve, "best": best["strength"], "best_context": best["context"],
            "adapter_sha256": adapter_folder.fingerprint(source), "average": self.eval.average,
            "normalizer": str(set_normalizer(self.eval, sets[0])), "figures": folder.FIGURES,
        }  # fmt: skip
        distributed.rank_zero(lambda: write_json(self.run / "eval" / "strengths.json", found))
        return found

    def _point(self, source: Path, sets: Sequence[EvalSet], strength: float, context: str) -> dict[str, Any]:
        """Decodes and scores every set at a strength and context."""
        with TemporaryDirectory() as scratch:
            tuned: Path | None = source
            if strength == 0:
                tuned = None
            elif (strength, context) != (1, self._context(source)):
                tuned = Path(scratch) / "adapter"
                arithmetic.scale_adapter(source, strength, tuned, self.model.checkpoint)
            models = decode_sets(self.model, self.decoding, self.hardware, sets, tuned)
        point: dict[str, Any] = {"strength": strength, "context": context, "sets": {}}
        for each, model in zip(sets, models, strict=True):
            references, speakers = ([clip[name] for clip in each.clips] for name in ("text", "speaker"))
            normal, texts = set_normalizer(self.eval, each), model["hypotheses"]
            facts = metrics.score(references, texts, speakers, normal, self.seed, each.languages)
            point["sets"][each.name] = {"language": each.language, **{name: facts[name] for name in SCORES}}
        return point
