"""Adds what a local checkpoint lacks beside its weights: tokenizer, feature extractor, generation config.

Trainers save checkpoints without them, and OpenAI's .pt files have none. The tokenizer is taken from the base model
that config.json names or its sizes tell, where that is on this machine or the Hub gives it; the feature extractor is
made for the model's mel bins; the generation config is the base's, or made from the tokenizer. The user's folder is
never written to: the complete one, but for weights, is in the cache.
"""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError
from transformers import GenerationConfig, WhisperFeatureExtractor, WhisperTokenizer

from asr_lora.model.checkpoint_files import AGAIN, NOT_LOADED, check_file, not_loaded
from asr_lora.model.cost import PUBLISHED, dimensions
from asr_lora.model.hub import cached_file
from asr_lora.model.tokens import VOCABULARIES, generation_config
from asr_lora.runtime.console import log
from asr_lora.runtime.errors import ConfigError, ExternalError
from asr_lora.runtime.files import atomic_folder, cache_dir, disk_errors, made_once, read_json, sha256_text

TOKENIZER, EXTRACTOR, GENERATION = "tokenizer.json", "preprocessor_config.json", "generation_config.json"
OF_TOKENIZER = (
    TOKENIZER, "tokenizer_config.json", "vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json",
    "normalizer.json",
)  # fmt: skip
MOST_MEL_BINS = 201  # frequencies of a window of 25 ms: more bins are none of a model's


def completed(source: Path, needed: Collection[str]) -> Path:
    """Returns `source` itself, a Hugging Face directory, or a folder in the cache where it lacks one of those `needed`.

    That folder has all that belongs to a model, but for weights.
    Raises ConfigError where the tokenizer is nowhere to be found.
    """
    if not set(needed) & set(missing(source)):
        return source
    files = sorted(file for pattern in ("*.json", "*.txt") for file in source.glob(pattern))
    facts = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    target = cache_dir() / "checkpoints" / f"{source.resolve().name}-{sha256_text(str(facts))[:8]}"

    def make(folder: Path) -> None:
        with disk_errors(folder.parent), atomic_folder(folder) as partial:
            for file in files:
                (partial / file.name).symlink_to(file.resolve())
            add_missing(partial, source)

    return made_once(target, make)


