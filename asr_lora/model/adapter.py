"""What is learnt, an adapter or the model's own weights: put on, saved, resumed, merged and swapped."""

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

from asr_lora.model import adapter_folder as stored
from asr_lora.model import whisper
from asr_lora.model.methods import TuningMethod, tuning_method
from asr_lora.model.pretrained import display_name, is_local, load_processor, resolve
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
WHOLE_CARD = """{base} as tuned by asr_lora: `WhisperForConditionalGeneration.from_pretrained(this_folder)`.
"""
TRAINED = "trained.safetensors"  # of a checkpoint: what trains, as it is, and what the method remembers
BASE = "__base__"  # peft's name for a row of a batch that wears no adapter
OF_METHOD = "method:"  # before its names there
BITS = 16  # of randomness for an element: four elements share one draw of 64


def attach(model: WhisperForConditionalGeneration, lora: "LoraSettings", seed: int, steps: int = 1) -> Tuned:
    """The model with what the settings have learn, in fp32 and the only thing that trains: a fresh adapter, or weights.

    `steps` of the whole run is what AdaLoRA's schedule follows.
    Raises ChoiceError when a target module is not in the model.
    """
    names = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    if absent := [target for target in lora.target_modules or [] if target not in names]:
        linear = sorted({n.rpartition(".")[2] for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)})
        raise ConfigError(f"lora.target_modules: {', '.join(absent)} is not in the model; it has {', '.join(linear)}")
    way = tuning_method(lora, steps)
    if way.adapter is None:
        return _own_weights(model, way)
    if getattr(model, "is_quantized", False):
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    if model.device.type == "meta" and lora.kind == "pissa":  # nothing there to take singular parts of
        way.adapter.init_lora_weights = True
    torch.manual_seed(seed)
    with quiet():
        tuned = get_peft_model(model, way.adapter)
    for module in tuned.modules():
        if isinstance(module, LoraLayer):
            module.lora_dropout["default"] = Dropout(lora.dropout or 0.0)
            if lora.kind == "pissa":  # where it began, which is not in the base's weights any more
                for side in ("A", "B"):
                    began = getattr(module, f"lora_{side}")["default"].weight.detach().clone()
                    module.register_buffer(f"began_{side}", began, persistent=False)
    return tuned


def _own_weights(model: WhisperForConditionalGeneration, way: TuningMethod) -> WhisperForConditionalGeneration:
    """The model, of which those parameters alone train, in fp32, that the way names."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(way.trains is not None and way.trains(name))
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


def trainable_parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def save(model: Tuned, folder: Path, base: str, context: str) -> None:
    """Writes what was learnt into `folder`: an adapter as peft itself does, else the whole model as transformers does.

    `base` is the checkpoint that it is told to stand on, of the Hub that very revision. Beside it asr_lora.json records
    the `context` that it was trained at, for whoever decodes with it. PiSSA becomes an ordinary LoRA of twice the rank.
    A local checkpoint is named by its folder alone: a path on this machine helps nobody elsewhere.
    Raises WorldError when the weights cannot be written, a full disk for one.
    """
    name, (_, revision) = display_name(base), resolve(base)
    with _told(folder):
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
    """The few lines that stand until the model is scored; peft's own would hold a path."""
    text = (HEAD + card).format(base=base, library=library, kind=kind)
    (folder / "README.md").write_text(text, encoding="utf-8")


def _save_whole(model: WhisperForConditionalGeneration, folder: Path, base: str) -> None:
    """With tokenizer and feature extractor; SpecAugment is of the training, not of what is trained."""
    masks, model.config.apply_spec_augment = model.config.apply_spec_augment, False
    try:
        model.save_pretrained(folder)
    finally:
        model.config.apply_spec_augment = masks
    load_processor(base).save_pretrained(folder)


def _untie_from_base(model: PeftModel, folder: Path) -> None:
    """Makes a saved PiSSA stand on the base as published: what it adds is B A less the B A that it began with.

    Both are the product of [B, -B0] and [A; A0], an ordinary LoRA of rank 2r (Meng et al. 2024).
    """
    began = {
        f"{name}.lora_{side}.weight": getattr(module, f"began_{side}")
        for name, module in model.named_modules()
        for side in ("A", "B")
        if hasattr(module, f"began_{side}")
    }
    if not began:
        return
    weights = load_file(folder / stored.WEIGHTS[0])
    for name, start in began.items():
        sign, dim = (1, 0) if ".lora_A." in name else (-1, 1)
        weights[name] = torch.cat((weights[name], sign * start.to(weights[name])), dim)
    save_file(weights, folder / stored.WEIGHTS[0], metadata={"format": "pt"})
    settings = read_json(folder / "adapter_config.json")
    doubled = {"r": 2 * settings["r"], "lora_alpha": 2 * settings["lora_alpha"], "init_lora_weights": True}
    write_json(folder / "adapter_config.json", settings | doubled)


def save_training(model: torch.nn.Module, way: TuningMethod, folder: Path) -> None:
    """Writes all that training goes on from, beside what the trainer keeps itself. Raises WorldError as `save` does."""
    trained = {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}
    remembered = way.state(model) if way.state else {}
    folder.mkdir(parents=True, exist_ok=True)
    with _told(folder):
        both = trained | {f"{OF_METHOD}{name}": tensor for name, tensor in remembered.items()}
        save_file({name: tensor.contiguous() for name, tensor in both.items()}, folder / TRAINED)


def resume_training(model: torch.nn.Module, way: TuningMethod, folder: Path) -> None:
    """Takes back what `save_training` wrote, into a model made by the same settings."""
    device = next(model.parameters()).device
    saved = load_file(folder / TRAINED, device=str(device))
    remembered = {name.removeprefix(OF_METHOD): saved.pop(name) for name in list(saved) if name.startswith(OF_METHOD)}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(saved[name])
    if way.restore:
        way.restore(model, remembered)


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    try:
        yield
    except SafetensorError as error:
        raise ExternalError(f"run_dir: cannot write weights to {folder} ({error}); free some space") from error


def load(checkpoint: str, folder: Path, precision: str, device: torch.device) -> WhisperForConditionalGeneration:
    """The tuned model, unquantised: the folder's own, or the checkpoint with the folder's adapter in it."""
    if stored.is_whole(folder):
        return whisper.load(str(folder), precision, device)
    return merge(whisper.load(checkpoint, precision, device), folder)


def merge(base: WhisperForConditionalGeneration, folder: Path) -> WhisperForConditionalGeneration:
    """The base with the saved adapter folded into its weights; the base must be unquantised, and is used up.

    Raises ValueError for a quantised base: merging rounds the adapter away; WorldError for a damaged folder.
    """
    if getattr(base, "is_quantized", False):
        raise ValueError("base: must be fp32, fp16 or bf16 to be merged into, got a quantised one")
    stored.read_settings(folder)
    stored.read_weights(folder)  # peft would look for weights that are not there on the Hub
    with quiet(), stored.reading(folder):
        return PeftModel.from_pretrained(base, folder).merge_and_unload()


def load_adapters(base: WhisperForConditionalGeneration, folders: Mapping[str, Path]) -> PeftModel:
    """The base once, with every adapter at hand under its name and none merged; `active_adapter` says which one hears.

    Uses the base up.
    """
    for folder in folders.values():
        stored.read_settings(folder)
        stored.read_weights(folder)
    with quiet():
        (first, folder), *rest = folders.items()
        with stored.reading(folder):
            model = PeftModel.from_pretrained(base, folder, adapter_name=first)
        for name, folder in rest:
            with stored.reading(folder):
                model.load_adapter(folder, adapter_name=name)
    return model.eval()


@contextmanager
def active_adapter(model: PeftModel, name: str | None, strength: float = 1.0) -> Iterator[None]:
    """Within it the model hears with that adapter alone, `strength` times as strong, and with None without any.

    Only an adapter that `stored.scales` may have another strength than 1.
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
    """Without three warnings of peft 0.21 that nobody here can mend (2026-11).

    It asks transformers 5.23 for a property under its old name, takes AdaLoRA's rank pattern, which it does follow, for
    one of LoRA's, and a matrix that AdaLoRA left no rank for damaged.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        warnings.filterwarnings("ignore", r"Adapter 'default': \d+ LoRA tensor\(s\) have invalid shape", PeftWarning)
        warnings.filterwarnings("ignore", "The following rank_pattern keys did not match", RuntimeWarning)
        yield


class Dropout(torch.nn.Dropout):
    """torch.nn.Dropout (Srivastava et al. 2014), on a CPU with a mask of its own making, in half the time.

    There p is rounded to a multiple of 2^-16. Drawn from torch's default generator, as the original is.
    """

    def forward(self, values: Tensor) -> Tensor:
        """Any shape; each element is 0 with probability p, else divided by 1 - p, so that the mean stays."""
        if not self.training or self.p == 0 or values.device.type != "cpu":
            return super().forward(values)
        draws = torch.empty(-(-values.numel() * BITS // 64), dtype=torch.int64).random_(-(2**63), None)
        numbers = draws.view(torch.int16)[: values.numel()].view(values.shape)  # uniform over -2^15 .. 2^15 - 1
        kept = numbers >= round(self.p * 2**BITS) - 2 ** (BITS - 1)
        mask: Tensor = kept * (1 / (1 - self.p))
        return values * mask.to(values.dtype)
