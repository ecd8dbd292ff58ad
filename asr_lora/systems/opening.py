"""What an item of eval.models is, and the system that it names."""

import re
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from transformers import AutoConfig

from asr_lora.config.stages import EvalConfig, EvalModelConfig
from asr_lora.model.checkpoint_files import openai_files
from asr_lora.model.hub import cached_file, is_hub_id, parse_id
from asr_lora.runs.finding import settings_file
from asr_lora.runtime.errors import ConfigError, ExternalError, check_choice, first_line
from asr_lora.runtime.files import existing, read_json
from asr_lora.systems import endpoint, pipelines, texts, tools, whisper
from asr_lora.systems.system import Common, System

URL = re.compile(r"https?://\S+")
ADAPTER = "adapter_config.json"


def open_systems(settings: EvalConfig, common: Common) -> list[System]:
    """Returns the systems of eval.models, in their order.

    Raises ConfigError for one that is none of the kinds, or two of one name, and as its kind does.
    """
    names = names_of(settings.models)
    if settings.against is not None:
        check_choice("eval.against", settings.against, names)
    return [_open(each, name, common) for each, name in zip(settings.models, names, strict=True)]


def names_of(models: Sequence[EvalModelConfig]) -> list[str]:
    """Returns the names of eval.models: as given, else the last part of the place, with its parent where two agree."""
    places = [Path(str(each.model or each.hypotheses)) for each in models]
    given = [each.name or each.served for each in models]
    bare = [name or place.name for name, place in zip(given, places, strict=True)]
    names = [
        name or (place.name if bare.count(place.name) == 1 else "/".join(place.parts[-2:]))
        for name, place in zip(given, places, strict=True)
    ]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"eval.models: {twice} is the name of two; give one another, name=...")
    return names


def _open(each: EvalModelConfig, name: str, common: Common) -> System:
    if each.hypotheses is not None:
        return texts.of_file(name, each.hypotheses)
    source = str(each.model)
    if URL.fullmatch(source):
        return endpoint.of_url(name, each)
    if is_hub_id(source):
        return _on_hub(name, source, each.base, common)
    path = existing(Path(source), "eval.models.model")
    if settings_file(path).is_file():
        return whisper.of_run(name, path, common)
    if (path / ADAPTER).is_file():
        return whisper.of_adapter(name, path, each.base, common)
    if path.name == tools.FILES["ggml"]:
        path = path.parent
    kind = _architecture(path)
    for format_, file in tools.FILES.items():
        if (path / file).is_file() and not kind:
            return tools.in_format(name, format_, path, common.model.task, common.hardware.device)
    if path.suffix == ".pt" or kind == "whisper" or (path.is_dir() and openai_files(path)):
        return whisper.checkpoint(name, str(path), common)
    if kind:
        return pipelines.of_model(name, kind, str(path), common.hardware.device)
    raise ConfigError(
        f"eval.models: {path} holds no model: no run (train/config.yaml), adapter ({ADAPTER}), model of transformers "
        f"(config.json), of faster-whisper ({tools.FILES['ct2']}) or whisper.cpp ({tools.FILES['ggml']}); a table of "
        "texts is named by hypotheses="
    )


def _architecture(path: Path) -> str:
    """Returns the model_type of a folder's config.json; nothing where it has none, as CTranslate2's."""
    file = path / "config.json"
    return str(read_json(file, "name a model that is whole").get("model_type") or "") if file.is_file() else ""


def _on_hub(name: str, source: str, base: str | None, common: Common) -> System:
    hub, revision = parse_id(source)
    if cached_file(source, "config.json") is None:  # maybe an adapter, which has no config.json
        try:
            folder = Path(snapshot_download(hub, revision=revision, allow_patterns=["adapter_*", "asr_lora.json"]))
        except (OSError, HfHubHTTPError, OfflineModeIsEnabled) as error:
            raise ExternalError(
                f"eval.models: {source} is not on this machine, and the Hub did not give it ({first_line(error)}); "
                "check the name and the network, or name a folder"
            ) from error
        if (folder / ADAPTER).is_file():
            return whisper.of_adapter(name, folder, base, common)
    try:
        kind = AutoConfig.from_pretrained(hub, revision=revision).model_type
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise ExternalError(f"eval.models: {source} does not load ({first_line(error)}); name another") from error
    if kind == "whisper":
        return whisper.checkpoint(name, source, common)
    return pipelines.of_model(name, kind, source, common.hardware.device)