def missing(folder: Path) -> list[str]:
    """Returns which parts a Hugging Face directory lacks, by the files that hold them."""
    processor = folder / "processor_config.json"
    extractor = (folder / EXTRACTOR).is_file() or (
        processor.is_file() and "feature_extractor" in read_json(processor, AGAIN)
    )
    parts = {
        TOKENIZER: has_tokenizer(folder), EXTRACTOR: extractor,
        GENERATION: (folder / GENERATION).is_file(),
    }  # fmt: skip
    return [name for name, there in parts.items() if not there]


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder has a tokenizer, in one file or as older tools wrote it."""
    return (folder / TOKENIZER).is_file() or all((folder / name).is_file() for name in ("vocab.json", "merges.txt"))


def add_missing(folder: Path, source: Path) -> None:
    """Writes the parts that `folder` lacks into it, and logs where they are from; `source` is what the user named.

    Raises ConfigError where the tokenizer is nowhere to be found.
    """
    config, added = read_json(folder / "config.json", AGAIN), []
    lacking = missing(folder)
    bases = list(_bases(config, source))
    if TOKENIZER in lacking:
        base, tokenizer = _tokenizer(config, bases, source)
        for name in OF_TOKENIZER:  # incomplete ones, and never to be written through their links
            (folder / name).unlink(missing_ok=True)
        tokenizer.save_pretrained(folder)
        added.append(f"the tokenizer of {base}")
    if EXTRACTOR in lacking:
        bins = config.get("num_mel_bins", 80)
        if type(bins) is not int or not 1 <= bins <= MOST_MEL_BINS:
            raise ExternalError(
                f"model.checkpoint: config.json of {source} is damaged, num_mel_bins is {bins}; {AGAIN}"
            )
        WhisperFeatureExtractor(feature_size=bins).save_pretrained(folder)
        added.append(f"a feature extractor of {bins} mel bins")
    if GENERATION in lacking:
        origin, generation = _generation(config, bases, folder, source)
        generation.save_pretrained(folder)
        added.append(f"the generation config of {origin}")
    log(f"{source} lacks {', '.join(lacking)}: takes {', '.join(added)} ({source.name} itself is not changed)")


def load_tokenizer(place: str | Path) -> WhisperTokenizer:
    """Loads a tokenizer from a folder or the Hub; as in OpenAI's, the end token pads where no other is named.

    Raises ConfigError for a tokenizer that does not load.
    """
    try:
        tokenizer = WhisperTokenizer.from_pretrained(place)
    except NOT_LOADED as error:
        raise not_loaded(str(place), TOKENIZER, error) from error
    tokenizer.pad_token = tokenizer.pad_token or "<|endoftext|>"
    tokenizer.chat_template = None  # as load_processor has it
    return tokenizer


def _bases(config: Mapping[str, Any], source: Path) -> Iterator[str]:
    """Yields folders and Hub ids that may hold the missing parts, the most likely first."""
    named = config.get("_name_or_path")
    if (
        isinstance(named, str)
        and named
        and "\0" not in named
        and Path(named).expanduser().resolve() != source.resolve()
    ):
        yield named
    if published := published_base(config):
        yield published
        # All multilingual models up to large-v2 have one tokenizer, as have all English-only ones, and v3 and turbo.
        yield from (name for name in _same_vocabulary(config) if name != published)


def published_base(config: Mapping[str, Any]) -> str | None:
    """Returns OpenAI's model of a config.json's sizes, else one of its vocabulary; None for another vocabulary."""
    try:
        sizes = dimensions(config)
    except KeyError:
        return None
    for name, each in PUBLISHED.items():
        same = (each.d_model, each.encoder_layers, each.decoder_layers) == (
            sizes.d_model, sizes.encoder_layers, sizes.decoder_layers
        )  # fmt: skip
        if same and sizes.vocabulary == each.vocabulary and sizes.mels == each.mels:
            return name
        if same and sizes.vocabulary == VOCABULARIES[0]:
            return f"{name}.en"
    return next(_same_vocabulary(config), None)


def _same_vocabulary(config: Mapping[str, Any]) -> Iterator[str]:
    vocabulary = config.get("vocab_size")
    for name, each in PUBLISHED.items():
        if vocabulary == each.vocabulary:
            yield name
        if vocabulary == VOCABULARIES[0] and each.d_model <= PUBLISHED["openai/whisper-medium"].d_model:
            yield f"{name}.en"


def _tokenizer(config: Mapping[str, Any], bases: list[str], source: Path) -> tuple[str, WhisperTokenizer]:
    for download in (False, True):
        for base in bases[: 2 if download else None]:  # the named one and that of its sizes
            folder = Path(base).expanduser()
            if has_tokenizer(folder) if folder.is_dir() else _from_hub(base, TOKENIZER, download):
                for file in filter(Path.is_file, (folder / name for name in OF_TOKENIZER)):
                    check_file(file)
                return base, load_tokenizer(folder if folder.is_dir() else base)
    base = bases[0] if bases else "its base model"
    published = published_base(config) or base
    raise ConfigError(
        f"model.checkpoint: {source} has no tokenizer (tokenizer.json, or vocab.json and merges.txt), and that of "
        f"{base} is neither on this machine nor to be had from the Hub; copy tokenizer.json and tokenizer_config.json "
        f"of {published} {'beside' if source.is_file() else 'into'} it"
    )


def _generation(
    config: Mapping[str, Any], bases: list[str], folder: Path, source: Path
) -> tuple[str, GenerationConfig]:
    """Returns the base's generation config where it is at hand and its tokens are the model's, else one made here."""
    made = generation_config(load_tokenizer(folder), config)
    for base in bases[:2]:
        place = Path(base).expanduser()
        if (place / GENERATION).is_file() if place.is_dir() else _from_hub(base, GENERATION, download=True):
            found = GenerationConfig.from_pretrained(base)
            if all(getattr(found, key, None) == getattr(made, key, None) for key in ("lang_to_id", "task_to_id")):
                if any(layer >= config["decoder_layers"] for layer, _ in getattr(found, "alignment_heads", None) or []):
                    found.alignment_heads = None  # of a larger model
                return base, found
    return "its tokenizer's tokens", made


def _from_hub(name: str, file: str, download: bool) -> bool:
    """Whether a file of a model is in the Hub's cache, after a download if `download`."""
    try:
        return bool(cached_file(name, file) or (download and hf_hub_download(name, file)))
    except (OSError, ValueError, HfHubHTTPError, httpx.HTTPError):  # offline, no such model or file, no Hub id
        return False
