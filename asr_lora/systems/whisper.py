"""Systems that our own decoding runs: Whisper checkpoints, runs, and adapters of anyone's."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from asr_lora.config.schema import ModelConfig
from asr_lora.data.manifest import training_clips
from asr_lora.evaluation.eval_sets import EvalSet, decode_sets
from asr_lora.model import adapter_folder
from asr_lora.model.pretrained import language_token
from asr_lora.runs import folder as run
from asr_lora.runtime.errors import ConfigError, ExternalError
from asr_lora.systems.system import Common, System, size_of

TAKEN = ("hypotheses", "seconds", "rtfx", "peak_memory_bytes")


def checkpoint(name: str, source: str, common: Common) -> System:
    """Returns the system of a Whisper on the Hub or on this machine."""
    place = Path(source).expanduser()
    base = replace(common.model, checkpoint=source)
    return _system(name, "Whisper", base, None, common, size_of(place) if place.exists() else None)


def of_run(name: str, folder: Path, common: Common) -> System:
    """Returns the system of a run's fine-tuned model. Raises ConfigError for a run that is not trained."""
    base, tuned = common.open_run(folder), run.tuned(folder)
    trained_on = frozenset(clip["sha256"] for clip in training_clips(folder))
    return replace(_system(name, "run", base, tuned, common, size_of(tuned)), trained_on=trained_on)


def of_adapter(name: str, folder: Path, base: str | None, common: Common) -> System:
    """Returns the system of an adapter that peft saved, on `base`, or else the base that its settings name.

    Raises ExternalError where that base is not to be had.
    """
    named = str(base or adapter_folder.read_settings(folder).get("base_model_name_or_path") or "no base model")
    try:
        return _system(name, "adapter", replace(common.model, checkpoint=named), folder, common, size_of(folder))
    except (ConfigError, ExternalError) as error:
        raise ExternalError(
            f"eval.models: the adapter in {folder} is for {named}, which is not on this machine, nor does the Hub give "
            f"it ({error}); name its base in that item, base: /path/to/whisper-..."
        ) from error


def _system(name: str, kind: str, base: ModelConfig, tuned: Path | None, common: Common, size: int | None) -> System:
    token = language_token(base, common.locale)
    decoding, hardware = common.decoding, common.hardware

    def transcribe(each: EvalSet) -> dict[str, Any]:
        (found,) = decode_sets(base, decoding, hardware, [replace(each, language=token)], tuned)
        return {key: found[key] for key in TAKEN if key in found}

    beams = f"{decoding.num_beams} beams" if decoding.num_beams > 1 else "greedy"
    how = f"asr_lora, {beams}{', fallback' if decoding.fallback else ''}, {hardware.merged_precision}"
    return System(name, kind, how, size, transcribe)
