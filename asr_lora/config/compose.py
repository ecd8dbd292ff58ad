"""Composes conf/ and overrides into the typed tree of settings, `Config`, and explains Hydra's errors.

Values are in conf/, types and rules here. Commands start in asr_lora/runs/launch.py.
"""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Sweep
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from asr_lora.config.conf import choices, conf_dir
from asr_lora.config.naming import RENAMED, RENAMED_VALUES, run_name
from asr_lora.config.schema import (
    PREFIX,
    SCALABLE,
    DataConfig,
    DecodingConfig,
    DivergenceConfig,
    LoraConfig,
    ModelConfig,
    TrainingConfig,
    check_base,
    unknown_lora_key,
)
from asr_lora.config.stages import (
    AppConfig,
    BaselineConfig,
    CorrectConfig,
    EvalConfig,
    ExportConfig,
    HardwareConfig,
    LabelConfig,
    PlanConfig,
    PrepareConfig,
    RecordConfig,
    ReportConfig,
    SearchConfig,
    SelfTrainConfig,
    TranscribeConfig,
)
from asr_lora.runtime.commands import to_install
from asr_lora.runtime.errors import ConfigError, check, check_name


@dataclass
class Config:
    """All settings of a run; `conf/config.yaml` has their values and comments."""

    data: DataConfig
    model: ModelConfig
    lora: LoraConfig
    training: TrainingConfig
    decoding: DecodingConfig
    hardware: HardwareConfig
    eval: EvalConfig
    report: ReportConfig
    divergence: DivergenceConfig
    prepare: PrepareConfig
    plan: PlanConfig
    baseline: BaselineConfig
    search: SearchConfig
    transcribe: TranscribeConfig
    label: LabelConfig
    self_train: SelfTrainConfig
    correct: CorrectConfig
    export: ExportConfig
    app: AppConfig
    record: RecordConfig
    audio: str | None
    adapters: Any  # dict[str, str] by language, for several in one room; list[str] to be combined; None
    weights: list[float] | None
    seed: int
    experiment_name: str | None
    runs_dir: str
    run_name: str
    run_dir: str

    def __post_init__(self) -> None:
        check("seed", self.seed, "at least 0", self.seed >= 0)
        keep, average = self.training.keep_adapters, self.eval.average
        check("eval.average", average, f"at most training.keep_adapters={keep}", average is None or average <= keep)
        check_name("experiment_name", self.experiment_name or "none")
        for name in ("shards", "audit"):
            rule, asked = "false under data.streaming=true, which lists no training clips", getattr(self.prepare, name)
            check(f"prepare.{name}", asked, rule, not (self.data.streaming and asked))
        places = list(self.adapters.values()) if isinstance(self.adapters, dict) else self.adapters or []
        rule = "{nl: runs/nl-..., es: runs/es-...}, or [runs/a,runs/b] to export their combination"
        folders = isinstance(places, list) and all(isinstance(place, str) for place in places)
        check("adapters", self.adapters, rule, folders)
        fits = self.weights is None or (isinstance(self.adapters, list) and len(self.weights) == len(places))
        check("weights", self.weights, "one each of adapters=[...]", fits)
        alone = self.transcribe.mixed_batches and not isinstance(self.adapters, dict)
        check("transcribe.mixed_batches", True, "false without adapters={nl: ..., es: ...}", not alone)
        both = bool(self.adapters) and self.transcribe.base_model
        check("adapters", self.adapters, "null under transcribe.base_model=true", not both)
        check_base(self.lora.kind, self.model.precision)
        strengths = [self.eval.strength, *self.eval.strengths]
        if self.lora.kind not in SCALABLE and any(strength != 1 for strength in strengths):
            raise ConfigError(
                f"eval.strength: must be 1 under lora={self.lora.kind}, got {strengths}; strength 0 is not the base "
                f"model, or cannot be reached by scaling weights ({', '.join(SCALABLE)} can be scaled)"
            )
        if self.lora.kind not in SCALABLE and self.training.soup > 1:
            raise ConfigError(
                f"training.soup: must be 1 under lora={self.lora.kind}, got {self.training.soup}; its adapters "
                f"have no exact mean ({', '.join(SCALABLE)} have)"
            )
        if self.lora.tfinal is not None:  # of AdaLoRA
            before = self.max_steps - int(self.lora.tfinal * self.max_steps)
            check("training.max_steps", self.max_steps, "enough for two steps before lora.tfinal", before >= 2)
        if self.lora.kind == "adalora" and average is not None:
            raise ConfigError(
                f"eval.average: must be null under lora=adalora, got {average}; its adapters keep different ranks"
            )

    @property
    def run(self) -> Path:
        """The run's folder."""
        return Path(self.run_dir)

    @property
    def max_steps(self) -> int:
        """Optimizer steps: training.max_steps, else 2,000 up to two hours of audio and 5,000 beyond."""
        if self.training.max_steps is not None:
            return self.training.max_steps
        return 2000 if self.data.hours is not None and self.data.hours <= 2 else 5000


