"""The model card of a scored adapter: metadata that the Hub reads, and what a person should know before using it."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from asr_lora import run
from asr_lora.files import write_text
from asr_lora.page import environment

if TYPE_CHECKING:
    from asr_lora.config import Config

TASK = "automatic-speech-recognition"


def write_card(
    folder: Path, base: str, config: "Config", trained: Mapping[str, Any], summary: Mapping[str, Any],
    facts: Mapping[str, Mapping[str, Any]],
) -> None:  # fmt: skip
    """Writes README.md into an adapter's `folder`.

    `base` is the name that the adapter is told to stand on, `trained` is train/metrics.json, `summary`
    data/summary.json, and `facts` are the metrics of every set, the run's own first.
    """
    settings = run.settings(config.run)
    split, own = next(iter(facts.items()))
    results = [
        EvalResult(
            task_type=TASK, task_name="Speech recognition", dataset_type=summary["release"] if name == split else name,
            dataset_name=summary["release"] if name == split else name, dataset_config=scored["language"],
            dataset_split=scored["split"], metric_type=rate, metric_value=round(100 * scored[rate], 2),
            metric_name=f"{rate.upper()} (%), normalised by {scored['normalizer']} {scored['normalizer_version']}",
        )
        for name, scored in facts.items()
        for rate in ("wer", "cer")
        if scored[rate] is not None
    ]  # fmt: skip
    data = ModelCardData(
        # The corpus's own language, where Whisper was told another for want of a token; the Hub knows no regions.
        language=config.data.language.partition("-")[0],
        base_model=base, library_name="peft", license=config.report.license,
        datasets=[summary["release"]], metrics=["wer", "cer"], pipeline_tag=TASK, tags=["whisper", "lora", "asr_lora"],
        model_name=folder.parent.parent.name, eval_results=results,
    )  # fmt: skip
    text = environment(autoescape=False).get_template("card.md").render(
        base=base, split=split, own=own, facts=facts, settings=settings, trained=trained, summary=summary,
    )  # fmt: skip
    file, card = folder / "README.md", str(ModelCard(f"---\n{data}\n---\n\n{text}"))
    if not file.is_file() or file.read_text(encoding="utf-8") != card:
        write_text(file, card)
