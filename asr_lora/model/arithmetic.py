"""Scales, averages and combines adapters (or whole models) without training."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import WhisperForConditionalGeneration

from asr_lora.model import adapter, adapter_folder, whisper
from asr_lora.runtime.errors import ConfigError, ExternalError
from asr_lora.runtime.files import atomic_folder, write_json

COMBINED = "combined"  # the name of the result among the loaded adapters


def scale_adapter(source: Path, strength: float, target: Path, checkpoint: str) -> None:
    """Writes `source` to `target` with `strength` times its change to the weights of the `checkpoint`.

    A LoRA's change is B A, so only B is scaled, and 0 is the base model; a whole model is interpolated with the
    checkpoint (Wortsman et al. 2022). A scaled model was never trained to stop at short contexts: it is recorded for
    30 s.
    Raises ConfigError for a kind of adapter that does not scale to the base model.
    """
    weights = adapter_folder.read_weights(source)
    if adapter_folder.is_whole(source):
        base = whisper.load(checkpoint, "fp32", torch.device("cpu")).state_dict()
        changed = {name: base[name].lerp(tensor.float(), strength) for name, tensor in weights.items()}
    else:
        _plain(source, "eval.strength: must be 1 except for a plain LoRA, got")
        changed = {name: tensor * strength if ".lora_B." in name else tensor for name, tensor in weights.items()}
    _write(changed, source, target, {"context": "full", "strength": strength})


def average_adapters(sources: Sequence[Path], target: Path) -> None:
    """Writes the mean of several adapters of one run, as checkpoints are averaged (Izmailov 2018).

    Averages A and B, not their products: along one training run that is close, the size stays, and the result is an
    ordinary peft adapter. Whole models are averaged too.
    Raises ExternalError for adapters of different shapes.
    """
    every = [adapter_folder.read_weights(source) for source in sources]
    for source, weights in zip(sources, every, strict=True):
        if _shapes(weights) != _shapes(every[0]):
            raise ExternalError(
                f"{source}: holds other weights than {sources[0]}, so they have no mean; {adapter_folder.AGAIN}"
            )
    mean = {name: torch.stack([weights[name] for weights in every]).mean(dim=0) for name in every[0]}
    _write(mean, sources[-1], target, {"averaged": len(sources)})


def _shapes(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in weights.items()}


def _write(weights: dict[str, torch.Tensor], source: Path, target: Path, record: dict[str, Any]) -> None:
    """Writes `source` to `target` with other weights; adds `record` to its asr_lora.json."""
    with atomic_folder(target) as partial:
        shutil.copytree(source, partial, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*adapter_folder.WEIGHTS))
        save_file(weights, partial / adapter_folder.weights_file(source).name, metadata={"format": "pt"})
        write_json(partial / "asr_lora.json", adapter_folder.read_metadata(source) | record)


def combine_adapters(
    folders: Mapping[str, Path], shares: Sequence[float], method: str, target: Path,
    base: WhisperForConditionalGeneration, context: str = "full",
) -> None:  # fmt: skip
    """Writes one adapter whose change to each weight is the sum of those of `folders` times their shares.

    `method` is cat, the exact sum, whose rank is the sum of ranks, or svd, its best approximation of the largest rank
    (peft's add_weighted_adapter). It is recorded for `context`: 30 s, since a sum of tasks was never trained to stop at
    short ones. `base` must not be used afterwards.
    Raises ConfigError for an adapter that is not a plain LoRA.
    """
    every = {name: _plain(folder, f"adapters.{name}: must be a plain LoRA, got") for name, folder in folders.items()}
    # Not by the names of the runs: torch allows no dots in a module's.
    parts = {f"part{number}": folder for number, folder in enumerate(folders.values())}
    model = adapter.load_adapters(base, parts)
    for name in parts:  # their scalings are applied by now; the sum has the ordinary one, which is then 1
        model.peft_config[name].use_rslora = False
    largest = max(each["r"] for each in every.values())
    with adapter.quiet():
        model.add_weighted_adapter(list(parts), list(shares), COMBINED, combination_type=method, svd_rank=largest)
        with atomic_folder(target) as partial:
            model.save_pretrained(partial, selected_adapters=[COMBINED], save_embedding_layers=False)
            for file in (partial / COMBINED).iterdir():
                file.replace(partial / file.name)
            (partial / COMBINED).rmdir()
            first = next(iter(every.values()))
            of_base = {name: first.get(name) for name in ("base_model_name_or_path", "revision")}
            write_json(partial / "adapter_config.json", adapter_folder.read_settings(partial) | of_base)
            adapter.write_card(partial, str(first["base_model_name_or_path"]), "peft", "lora", adapter.CARD)
            combined = dict(zip(folders, shares, strict=True))
            write_json(partial / "asr_lora.json", {"context": context, "combined": combined, "way": method})


def _plain(folder: Path, refused: str) -> dict[str, Any]:
    """Returns settings of a plain LoRA. Raises ConfigError, beginning with `refused`, for another adapter."""
    settings = adapter_folder.read_settings(folder)
    if not adapter_folder.is_scalable(folder):
        raise ConfigError(f"{refused} {folder}, which is none ({settings['peft_type']})")
    return settings
