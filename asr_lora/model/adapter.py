"""Attaches, saves, resumes, merges and switches adapters; or trains and saves the model's own weights."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import torch
from peft import PeftModel, get_peft_model, prepare_model_for_kbit_training
from peft.helpers import rescale_adapter_scale
from peft.tuners.lora import LoraLayer
from peft.utils.warning import PeftWarning
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import WhisperForConditionalGeneration

from asr_lora.model import adapter_folder, silence, whisper
from asr_lora.model.hub import is_local
from asr_lora.model.methods import TuningMethod, tuning_method
from asr_lora.model.pretrained import display_name, load_processor, resolve
from asr_lora.runtime.errors import ConfigError, ExternalError
from asr_lora.runtime.files import read_json, write_json

if TYPE_CHECKING:
    from asr_lora.config.schema import LoraConfig as LoraSettings

Tuned: TypeAlias = PeftModel | WhisperForConditionalGeneration  # the latter where the base's own weights train
HEAD = """---
base_model: {base}
library_name: {library}
pipeline_tag: automatic-speech-recognition
tags: [whisper, {kind}]
---
"""
CARD = """A LoRA adapter for {base}, trained with asr_lora: `peft.PeftModel.from_pretrained(whisper, this_folder)`.
"""
WHOLE_CARD = """{base} fine-tuned by asr_lora: `WhisperForConditionalGeneration.from_pretrained(this_folder)`.
"""
TRAINED = "trained.safetensors"  # in a checkpoint: the trained parameters, and the state of the tuning method
BASE = "__base__"  # peft's name for a row of a batch without an adapter
OF_METHOD = "method:"  # prefix of the names of that state
BITS = 16  # of randomness an element: four elements share one draw of 64


def attach(model: WhisperForConditionalGeneration, lora: "LoraSettings", seed: int, steps: int = 1) -> Tuned:
    """Makes trainable, in fp32, what the settings name: a new adapter, or weights; freezes the rest.

    `steps` of the whole run determine AdaLoRA's schedule.
    Raises ConfigError when a target module is not in the model.
    """
    names = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    if absent := [target for target in lora.target_modules or [] if target not in names]:
        linear = sorted({n.rpartition(".")[2] for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)})
        raise ConfigError(f"lora.target_modules: {', '.join(absent)} is not in the model; it has {', '.join(linear)}")
    method = tuning_method(lora, steps)
    if method.adapter is None:
        return _unfreeze(model, method)
    if getattr(model, "is_quantized", False):
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    if model.device.type == "meta" and lora.kind == "pissa":  # no weights to decompose
        method.adapter.init_lora_weights = True
    torch.manual_seed(seed)
    with quiet():
        tuned = get_peft_model(model, method.adapter)
    for module in tuned.modules():
        if isinstance(module, LoraLayer):
            module.lora_dropout["default"] = Dropout(lora.dropout or 0.0)
            if lora.kind == "pissa":  # its initial value, which is no longer in the base's weights
                for side in ("A", "B"):
                    initial = getattr(module, f"lora_{side}")["default"].weight.detach().clone()
                    module.register_buffer(f"initial_{side}", initial, persistent=False)
    return tuned


def _unfreeze(model: WhisperForConditionalGeneration, method: TuningMethod) -> WhisperForConditionalGeneration:
    """Makes only those parameters trainable, in fp32, that the method names."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(method.trains is not None and method.trains(name))
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


def trainable_parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def save(model: Tuned, folder: Path, base: str, context: str) -> None:
    """Saves the adapter to `folder` in peft's format, or the whole model in that of transformers.

    `base` is the checkpoint recorded as its base, with the revision if it is from the Hub. asr_lora.json records the
    `context` of training, which decoding needs. PiSSA is saved as an ordinary LoRA of twice the rank. A local
    checkpoint is named by its folder only: a path on this machine is of no use elsewhere.
    Raises ExternalError when the weights cannot be written, for example on a full disk.
    """
    name, (_, revision) = display_name(base), resolve(base)
    with _write_errors(folder):
        if isinstance(model, PeftModel):
            library, kind, card = "peft", "lora", CARD
            model.peft_config["default"].base_model_name_or_path = name
            model.peft_config["default"].revision = None if is_local(base) else revision
            # "auto" would ask the Hub at every save whether the base's embeddings were resized; nothing resizes them.
            with quiet():
                model.save_pretrained(folder, save_embedding_layers=False)
            _untie_from_base(model, folder)
        else:
            library, kind, card = "transformers", "fine-tuned", WHOLE_CARD
            _save_whole(model, folder, base)
    write_card(folder, name, library, kind, card)
    write_json(folder / "asr_lora.json", {"context": context})


def write_card(folder: Path, base: str, library: str, kind: str, card: str) -> None:
    """Writes a short model card, used until the model is scored; peft's own would contain a path."""
    text = (HEAD + card).format(base=base, library=library, kind=kind)
    (folder / "README.md").write_text(text, encoding="utf-8")


def _save_whole(model: WhisperForConditionalGeneration, folder: Path, base: str) -> None:
    """Saves the model with tokenizer, feature extractor and the silence of its training."""
    model.save_pretrained(folder)
    load_processor(base).save_pretrained(folder)
    silence.save(model, folder)


