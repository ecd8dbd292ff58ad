"""A checkpoint's name: a path on this machine or the id of a model on the Hub, and which of its files are here.

Imports nothing heavy and downloads no files.
"""

import re
from pathlib import Path

import httpx
from huggingface_hub import get_hf_file_metadata, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

from asr_lora.runtime.errors import ConfigError, ExternalError

HUB_ID = re.compile(r"(?P<name>(\w[\w.-]*/)?\w[\w.-]*)(@(?P<revision>\w[\w./-]*))?", re.ASCII)
PATIENCE = 5.0  # seconds that the Hub may take to answer
MAIN = "main"  # the default branch of a model on the Hub
LOCAL = "model.checkpoint=/path/to/whisper-... (a Hugging Face or faster-whisper directory, or OpenAI's .pt file)"
WEIGHTS = ("model.safetensors", "pytorch_model.bin", "model.safetensors.index.json", "pytorch_model.bin.index.json")


def is_local(checkpoint: str) -> bool:
    """Whether the checkpoint is a directory or file of this machine, not a Hub id."""
    return Path(checkpoint).expanduser().exists()


def is_hub_id(checkpoint: str) -> bool:
    """Whether the checkpoint has the form of a Hub id, and is no directory of this machine."""
    return HUB_ID.fullmatch(checkpoint) is not None and not is_local(checkpoint)


def parse_id(checkpoint: str) -> tuple[str, str]:
    """Returns name and revision of a Hub id: owner/name, or owner/name@revision.

    Raises ConfigError for what is neither that nor a path of this machine.
    """
    if not (hub := HUB_ID.fullmatch(checkpoint)):
        raise ConfigError(
            f"model.checkpoint: no directory {Path(checkpoint).expanduser()}; name one that exists, or a Hub id "
            "(owner/name or owner/name@revision)"
        )
    return hub["name"], hub["revision"] or MAIN


def cached_file(checkpoint: str, name: str) -> Path | None:
    """Returns the file `name` of a Hub id in the Hub's cache on this machine, or None. Raises as `parse_id` does."""
    hub, revision = parse_id(checkpoint)
    found = try_to_load_from_cache(hub, name, revision=revision)
    return Path(found) if isinstance(found, str) else None


def weights_are_here(checkpoint: str) -> bool:
    """Returns whether the weights are a local folder or in the Hub's cache. Raises as `parse_id` does."""
    return is_local(checkpoint) or any(cached_file(checkpoint, name) for name in WEIGHTS)


def bytes_on_hub(url: str) -> int | None:
    """Asks the Hub for the size of a file; None where the repository is there, and has no file of that name.

    Raises ExternalError, with the reason alone, where the Hub is out of reach or does not give the repository.
    """
    try:
        return get_hf_file_metadata(url, timeout=PATIENCE).size
    except EntryNotFoundError:
        return None
    except (HfHubHTTPError, httpx.HTTPError, OSError) as error:
        raise ExternalError((str(error) or type(error).__name__).strip().splitlines()[0]) from error
