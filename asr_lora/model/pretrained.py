"""Resolves `model.checkpoint` for `from_pretrained`; loads config, processor and language tokens."""

from collections.abc import Callable, Iterable
from copy import copy
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from transformers import AutoConfig, GenerationConfig, WhisperConfig, WhisperProcessor, WhisperTokenizer

from asr_lora.config.schema import ModelConfig
from asr_lora.model import convert_ctranslate2, convert_openai
from asr_lora.model.checkpoint_files import (
    AGAIN,
    NOT_LOADED,
    check_file,
    check_files,
    holds_model,
    not_loaded,
    openai_files,
    refuse,
)
from asr_lora.model.complete import EXTRACTOR, GENERATION, OF_TOKENIZER, TOKENIZER, completed, published_base
from asr_lora.model.hub import LOCAL, MAIN, cached_file, is_local, parse_id
from asr_lora.model.tokens import check_same_whisper, generation_config, is_english_only
from asr_lora.runtime.console import log
from asr_lora.runtime.errors import ConfigError, ExternalError, first_line
from asr_lora.runtime.files import cache_dir, made_once, read_json, sha256_file, sha256_text
from asr_lora.speech.language import check_token, token_for_locale

FILES = {  # that a part of a model is loaded from
    AutoConfig: ("config.json",), GenerationConfig: (GENERATION,), WhisperTokenizer: (TOKENIZER,),
    WhisperProcessor: (TOKENIZER, EXTRACTOR),
}  # fmt: skip
OF_LANGUAGES = {"lang_to_id": dict, "task_to_id": dict, "no_timestamps_token_id": int}  # of a generation config


def resolve(checkpoint: str) -> tuple[str, str]:
    """Returns what `from_pretrained` takes, and its `revision`.

    Either a local directory, whose revision is not used, or the id of a model on the Hub, which may name a commit, a
    branch or a tag (owner/name@revision), by default the branch main. The directory is in the cache if what the user
    named is CTranslate2's, or OpenAI's .pt file. It may lack a tokenizer, and what else is beside config and weights.
    Raises ConfigError for a path that does not exist or holds no model, ExternalError for a damaged file.
    """
    path = Path(checkpoint).expanduser()
    if path.exists():
        return str(_local(path)), MAIN
    return parse_id(checkpoint)


def display_name(checkpoint: str) -> str:
    """Returns a name without local paths: the Hub id, or the name of a directory or file."""
    return Path(checkpoint).expanduser().name if is_local(checkpoint) else resolve(checkpoint)[0]


def fingerprint(checkpoint: str) -> str:
    """Identifies a checkpoint's files: owner/name@commit on the Hub, or a hash of a directory's files.

    The former is itself a valid checkpoint.
    """
    source, _ = resolve(checkpoint)
    if is_local(checkpoint):
        return _content(sorted(file for file in Path(source).iterdir() if file.is_file()))
    load_config(checkpoint)  # raises if the Hub is out of reach, and leaves the file in the cache
    file = cached_file(checkpoint, "config.json")
    return f"{source}@{Path(str(file)).parent.name}"  # .../snapshots/<commit>/config.json


def load_config(checkpoint: str) -> WhisperConfig:
    """Loads the configuration.

    Raises ConfigError for a directory or Hub id that is no Whisper, ExternalError for a Hub id out of reach.
    """
    config = _load(AutoConfig, checkpoint)
    if not isinstance(config, WhisperConfig):
        raise _no_whisper(checkpoint, config.model_type)
    return config


def _no_whisper(checkpoint: str, kind: str) -> ConfigError:
    return ConfigError(f"model.checkpoint: {checkpoint} is a {kind} model; only Whisper can be trained")


def load_generation_config(checkpoint: str) -> GenerationConfig:
    """Loads the generation config, with languages and tasks from the tokenizer where it is older than these.

    Raises as `load_config`, and ConfigError for a tokenizer that is no Whisper's.
    """
    generation = _load(GenerationConfig, checkpoint)
    lacking = [name for name, kind in OF_LANGUAGES.items() if not isinstance(getattr(generation, name, None), kind)]
    if lacking and not is_english_only(generation):
        _log_once(
            f"{checkpoint} has no {' and no '.join(lacking)} in its generation_config.json: as its tokenizer has it"
        )
        known = {name: value for name, value in generation.to_dict().items() if value is not None}
        generation = generation_config(_load(WhisperTokenizer, checkpoint), known)
    drop_forced_tokens(generation)
    return generation


@cache
def _log_once(line: str) -> None:
    log(line)


def drop_forced_tokens(settings: WhisperConfig | GenerationConfig) -> None:
    """Removes `forced_decoder_ids` from the configuration of a model, or of its generation.

    OpenAI's checkpoints and older fine-tuned ones have them in both. They set language and task again, often another
    language, and take effect where a saved model is given neither.
    """
    vars(settings).pop("forced_decoder_ids", None)