def _untie_from_base(model: PeftModel, folder: Path) -> None:
    """Makes a saved PiSSA apply to the published base: its change is B A minus the initial B0 A0.

    That is the product of [B, -B0] and [A; A0], an ordinary LoRA of rank 2r (Meng et al. 2024).
    """
    initial = {
        f"{name}.lora_{side}.weight": getattr(module, f"initial_{side}")
        for name, module in model.named_modules()
        for side in ("A", "B")
        if hasattr(module, f"initial_{side}")
    }
    if not initial:
        return
    weights = load_file(folder / adapter_folder.WEIGHTS[0])
    for name, start in initial.items():
        sign, dim = (1, 0) if ".lora_A." in name else (-1, 1)
        weights[name] = torch.cat((weights[name], sign * start.to(weights[name])), dim)
    save_file(weights, folder / adapter_folder.WEIGHTS[0], metadata={"format": "pt"})
    settings = read_json(folder / "adapter_config.json")
    doubled = {"r": 2 * settings["r"], "lora_alpha": 2 * settings["lora_alpha"], "init_lora_weights": True}
    write_json(folder / "adapter_config.json", settings | doubled)


def save_training(model: torch.nn.Module, method: TuningMethod, folder: Path) -> None:
    """Saves the trained parameters and the method's state for a checkpoint. Raises as `save` does."""
    trained = {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}
    state = method.state(model) if method.state else {}
    folder.mkdir(parents=True, exist_ok=True)
    with _write_errors(folder):
        both = trained | {f"{OF_METHOD}{name}": tensor for name, tensor in state.items()}
        save_file({name: tensor.contiguous() for name, tensor in both.items()}, folder / TRAINED)


def resume_training(model: torch.nn.Module, method: TuningMethod, folder: Path) -> None:
    """Loads what `save_training` wrote into a model built from the same settings."""
    device = next(model.parameters()).device
    saved = load_file(folder / TRAINED, device=str(device))
    state = {name.removeprefix(OF_METHOD): saved.pop(name) for name in list(saved) if name.startswith(OF_METHOD)}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(saved[name])
    if method.restore:
        method.restore(model, state)


@contextmanager
def _write_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except SafetensorError as error:
        raise ExternalError(f"run_dir: cannot write weights to {folder} ({error}); free some space") from error


def load(checkpoint: str, folder: Path, precision: str, device: torch.device) -> WhisperForConditionalGeneration:
    """Loads the fine-tuned model, unquantized: the folder's, or the checkpoint with the adapter merged in."""
    if adapter_folder.is_whole(folder):
        return whisper.load(str(folder), precision, device)
    return merge(whisper.load(checkpoint, precision, device), folder)


def merge(base: WhisperForConditionalGeneration, folder: Path) -> WhisperForConditionalGeneration:
    """Merges the saved adapter into an unquantized base; `base` must not be used afterwards.

    Raises ValueError for a quantized base: merging rounds the adapter away; ExternalError for a damaged folder.
    """
    if getattr(base, "is_quantized", False):
        raise ValueError("base: must be fp32, fp16 or bf16 to be merged into, got a quantized one")
    adapter_folder.read_settings(folder)
    adapter_folder.read_weights(folder)  # peft would look on the Hub for missing weights
    with quiet(), adapter_folder.reading(folder):
        return PeftModel.from_pretrained(base, folder).merge_and_unload()


def load_adapters(base: WhisperForConditionalGeneration, folders: Mapping[str, Path]) -> PeftModel:
    """Loads every adapter under its name onto one base, unmerged; `active_adapter` chooses one.

    `base` must not be used afterwards.
    """
    for folder in folders.values():
        adapter_folder.read_settings(folder)
        adapter_folder.read_weights(folder)
    with quiet():
        (first, folder), *rest = folders.items()
        with adapter_folder.reading(folder):
            model = PeftModel.from_pretrained(base, folder, adapter_name=first)
        for name, folder in rest:
            with adapter_folder.reading(folder):
                model.load_adapter(folder, adapter_name=name)
    return model.eval()


@contextmanager
def active_adapter(model: PeftModel, name: str | None, strength: float = 1.0) -> Iterator[None]:
    """Activates only that adapter, scaled by `strength`; None disables all.

    A strength other than 1 needs an adapter that is `adapter_folder.is_scalable`.
    """
    if name is None:
        with model.disable_adapter():
            yield
        return
    model.set_adapter(name)
    with rescale_adapter_scale(model, strength) if strength != 1 else nullcontext():
        yield


@contextmanager
def quiet() -> Iterator[None]:
    """Suppresses three warnings of peft 0.21 that cannot be fixed here (2026-11).

    It reads a property of transformers 5.23 by its old name, mistakes AdaLoRA's rank pattern, which it does follow, for
    one of LoRA's, and takes a matrix that AdaLoRA left without rank for a damaged one.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        warnings.filterwarnings("ignore", r"Adapter 'default': \d+ LoRA tensor\(s\) have invalid shape", PeftWarning)
        warnings.filterwarnings("ignore", "The following rank_pattern keys did not match", RuntimeWarning)
        yield


class Dropout(torch.nn.Dropout):
    """torch.nn.Dropout (Srivastava et al. 2014), on a CPU with its own mask, in half the time.

    On a CPU p is rounded to a multiple of 2^-16. Drawn from torch's default generator, as the original.
    """

    def forward(self, values: Tensor) -> Tensor:
        """Sets each element to 0 with probability p, else divides by 1 - p, so that the mean stays; any shape."""
        if not self.training or self.p == 0 or values.device.type != "cpu":
            return super().forward(values)
        draws = torch.empty(-(-values.numel() * BITS // 64), dtype=torch.int64).random_(-(2**63), None)
        numbers = draws.view(torch.int16)[: values.numel()].view(values.shape)  # uniform over -2^15 .. 2^15 - 1
        kept = numbers >= round(self.p * 2**BITS) - 2 ** (BITS - 1)
        mask: Tensor = kept * (1 / (1 - self.p))
        return values * mask.to(values.dtype)
