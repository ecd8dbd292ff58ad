"""The model card of a scored adapter: metadata that the Hub reads, and what a person should know before using it."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from asr_lora.model.adapter_folder import is_whole
from asr_lora.model.cost import PUBLISHED, shape_of
from asr_lora.model.pretrained import is_local, load_config, resolve
from asr_lora.reporting.pages import environment
from asr_lora.reporting.tables import leading_first, normalised
from asr_lora.runs import folder as run
from asr_lora.runtime.files import write_text

if TYPE_CHECKING:
    from asr_lora.config.compose import Config

TASK = "automatic-speech-recognition"


def hub_id(checkpoint: str) -> str | None:
    """Where anyone else finds the base: a Hub id itself, or what OpenAI published under a folder's name and shape.

    None for a folder of another name, or whose sizes are not those: what is in it nobody else may have.
    """
    if not is_local(checkpoint):
        return resolve(checkpoint)[0]
    folder = Path(checkpoint).expanduser()
    named = f"openai/whisper-{folder.name.removeprefix('faster-').removeprefix('whisper-')}"
    return named if PUBLISHED.get(named) == shape_of(load_config(checkpoint).to_dict()) else None


def write_card(
    folder: Path, config: "Config", trained: Mapping[str, Any], summary: Mapping[str, Any],
    facts: Mapping[str, Mapping[str, Any]],
) -> None:  # fmt: skip
    """Writes README.md into the `folder` of an adapter, or of a whole model.

    `trained` is train/metrics.json, `summary` data/summary.json, and `facts` are the metrics of every set, the run's
    own first.
    """
    settings, published = run.settings(config.run), hub_id(config.model.checkpoint)
    base = published or Path(config.model.checkpoint).expanduser().name
    split, own = next(iter(facts.items()))
    results = [
        EvalResult(
            task_type=TASK, task_name="Speech recognition", dataset_type=summary["release"] if name == split else name,
            dataset_name=summary["release"] if name == split else name, dataset_config=scored["language"],
            dataset_split=scored["split"], metric_type=rate, metric_value=round(100 * scored[rate], 2),
            metric_name=f"{rate.upper()} (%), normalised by {normalised(scored)}",
        )
        for name, scored in facts.items()
        for rate in leading_first(scored["language"])
        if scored[rate] is not None
    ]  # fmt: skip
    whole = is_whole(folder)
    data = ModelCardData(
        # The corpus's own language, where Whisper was told another for want of a token; the Hub knows no regions.
        language=config.data.language.partition("-")[0],
        base_model=base, library_name="transformers" if whole else "peft", license=config.report.license,
        datasets=[summary["release"]], metrics=["wer", "cer"], pipeline_tag=TASK,
        tags=["whisper", "fine-tuned" if whole else "lora", "asr_lora"],
        model_name=config.run_name, eval_results=results,
    )  # fmt: skip
    text = environment(autoescape=False).get_template("card.md").render(
        base=base, published=published, split=split, own=own, facts=facts, settings=settings, trained=trained,
        summary=summary, whole=whole, merged=whole and not config.lora.whole,
        this="this model" if whole else "with this adapter",
    )  # fmt: skip
    file, card = folder / "README.md", str(ModelCard(f"---\n{data}\n---\n\n{text}"))
    if not file.is_file() or file.read_text(encoding="utf-8") != card:
        write_text(file, card)