def gpu_settings(name: str) -> HardwareConfig:
    """Returns the settings of a GPU in conf/hardware/."""
    settings: Any = OmegaConf.to_container(OmegaConf.load(conf_dir() / "hardware" / f"{name}.yaml"))
    return HardwareConfig(**settings)


def model_choice(checkpoint: str) -> str | None:
    """Returns the choice in conf/model/ of a checkpoint's Hub id (whisper_small), or None."""
    files = {name: OmegaConf.load(conf_dir() / "model" / f"{name}.yaml") for name in choices("model")}
    return next((name for name, file in files.items() if OmegaConf.select(file, "checkpoint") == checkpoint), None)


def tuning_settings(kind: str) -> tuple[LoraConfig, str | None]:
    """Returns the settings in conf/lora/ of a tuning method, and the base precision that it sets, or None."""
    loaded: Any = OmegaConf.to_container(OmegaConf.load(conf_dir() / "lora" / f"{kind}.yaml"))
    of_others = {field.name: None for field in fields(LoraConfig)}
    return LoraConfig(**{**of_others, **loaded.get("lora", loaded)}), loaded.get("model", {}).get("precision")


def parse_config(cfg: DictConfig) -> Config:
    """Checks a composed tree and turns it into plain dataclasses, with run_name and run_dir filled in.

    Needs Hydra initialized (inside a job or `load`): the name depends on the defaults.
    """
    config = _checked(cfg)
    name = config.run_name or _name(config)
    runs_dir = Path(config.runs_dir).expanduser()
    folder = Path(config.run_dir).expanduser() if config.run_dir else runs_dir / name
    return replace(config, runs_dir=str(runs_dir), run_name=name, run_dir=str(folder))


def _name(config: Config) -> str:
    """Makes the name of a run by what differs from the defaults of its experiment, model and method."""
    chosen = {
        "experiment": config.experiment_name, "model": f"whisper_{config.model.name}", "lora": config.lora.kind,
    }  # fmt: skip
    known = tuple(f"{group}={name}" for group, name in chosen.items() if name in choices(group))
    return run_name(asdict(config), usual=_defaults(str(conf_dir()), known))


def soup_members(config: Config) -> list[Config]:
    """Returns the settings of the runs whose adapters `training.soup` averages, by seed from `seed` on.

    Each is an ordinary run beside this one, with the name that it would have alone; under a given run_name that and its
    seed.
    """
    given = config.run_name != _name(config)
    found = []
    for seed in range(config.seed, config.seed + config.training.soup):
        alone = replace(
            config, seed=seed, training=replace(config.training, soup=1), eval=replace(config.eval, after=False)
        )
        name = f"{config.run_name}-seed{seed}" if given else _name(alone)
        found.append(replace(alone, run_name=name, run_dir=str(config.run.with_name(name))))
    return found


@cache
def _defaults(conf: str, known: tuple[str, ...]) -> dict[str, Any]:
    """Returns the settings of folder `conf` under these choices as nested dictionaries, which nobody may change."""
    return asdict(_checked(compose("config", list(known))))


def _checked(cfg: DictConfig) -> Config:
    """Returns the tree as dataclasses.

    Without run_name it stays empty until all settings have been checked.
    """
    named = OmegaConf.merge(cfg, {"run_name": cfg.run_name or "", "run_dir": cfg.run_dir or ""})
    config: Config = OmegaConf.to_object(OmegaConf.merge(_typed(), named))  # type: ignore[assignment]
    return config


@cache
def _typed() -> DictConfig:
    """Returns the types of all settings; of a tuning method those of the others are None."""
    of_other_kinds = {"lora": {field.name: None for field in fields(LoraConfig) if field.name != "kind"}}
    typed: DictConfig = OmegaConf.merge(OmegaConf.structured(Config), of_other_kinds)  # type: ignore[assignment]
    return typed


def to_dict(config: Config) -> dict[str, Any]:
    """Returns the settings as nested dictionaries, as recorded in train/config.yaml."""
    return asdict(config)


def from_dict(settings: Mapping[str, Any]) -> Config:
    """Inverts `to_dict`; values are taken literally, also one that contains an OmegaConf interpolation."""
    values: dict[str, Any] = {}
    for field in fields(Config):
        value = settings[field.name]
        values[field.name] = field.type(**value) if isinstance(field.type, type) and is_dataclass(field.type) else value
    return Config(**values)


def load(overrides: Sequence[str] = ()) -> Config:
    """Composes the settings as the command line does. Raises ConfigError for any invalid one."""
    check_overrides(overrides)
    try:
        if GlobalHydra.instance().is_initialized():  # within a job of Hydra's
            return parse_config(compose("config", list(overrides)))
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            return parse_config(compose("config", list(overrides)))
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain_hydra_error(error, overrides)) from error


