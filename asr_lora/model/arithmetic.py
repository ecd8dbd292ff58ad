"""Adapters made of adapters, and models of models, without training: scaled, averaged, combined."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import WhisperForConditionalGeneration

from asr_lora.model import adapter, whisper
from asr_lora.model import adapter_folder as stored
from asr_lora.runtime.errors import ConfigError, ExternalError
from asr_lora.runtime.files import atomic_folder, write_json

COMBINED = "combined"  # among the adapters that it is made of


def scale_adapter(source: Path, strength: float, target: Path, checkpoint: str) -> None:
    """Writes `source` with `strength` times its change to every weight of the `checkpoint`: of its kind, and ordinary.

    A LoRA's change is B A, so B alone is scaled, and 0 is the untouched model; a whole model is drawn towards the
    checkpoint (Wortsman et al. 2022). At less than full strength nobody has taught the model to stop at short contexts:
    the new one asks for 30 s.
    Raises ChoiceError for a kind of adapter that does not scale to the untouched model.
    """
    weights = stored.read_weights(source)
    if stored.is_whole(source):
        base = whisper.load(checkpoint, "fp32", torch.device("cpu")).state_dict()
        changed = {name: base[name].lerp(tensor.float(), strength) for name, tensor in weights.items()}
    else:
        _plain(source, "eval.strength: must be 1 but for a plain LoRA, got")
        changed = {name: tensor * strength if ".lora_B." in name else tensor for name, tensor in weights.items()}
    _write(changed, source, target, {"context": "full", "strength": strength})


def average_adapters(sources: Sequence[Path], target: Path) -> None:
    """Writes the mean of several adapters of one run, weight by weight, as checkpoints are averaged (Izmailov 2018).

    It is the mean of the A and of the B, not of their products: along one path of training that is close, the size
    stays, and it is an ordinary peft adapter. Of whole models it is the mean of the models.
    """
    every = [stored.read_weights(source) for source in sources]
    for source, weights in zip(sources, every, strict=True):
        if _shapes(weights) != _shapes(every[0]):
            raise ExternalError(
                f"{source}: holds other weights than {sources[0]}, so they have no mean; {stored.AGAIN}"
            )
    mean = {name: torch.stack([weights[name] for weights in every]).mean(dim=0) for name in every[0]}
    _write(mean, sources[-1], target, {"averaged": len(sources)})


def _shapes(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in weights.items()}


def _write(weights: dict[str, torch.Tensor], source: Path, target: Path, record: dict[str, Any]) -> None:
    """`source` with other weights; `record` goes into its asr_lora.json."""
    with atomic_folder(target) as partial:
        shutil.copytree(source, partial, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*stored.WEIGHTS))
        save_file(weights, partial / stored.weights_file(source).name, metadata={"format": "pt"})
        write_json(partial / "asr_lora.json", stored.read_metadata(source) | record)


def combine_adapters(
    folders: Mapping[str, Path], shares: Sequence[float], way: str, target: Path, base: WhisperForConditionalGeneration
) -> None:
    """Writes one ordinary adapter whose change to every weight is the sum of those of `folders`, each by its share.

    `way` is cat, exactly that, of as many ranks as they have together, or svd, what comes closest to it with as many as
    the largest has (peft's add_weighted_adapter). Nobody has taught it to stop at short contexts: it asks for 30 s.
    Uses the base up. Raises ChoiceError for an adapter that is no plain LoRA.
    """
    every = {name: _plain(folder, f"adapters.{name}: must be a plain LoRA, got") for name, folder in folders.items()}
    # Not by the names of the runs: torch takes no dots in a module's.
    at_hand = {f"part{number}": folder for number, folder in enumerate(folders.values())}
    model = adapter.load_adapters(base, at_hand)
    for name in at_hand:  # their scalings are counted by now; the sum has the ordinary one, which is then 1
        model.peft_config[name].use_rslora = False
    largest = max(each["r"] for each in every.values())
    with adapter.quiet():
        model.add_weighted_adapter(list(at_hand), list(shares), COMBINED, combination_type=way, svd_rank=largest)
        with atomic_folder(target) as partial:
            model.save_pretrained(partial, selected_adapters=[COMBINED], save_embedding_layers=False)
            for file in (partial / COMBINED).iterdir():
                file.replace(partial / file.name)
            (partial / COMBINED).rmdir()
            first = next(iter(every.values()))
            of_base = {name: first.get(name) for name in ("base_model_name_or_path", "revision")}
            write_json(partial / "adapter_config.json", stored.read_settings(partial) | of_base)
            adapter.write_card(partial, str(first["base_model_name_or_path"]), "peft", "lora", adapter.CARD)
            made_of = dict(zip(folders, shares, strict=True))
            write_json(partial / "asr_lora.json", {"context": "full", "combined": made_of, "way": way})


def _plain(folder: Path, refused: str) -> dict[str, Any]:
    """The settings of an adapter that adds B A and nothing else. Raises ChoiceError, beginning with `refused`."""
    settings = stored.read_settings(folder)
    if not stored.is_scalable(folder):
        raise ConfigError(f"{refused} {folder}, which is none ({settings['peft_type']})")
    return settings
