"""Whisper's normalizer of English, on which the Open ASR Leaderboard's is built; finds its list of spellings.

transformers has the rules, but the list of British and American spellings comes with a checkpoint: normalizer.json.
"""

from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from huggingface_hub.constants import HF_HUB_CACHE
from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

from asr_lora.runtime.errors import ConfigError, ExternalError
from asr_lora.runtime.files import cache_dir, read_json

# Where packages keep the list: OpenAI's own, and one that has nothing but Whisper's normalizers.
PACKAGES = {"whisper": "normalizers/english.json", "whisper_normalizer": "english.json"}


@cache
def english_normalizer() -> EnglishTextNormalizer:
    """Returns the normalizer, with the first list of spellings that is found.

    It is looked for in our cache (normalizer.json, and checkpoints that we completed), in the packages openai-whisper
    and whisper-normalizer, and in the Hub's cache, among the files of any checkpoint of Whisper.
    Raises ConfigError where there is none, and ExternalError for a damaged one.
    """
    file = next((each for each in _places() if each.is_file()), None)
    if file is None:
        raise ConfigError(
            "normalizer: leaderboard-en needs Whisper's list of English spellings, which is not on this machine; copy "
            f"normalizer.json of one of OpenAI's checkpoints on the Hub to {cache_dir() / 'normalizer.json'}, or "
            "install openai-whisper or whisper-normalizer"
        )
    spellings = read_json(file, "remove that file, or copy it anew")
    if not spellings or not all(isinstance(word, str) for word in spellings.values()):
        raise ExternalError(f"{file}: no list of spellings, one text for another; remove that file, or copy it anew")
    return EnglishTextNormalizer(spellings)


def _places() -> Iterator[Path]:
    yield cache_dir() / "normalizer.json"
    yield from sorted((cache_dir() / "checkpoints").glob("*/normalizer.json"))
    for package, file in PACKAGES.items():
        spec = find_spec(package)  # of a package that is not loaded: openai-whisper imports torch
        yield from (Path(place, file) for place in (spec.submodule_search_locations if spec else None) or ())
    yield from sorted(Path(HF_HUB_CACHE).glob("models--*/snapshots/*/normalizer.json"))