def job_overrides() -> list[str]:
    """Returns the overrides of the command line, in a sweep those of the job; none outside of Hydra."""
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def check_overrides(overrides: Sequence[str]) -> None:
    """Raises ConfigError for overrides that Hydra itself does not reject.

    These are overrides without a name before the =, and values that are no file name of conf/.
    """
    groups = {folder.name for folder in conf_dir().iterdir() if folder.is_dir()}
    for override in overrides:
        group, _, value = override.lstrip("+~").partition("=")
        if "=" in override and not group.strip("~ "):
            raise ConfigError(f"{override}: must be setting=value, for instance data.hours=1; see --help")
        if (group in groups or "/" in group) and _parses(override):  # hydra/launcher is a group too
            chosen = OverridesParser.create().parse_override(override).value()
            names = chosen if isinstance(chosen, list) else [chosen]
            if "=" in override and not all(isinstance(name, str | Sweep) and "\0" not in str(name) for name in names):
                raise ConfigError(f"{group}: {value} is none of {_choices(group)}")


def _choices(group: str) -> str:
    if not (conf_dir() / group).is_dir():
        return "those of Hydra and its plugins"
    return ", ".join(choices(group))


def explain_hydra_error(error: BaseException, overrides: Sequence[str]) -> str:
    """Rewrites an error of Hydra or OmegaConf as `name: rule, value; way out`."""
    text = str(error)
    full_key = re.search(r"full_key: (\S+)", text)
    unknown = re.search(r"Could not override '([^']+)'", text) or (full_key if "not in" in text else None)
    if unknown:
        group, _, name = unknown[1].partition(".")
        if group == "lora" and name in LoraConfig.__dataclass_fields__:
            kind = next((each[5:] for each in reversed(overrides) if each.startswith("lora=")), "qv")
            return unknown_lora_key(name, kind)
        if group == "hydra":
            return f"{unknown[1]}: no setting of Hydra or the launcher; +{unknown[1]}=... adds it"
        if unknown[1] in RENAMED:
            return _renamed(unknown[1])
        near = get_close_matches(unknown[1], _all_keys(), n=1)
        return f"{unknown[1]}: no such setting; " + (f"did you mean {near[0]}?" if near else "--cfg job prints all")
    if launcher := re.search(r"Could not find 'hydra/launcher/([^']+)'", text):
        extra = {"ray": "ray", "submitit_slurm": "slurm", "submitit_local": "slurm"}.get(launcher[1])
        if extra is None:
            return f"hydra/launcher: {launcher[1]} is none of basic, ray, submitit_slurm, submitit_local"
        return f"hydra/launcher: needs {launcher[1]}, which is not installed; {to_install(extra)}"
    if choice := re.search(r"Could not find '([^'/]+)/([^']+)'", text):
        if choice[1] == "lora" and choice[2] == "prefix":
            return f"lora: {PREFIX}"
        return f"{choice[1]}: {choice[2]} is none of {_choices(choice[1])}"
    if absent := re.match(r"Could not delete .*?'([^']*)'", text):
        return f"~{absent[1]}: no such setting to remove; --cfg job prints all"
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals and (f"'{override}'" in text or not _parses(override)):
            return f"{override or repr(override)}: must be setting=value, for instance data.hours=1; see --help"
        misread = full_key and full_key[1] == key and ("Cannot convert" in text or "nterpolation" in text)
        if equals and (misread or override in text or not _parses(override)):
            literal = shlex.quote(f"{key}={quote_override(value)}")
            sweep = "; to try several values: -m" if "Ambiguous" in text else ""
            return f"{key}: {value} has characters with a meaning in Hydra's grammar; quote it: {literal}{sweep}"
    if full_key and "missing mandatory value" in text:
        return f"{full_key[1]}: has no value; give it one: {full_key[1]}=..."
    if full_key and "is not a ListConfig" in text:
        return f"{full_key[1]}: must be a list, for instance '{full_key[1]}=[a,b]'"
    return " ".join(f"{full_key[1]}: {text.splitlines()[0]}".split() if full_key else f"command line: {text}".split())


def _renamed(key: str) -> str:
    """Returns the error for a setting's former name, with the current one."""
    new = RENAMED[key]
    values = ", ".join(f"{to} for {str(old).lower()}" for old, to in RENAMED_VALUES.get(new, {}).items())
    return f"{key}: was renamed to {new}{f' ({values})' if values else ''}; write {new}=..."


def _parses(override: str) -> bool:
    try:
        OverridesParser.create().parse_override(override)
    except HydraException:
        return False
    return True


def fixed_overrides(overrides: Sequence[str]) -> list[str]:
    """Returns those of a sweep's overrides that are the same for every job."""
    parser = OverridesParser.create()
    return [each for each in overrides if _parses(each) and not parser.parse_override(each).is_sweep_override()]


def quote_override(value: str) -> str:
    """Quotes `value` so that Hydra's grammar takes it literally. The Makefile does the same with sed."""
    # OmegaConf would interpolate ${; then Hydra unescapes backslashes, but only before a quote or at the end.
    inner = re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    inner = re.sub(r'(\\*)("|$)', lambda end: end[1] * 2 + end[2].replace('"', '\\"'), inner)
    return f'"{inner}"'


def _all_keys() -> list[str]:
    keys = ["experiment"]
    for name, field in Config.__dataclass_fields__.items():
        keys += [name, *(f"{name}.{key}" for key in getattr(field.type, "__dataclass_fields__", ()))]
    return keys
