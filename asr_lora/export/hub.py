"""To the Hub: what would go there, file by file, and on its word the files."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from asr_lora.runtime.console import say
from asr_lora.runtime.errors import ChoiceError, WorldError, reason
from asr_lora.runtime.files import check_links

if TYPE_CHECKING:
    from asr_lora.config.stages import ExportConfig

NETWORK = (OSError, HfHubHTTPError, OfflineModeIsEnabled)  # httpx's own errors are wrapped by huggingface_hub


def push(folder: Path, asked: "ExportConfig") -> None:
    """Shows what goes from `folder` to asked.push, and unless asked.dry_run sends it, as one commit.

    The token is the one that `hf auth login` or HF_TOKEN has given huggingface_hub; it is neither read by us nor kept.
    Raises ChoiceError without one, without a model card of results, or for a link to a file elsewhere; WorldError where
    the Hub does not take it.
    """
    check_links(folder, "export.push")
    card = folder / "README.md"
    if not card.is_file() or "model-index:" not in card.read_text(encoding="utf-8"):
        raise ChoiceError(f"export.push: the card of {folder} has no results yet; python -m asr_lora.eval writes them")
    files = {file.relative_to(folder): file.stat().st_size for file in sorted(folder.rglob("*")) if file.is_file()}
    whose = "private" if asked.private else "public"
    say(f"{'would go' if asked.dry_run else 'goes'} to {asked.push} ({whose}), {_size(sum(files.values()))}:")
    for name, size in files.items():
        say(f"  {_size(size):>9}  {name}")
    _tell_paths(folder, files)
    if asked.dry_run:
        say("nothing was sent; export.dry_run=false sends it")
        return
    if get_token() is None:
        raise ChoiceError("export.push: no token of the Hub's on this machine; `hf auth login`, or set HF_TOKEN")
    try:
        api = HfApi()
        api.create_repo(str(asked.push), private=asked.private, exist_ok=True)
        sent = api.upload_folder(
            repo_id=str(asked.push), folder_path=folder, commit_message=f"{folder.name}, by asr_lora"
        )
    except NETWORK as error:
        raise WorldError(f"export.push: {asked.push} did not take it ({reason(error)}); what is here stays") from error
    say(f"sent: {sent.commit_url}")


def _tell_paths(folder: Path, files: Mapping[Path, int]) -> None:
    """What we write names no folder of this machine; what somebody has put beside it or into the card may."""
    home = str(Path.home())
    texts = [name for name in files if name.suffix in (".md", ".json") and name.name != "tokenizer.json"]
    for name in texts:
        if home in (folder / name).read_text(encoding="utf-8"):
            say(f"  mind: {name} names {home}")


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} KB"