def language_tokens(checkpoint: str) -> set[str]:
    """Returns the languages that have a token, without brackets; English where no language has one, in .en models.

    Raises as `load_generation_config` does.
    """
    generation = load_generation_config(checkpoint)
    return {"en"} if is_english_only(generation) else {token.strip("<|>") for token in generation.lang_to_id}


def language_token(model: ModelConfig, locale: str) -> str:
    """Returns Whisper's token, without brackets: `model.language` if set, else by Common Voice's `locale`.

    Raises ConfigError when the checkpoint has none, naming a way out.
    """
    tokens = language_tokens(model.checkpoint)
    if len(tokens) == 1:
        _check_english(model, locale)
    return token_for_locale(locale, tokens) if model.language is None else check_token(model.language, tokens)


def _check_english(model: ModelConfig, locale: str) -> None:
    config = load_config(model.checkpoint).to_dict()
    sibling = (published_base(config) or "openai/whisper-small").removesuffix(".en")
    if locale.partition("-")[0] != "en":
        raise ConfigError(
            f"data.language: {model.checkpoint} is English-only, got {locale!r}; take a multilingual one, "
            f"model.checkpoint={sibling}"
        )
    if model.task != "transcribe":
        raise ConfigError(
            f"model.task: {model.checkpoint} is English-only and only transcribes, got {model.task}; "
            f"model.task=transcribe, or model.checkpoint={sibling}"
        )


def load_processor(checkpoint: str) -> WhisperProcessor:
    """Loads the processor without chat templates, once for the same files: its tokenizer takes half a second.

    No Whisper uses them, and when saved each would become a file with a name chosen by the checkpoint.
    The caller may give the processor another tokenizer, but not change the one that it has.
    Raises as `load_config` does, and ConfigError where its tokens or features are not those of the weights.
    """
    processor: WhisperProcessor = copy(_load(WhisperProcessor, checkpoint))
    tokenizer = processor.tokenizer
    processor.chat_template = tokenizer.chat_template = None
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    mel_bins = processor.feature_extractor.feature_size
    check_same_whisper(checkpoint, load_config(checkpoint), load_generation_config(checkpoint), tokenizer, mel_bins)
    return processor


def _local(path: Path) -> Path:
    if path.is_dir() and holds_model(path):
        check_file(path / "config.json")
        if (kind := read_json(path / "config.json", AGAIN).get("model_type", "whisper")) != "whisper":
            raise _no_whisper(str(path), kind)
        check_files(path)
        return path
    if (path / "model.bin").is_file():
        check_files(path)
        return _converted(path, path, convert_ctranslate2.convert)
    if path.suffix == ".pt" and path.is_file():
        return _converted(path, path, convert_openai.convert)
    if path.is_file() or len(found := openai_files(path)) != 1:
        raise refuse(path)
    return _converted(path, found[0], convert_openai.convert)


def _converted(path: Path, source: Path, convert: Callable[[Path, Path], None]) -> Path:
    # By content, so that a moved folder is not converted again and a changed one is.
    beside = ("model.bin", "config.json", "tokenizer.json") if source.is_dir() else OF_TOKENIZER
    folder = source if source.is_dir() else source.parent
    files = [file for name in beside if (file := folder / name).is_file()] + [source] * source.is_file()
    target = cache_dir() / "checkpoints" / f"{path.resolve().name.removesuffix('.pt')}-{_content(files)[:8]}"
    return made_once(target, lambda folder: convert(source, folder))


def _content(files: Iterable[Path]) -> str:
    digests = "".join(_sha256(file, file.stat().st_size, file.stat().st_mtime_ns) for file in files)
    return sha256_text(digests)


@cache
def _sha256(path: Path, size: int, mtime_ns: int) -> str:
    """Hashes a file; size and time are cache keys: gigabytes are hashed again only if the file changed."""
    return sha256_file(path)


def _load(kind: Any, checkpoint: str) -> Any:
    source, revision = resolve(checkpoint)
    if is_local(checkpoint):
        source = str(completed(Path(source), FILES[kind]))
    try:
        if kind is WhisperProcessor and (files := _files(checkpoint, source)):
            return _processor(source, revision, files)
        return kind.from_pretrained(source, revision=revision)
    except NOT_LOADED as error:
        if is_local(checkpoint):
            raise not_loaded(checkpoint, " or ".join(FILES[kind]), error) from error
        raise ExternalError(
            f"model.checkpoint: {checkpoint} is not in the local cache and the Hub did not give it "
            f"({first_line(error)}); check the name and the network, or give a local one: {LOCAL}"
        ) from error


def _files(checkpoint: str, source: str) -> tuple[tuple[str, int, int], ...]:
    """Returns path, bytes and time of a model's files on this machine, none of a Hub id that is not in the cache."""
    beside = Path(source, TOKENIZER) if is_local(checkpoint) else cached_file(checkpoint, TOKENIZER)
    files = sorted(filter(Path.is_file, beside.parent.iterdir())) if beside else []
    return tuple((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files)


@lru_cache(maxsize=4)
def _processor(source: str, revision: str, files: tuple[tuple[str, int, int], ...]) -> WhisperProcessor:
    return WhisperProcessor.from_pretrained(source, revision=revision)
