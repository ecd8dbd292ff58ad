"""The adapter: put on, saved, loaded, merged, scaled and averaged."""

import hashlib
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import WhisperForConditionalGeneration

from asr_lora.errors import ChoiceError, WorldError
from asr_lora.files import read_json, whole_folder, write_json
from asr_lora.model.dropout import Dropout

if TYPE_CHECKING:
    from asr_lora.config import LoraConfig as LoraSettings

CARD = """---
base_model: {base}
library_name: peft
pipeline_tag: automatic-speech-recognition
tags: [whisper, lora]
---
A LoRA adapter for {base}, trained with asr_lora: `peft.PeftModel.from_pretrained(whisper, this_folder)`.
"""


def attach(model: WhisperForConditionalGeneration, lora: "LoraSettings", seed: int) -> PeftModel:
    """The model with a fresh adapter on it (Hu et al. 2021), in fp32 and the only thing that trains.

    No task_type: SEQ_2_SEQ_LM would send `input_ids`, which Whisper does not take.
    Raises ChoiceError when a target module is not in the model.
    """
    names = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    if absent := [target for target in lora.target_modules if target not in names]:
        linear = sorted({n.rpartition(".")[2] for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)})
        raise ChoiceError(f"lora.target_modules: {', '.join(absent)} is not in the model; it has {', '.join(linear)}")
    if getattr(model, "is_quantized", False):
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    settings = LoraConfig(
        r=lora.r,
        lora_alpha=lora.scaling * lora.r,
        lora_dropout=lora.dropout,
        target_modules=list(lora.target_modules),
    )
    torch.manual_seed(seed)
    with _quiet():
        tuned = get_peft_model(model, settings)
    for module in tuned.modules():
        if isinstance(module, LoraLayer):
            module.lora_dropout["default"] = Dropout(lora.dropout)
    return tuned


def trainable_parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def save(model: PeftModel, folder: Path, base: str, context: str) -> None:
    """Writes the adapter into `folder` as peft itself does; `base` is the name it is told to stand on.

    Beside it asr_lora.json records the `context` that it was trained at, for whoever decodes with it.
    A local checkpoint is named by its folder alone: a path on this machine helps nobody elsewhere.
    Raises WorldError when the weights cannot be written, a full disk for one.
    """
    local = Path(base).expanduser()
    name = local.name if local.exists() else base
    model.peft_config["default"].base_model_name_or_path = name
    # "auto" would ask the Hub at every save whether the base's embeddings were resized; nothing here resizes them.
    try:
        model.save_pretrained(folder, save_embedding_layers=False)
    except SafetensorError as error:
        raise WorldError(f"run_dir: cannot write the adapter to {folder} ({error}); free some space") from error
    # peft's own card would hold the path.
    (folder / "README.md").write_text(CARD.format(base=name), encoding="utf-8")
    write_json(folder / "asr_lora.json", {"context": context})


def trained_on_short(folder: Path) -> bool:
    """Whether the adapter knows contexts of less than 30 s; one that says nothing is taken for an ordinary one."""
    record = folder / "asr_lora.json"
    return record.is_file() and read_json(record)["context"] == "dynamic"


def digest(folder: Path) -> str:
    """SHA-256 of all that decides what the adapter does: weights, configuration (which scales them) and context."""
    names = ("adapter_model.safetensors", "adapter_config.json", "asr_lora.json")
    files = (file for name in names if (file := folder / name).is_file())
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def scaled(source: Path, strength: float, target: Path) -> None:
    """Writes an ordinary peft adapter whose change to every weight is `strength` times that of `source`.

    A LoRA's change is B A, so B alone is scaled, and 0 is the untouched model. At less than full strength nobody has
    taught the model to stop at short contexts: the new adapter asks for 30 s.
    Raises ChoiceError for a kind of adapter that does not scale to the untouched model.
    """
    settings = read_json(source / "adapter_config.json")
    if settings["peft_type"] != "LORA" or settings["use_dora"] or settings["init_lora_weights"] is not True:
        raise ChoiceError(f"eval.strength: must be 1 for {source}, which is no plain LoRA ({settings['peft_type']})")
    weights = load_file(source / "adapter_model.safetensors")
    changed = {name: tensor * strength if ".lora_B." in name else tensor for name, tensor in weights.items()}
    _write(changed, source, target, {"context": "full", "strength": strength})


def averaged(sources: Sequence[Path], target: Path) -> None:
    """Writes the mean of several adapters of one run, weight by weight, as checkpoints are averaged (Izmailov 2018).

    It is the mean of the A and of the B, not of their products: along one path of training that is close, the size
    stays, and it is an ordinary peft adapter.
    """
    every = [load_file(source / "adapter_model.safetensors") for source in sources]
    mean = {name: torch.stack([weights[name] for weights in every]).mean(dim=0) for name in every[0]}
    _write(mean, sources[-1], target, {"averaged": len(sources)})


def _write(weights: dict[str, torch.Tensor], source: Path, target: Path, record: dict[str, Any]) -> None:
    """`source` with other weights; `record` goes into its asr_lora.json."""
    with whole_folder(target) as partial:
        shutil.copytree(source, partial, dirs_exist_ok=True)
        save_file(weights, partial / "adapter_model.safetensors", metadata={"format": "pt"})
        write_json(partial / "asr_lora.json", read_json(source / "asr_lora.json") | record)


def merge(base: WhisperForConditionalGeneration, folder: Path) -> WhisperForConditionalGeneration:
    """The base with the saved adapter folded into its weights; the base must be unquantised, and is used up.

    Raises ValueError for a quantised base: merging rounds the adapter away.
    """
    if getattr(base, "is_quantized", False):
        raise ValueError("base: must be fp32, fp16 or bf16 to be merged into, got a quantised one")
    with _quiet():
        return PeftModel.from_pretrained(base, folder).merge_and_unload()


@contextmanager
def _quiet() -> Iterator[None]:
    """peft 0.21 asks transformers 5.23 for a property under its old name; nobody here can mend that (2026-11)."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield
