"""Resolves `model.checkpoint` for `from_pretrained`; loads config, processor and language tokens."""

import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from transformers import AutoConfig, GenerationConfig, WhisperConfig, WhisperProcessor

from asr_lora.config.schema import ModelConfig
from asr_lora.model.convert_ctranslate2 import convert
from asr_lora.runtime.errors import ConfigError, ExternalError, first_line
from asr_lora.runtime.files import cache_dir, disk_errors, exclusive, sha256_file, sha256_text
from asr_lora.speech.language import check_token, token_for_locale

WEIGHTS = ("model*.safetensors*", "pytorch_model*.bin*")  # whole or sharded, as Hugging Face names them
HUB_ID = re.compile(r"(?P<name>(\w[\w.-]*/)?\w[\w.-]*)(@(?P<revision>\w[\w./-]*))?", re.ASCII)
MAIN = "main"  # the default branch of a model on the Hub
LOCAL = "model.checkpoint=/path/to/whisper-... (a Hugging Face or faster-whisper directory)"


def resolve(checkpoint: str) -> tuple[str, str]:
    """Returns what `from_pretrained` takes, and its `revision`.

    Either a local directory (converted if it was CTranslate2), whose revision is not used, or the id of a model on the
    Hub, which may name a commit, a branch or a tag (owner/name@revision), by default the branch main.
    Raises ConfigError for a path that does not exist or holds no model.
    """
    path = Path(checkpoint).expanduser()
    if path.is_dir():
        return str(_local(path)), MAIN
    if path.exists():
        raise ConfigError(f"model.checkpoint: {path} is a file; name the directory that holds the model")
    if not (hub := HUB_ID.fullmatch(checkpoint)):
        raise ConfigError(
            f"model.checkpoint: no directory {path}; name one that exists, or a Hub id (owner/name or "
            "owner/name@revision)"
        )
    return hub["name"], hub["revision"] or MAIN


def is_local(checkpoint: str) -> bool:
    """Whether the checkpoint is a directory of this machine, not a Hub id."""
    return Path(checkpoint).expanduser().is_dir()


def is_hub_id(checkpoint: str) -> bool:
    """Whether the checkpoint has the form of a Hub id, and is no directory of this machine."""
    return HUB_ID.fullmatch(checkpoint) is not None and not is_local(checkpoint)


def display_name(checkpoint: str) -> str:
    """Returns a name without local paths: the Hub id, or the name of a directory."""
    return Path(checkpoint).expanduser().name if is_local(checkpoint) else resolve(checkpoint)[0]


def fingerprint(checkpoint: str) -> str:
    """Identifies a checkpoint's files: owner/name@commit on the Hub, or a hash of a directory's files.

    The former is itself a valid checkpoint.
    """
    source, revision = resolve(checkpoint)
    if is_local(checkpoint):
        return _content(sorted(file for file in Path(source).iterdir() if file.is_file()))
    load_config(checkpoint)  # raises if the Hub is out of reach, and leaves the file in the cache
    file = try_to_load_from_cache(source, "config.json", revision=revision)
    return f"{source}@{Path(str(file)).parent.name}"  # .../snapshots/<commit>/config.json


def load_config(checkpoint: str) -> WhisperConfig:
    """Loads the configuration.

    Raises ConfigError for a directory or Hub id that is no Whisper, ExternalError for a Hub id out of reach.
    """
    config = _load(AutoConfig, checkpoint)
    if not isinstance(config, WhisperConfig):
        raise ConfigError(f"model.checkpoint: {checkpoint} is a {config.model_type} model; only Whisper can be trained")
    return config


def load_generation_config(checkpoint: str) -> GenerationConfig:
    """Loads the generation config. Raises as `load_config`, and ConfigError without language tokens."""
    generation = _load(GenerationConfig, checkpoint)
    if not getattr(generation, "lang_to_id", None):
        raise ConfigError(
            f"model.checkpoint: {checkpoint} has no lang_to_id in its generation_config.json; "
            "take a multilingual Whisper, with the generation_config.json of its base model"
        )
    drop_forced_tokens(generation)
    return generation


def drop_forced_tokens(settings: WhisperConfig | GenerationConfig) -> None:
    """Removes `forced_decoder_ids` from the configuration of a model, or of its generation.

    OpenAI's checkpoints and older fine-tuned ones have them in both. They set language and task again, often another
    language, and take effect where a saved model is given neither.
    """
    vars(settings).pop("forced_decoder_ids", None)


def language_tokens(checkpoint: str) -> set[str]:
    """Returns the languages that have a token, without brackets. Raises as `load_generation_config` does."""
    return {token.strip("<|>") for token in load_generation_config(checkpoint).lang_to_id}


def language_token(model: ModelConfig, locale: str) -> str:
    """Returns Whisper's token, without brackets: `model.language` if set, else by Common Voice's `locale`.

    Raises ConfigError when the checkpoint has none, naming a way out.
    """
    tokens = language_tokens(model.checkpoint)
    return token_for_locale(locale, tokens) if model.language is None else check_token(model.language, tokens)


def load_processor(checkpoint: str) -> WhisperProcessor:
    """Loads the processor without chat templates. Raises as `load_config` does.

    No Whisper uses them, and when saved each would become a file with a name chosen by the checkpoint.
    """
    processor = _load(WhisperProcessor, checkpoint)
    processor.chat_template = processor.tokenizer.chat_template = None
    return processor


def _local(path: Path) -> Path:
    if (path / "config.json").is_file() and any(next(path.glob(pattern), None) for pattern in WEIGHTS):
        return path
    if (path / "model.bin").is_file():
        return _converted(path)
    there = ", ".join(sorted(child.name for child in path.iterdir())[:8]) or "nothing"
    raise ConfigError(
        f"model.checkpoint: no model in {path}; a Hugging Face directory has config.json and model.safetensors, "
        f"a faster-whisper one model.bin (got: {there})"
    )


def _converted(path: Path) -> Path:
    # By content, so that a moved folder is not converted again and a changed one is.
    files = [file for name in ("model.bin", "config.json", "tokenizer.json") if (file := path / name).is_file()]
    target = cache_dir() / "checkpoints" / f"{path.resolve().name}-{_content(files)[:8]}"
    if not target.is_dir():
        with disk_errors(target.parent):
            target.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(target):
            if not target.is_dir():
                convert(path, target)
    return target


def _content(files: Iterable[Path]) -> str:
    digests = "".join(_sha256(file, file.stat().st_size, file.stat().st_mtime_ns) for file in files)
    return sha256_text(digests)


@cache
def _sha256(path: Path, size: int, mtime_ns: int) -> str:
    """Hashes a file; size and time are cache keys: gigabytes are hashed again only if the file changed."""
    return sha256_file(path)


def _load(kind: Any, checkpoint: str) -> Any:
    source, revision = resolve(checkpoint)
    try:
        return kind.from_pretrained(source, revision=revision)
    except (OSError, ValueError) as error:
        if is_local(checkpoint):
            raise ConfigError(
                f"model.checkpoint: {checkpoint} does not load as a Whisper: {first_line(error)}"
            ) from error
        raise ExternalError(
            f"model.checkpoint: {checkpoint} is not in the local cache and the Hub did not give it "
            f"({first_line(error)}); check the name and the network, or give a local one: {LOCAL}"
        ) from error
