"""Branches of the tree of settings: data, model, lora, training, decoding, divergence.

The tree is in compose.py.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from asr_lora.config.known_sets import HUB, source_language
from asr_lora.runtime.errors import ConfigError, check, check_choice, check_locale, check_name, check_range
from asr_lora.speech.limits import AUGMENTATIONS, CONTEXTS, MAX_SECONDS, NORMALIZERS

SPLIT_NAMES = ("train", "dev", "test", "none")  # what data.splits takes; none: left out
FETCHED = ("mdc:", HUB, "shards:")  # prefixes of sources that are names, not paths
COLUMNS = ("path", "text", "speaker", "start", "end", "duration", "split", "language")  # of a user's own table


@dataclass
class SourceConfig:
    """An item of data.sources. Its defaults are here, as conf/ cannot have any for items: once an epoch.

    `language` is its locale (None: data.language), `token` the language token for Whisper where it has none for that
    locale, or to give all rows the same.
    """

    path: str
    weight: float = 1.0
    language: str | None = None
    token: str | None = None

    def __post_init__(self) -> None:
        check("data.sources.path", repr(self.path), "a path or a name", self.path != "")
        check("data.sources.weight", self.weight, "more than 0, up to 100", 0 < self.weight <= 100)
        if self.language is not None:
            check_locale("data.sources.language", self.language)


@dataclass
class DataConfig:
    source: str | None
    sources: list[SourceConfig]
    search_dir: str
    columns: dict[str, str] | None
    splits: dict[str, str] | None
    language: str
    hours: float | None
    seed: int
    dev_clips: int
    train_split: str
    heldout_share: float
    exclude_overlap: str | None
    exclude_ids: str | None
    streaming: bool
    shuffle_buffer: int
    refine_cues: bool
    augment: str | None
    augment_labels: str | None

    def __post_init__(self) -> None:
        # In recorded settings they are plain dictionaries.
        self.sources = [each if isinstance(each, SourceConfig) else SourceConfig(**each) for each in self.sources]
        self.sources = [self._with_language(each) for each in self.sources]
        both = bool(self.sources) and self.source is not None
        check("data.sources", "data.source too", "the only one of the two", not both)
        for name in self.columns or ():
            check_choice("data.columns", name, COLUMNS)
        self.splits = None if self.splits is None else {str(name): split for name, split in self.splits.items()}
        for name, split in (self.splits or {}).items():
            check_choice(f"data.splits.{name}", split, SPLIT_NAMES)
        check_choice("data.train_split", self.train_split, ("train", "validated"))
        check("data.heldout_share", self.heldout_share, "a share in (0, 0.4]", 0 < self.heldout_share <= 0.4)
        check("data.source", repr(self.source), "a path, or null to look in data.search_dir", self.source != "")
        check_locale("data.language", self.language)
        check(
            "data.hours",
            self.hours,
            "more than 0, or null for all there is",
            self.hours is None or 0 < self.hours < float("inf"),
        )
        check("data.dev_clips", self.dev_clips, "at least 1", self.dev_clips >= 1)
        check("data.shuffle_buffer", self.shuffle_buffer, "at least 1 (rows)", self.shuffle_buffer >= 1)
        if self.streaming:
            self._check_streaming()
        for name in ("augment", "augment_labels"):
            if (kind := getattr(self, name)) is not None:
                check_choice(f"data.{name}", kind, AUGMENTATIONS)

    def _with_language(self, source: SourceConfig) -> SourceConfig:
        """Returns a source that names no language with that of a known data set, where it is not the run's."""
        own = source_language(source.path, self.language)
        return source if source.language or own == self.language else replace(source, language=own)

    def _check_streaming(self) -> None:
        """Raises ConfigError for settings that need a list of all clips, which a stream does not have."""
        one = self.source is not None and not self.sources
        check("data.source", self.source, "one data set, hf:<name> or a path, under data.streaming=true", one)
        rule = "null under data.streaming=true, where no clips are drawn (training.max_steps sets the length)"
        check("data.hours", self.hours, rule, self.hours is None)
        check("data.exclude_ids", self.exclude_ids, "null under data.streaming=true", self.exclude_ids is None)
        check("data.refine_cues", self.refine_cues, "false under data.streaming=true", not self.refine_cues)


def check_rate(key: str, rate: Any) -> None:
    """Raises ConfigError for what is neither a learning rate nor auto."""
    number = isinstance(rate, int | float) and not isinstance(rate, bool) and 0 < rate < float("inf")
    check(key, rate, "more than 0, or auto", number or rate == "auto")


@dataclass
class ModelConfig:
    name: str
    checkpoint: str
    language: str | None
    task: str
    precision: str
    learning_rate: Any  # a number, or auto

    def __post_init__(self) -> None:
        check_name("model.name", self.name)
        check_rate("model.learning_rate", self.learning_rate)
        check_choice("model.task", self.task, ("transcribe", "translate"))
        check_choice("model.precision", self.precision, ("auto", "int8", "nf4", "fp16", "bf16", "fp32"))

    def check_scored(self) -> None:
        """Raises ConfigError for translations: dev and eval count errors of words, and no measure of translation."""
        if self.task != "transcribe":
            raise ConfigError(
                f"model.task: must be transcribe to train and to score, got {self.task}: error rates do not measure "
                "translations; train with model.task=transcribe; the base model translates recordings into English, "
                "asr-lora transcribe audio=... transcribe.base_model=true model.task=translate"
            )


@dataclass
class TrainingConfig:
    max_steps: int | None
    batch_size: int
    learning_rate: Any  # a number, or auto
    warmup_ratio: float
    weight_decay: float
    max_grad_norm: float
    context: str
    context_margin: list[float]
    context_multiple: float
    plain_share: float
    soup: int
    window_share: float
    window_single: float
    window_timestamps: float
    window_prompts: float
    window_pauses: list[float]
    no_speech_share: float
    spec_augment: bool
    mask_count: int
    mask_bins: int
    mask_seconds: float
    mask_share: float
    save_steps: int
    max_hours: float | None
    keep_adapters: int
    eval_steps: int | None
    dev_share: float
    dev_normalizer: str | None
    patience: int | None

    def __post_init__(self) -> None:
        for name in ("max_steps", "batch_size", "soup", "save_steps", "eval_steps", "patience"):
            value = getattr(self, name)
            check(f"training.{name}", value, "at least 1", value is None or value >= 1)
        hours = self.max_hours
        check("training.max_hours", hours, "more than 0, or null for no limit", hours is None or hours > 0)
        check("training.keep_adapters", self.keep_adapters, "at least 0", self.keep_adapters >= 0)
        check_rate("training.learning_rate", self.learning_rate)
        check("training.warmup_ratio", self.warmup_ratio, "a share in [0, 1)", 0 <= self.warmup_ratio < 1)
        check("training.weight_decay", self.weight_decay, "at least 0", 0 <= self.weight_decay < float("inf"))
        check("training.max_grad_norm", self.max_grad_norm, "more than 0", self.max_grad_norm > 0)
        check("training.dev_share", self.dev_share, "a share in (0, 1]", 0 < self.dev_share <= 1)
        if self.dev_normalizer is not None:
            check_choice("training.dev_normalizer", self.dev_normalizer, NORMALIZERS)
        check_choice("training.context", self.context, ("dynamic", "full", "windows"))
        check_range("training.context_margin", self.context_margin, MAX_SECONDS)
        check_range("training.window_pauses", self.window_pauses, MAX_SECONDS)
        whole = (
            0 < self.context_multiple <= MAX_SECONDS
            and abs(self.context_multiple * 50 - round(self.context_multiple * 50)) < 1e-6
        )
        check(
            "training.context_multiple",
            self.context_multiple,
            "a multiple of 0.02 s, Whisper's position, up to 30",
            whole,
        )
        check("training.mask_count", self.mask_count, "at least 0", self.mask_count >= 0)
        check("training.mask_bins", self.mask_bins, "within 0 to 80, the mel bins", 0 <= self.mask_bins <= 80)
        check("training.mask_seconds", self.mask_seconds, "within 0 to 30", 0 <= self.mask_seconds <= MAX_SECONDS)
        shares = ("window_share", "window_single", "window_timestamps", "window_prompts", "no_speech_share")
        for name in ("plain_share", "mask_share", *shares):
            check(f"training.{name}", getattr(self, name), "a share in [0, 1]", 0 <= getattr(self, name) <= 1)


@dataclass
class DecodingConfig:
    num_beams: int
    max_new_tokens: int | None
    tokens_per_second: float
    context: str
    context_margin: float
    fallback: bool

    def __post_init__(self) -> None:
        check("decoding.num_beams", self.num_beams, "at least 1", self.num_beams >= 1)
        limit = self.max_new_tokens
        check("decoding.max_new_tokens", limit, "at least 1", limit is None or limit >= 1)
        check("decoding.tokens_per_second", self.tokens_per_second, "more than 0", self.tokens_per_second > 0)
        check_choice("decoding.context", self.context, CONTEXTS)
        check(
            "decoding.context_margin",
            self.context_margin,
            f"0 to {MAX_SECONDS:g} (seconds)",
            0 <= self.context_margin <= MAX_SECONDS,
        )


@dataclass
class DivergenceConfig:
    on_bad_step: str
    loss_spike: float | None
    max_bad_steps: int
    on_collapse: str
    lr_factor: float

    def __post_init__(self) -> None:
        check_choice("divergence.on_bad_step", self.on_bad_step, ("skip", "rollback", "stop"))
        check(
            "divergence.loss_spike",
            self.loss_spike,
            "more than 0 (nats per token), or null",
            self.loss_spike is None or self.loss_spike > 0,
        )
        check("divergence.max_bad_steps", self.max_bad_steps, "at least 2", self.max_bad_steps >= 2)
        check_choice("divergence.on_collapse", self.on_collapse, ("rollback", "stop", "ignore"))
        check("divergence.lr_factor", self.lr_factor, "a share in (0, 1)", 0 < self.lr_factor < 1)


_LORA = ("r", "scaling", "dropout", "target_modules")
LORA_KEYS: Mapping[str, tuple[str, ...]] = {  # of every method: the keys of conf/lora/<kind>.yaml beside `kind`
    "qv": _LORA,
    "all_linear": _LORA,
    "encoder": _LORA,
    "decoder": _LORA,
    "rslora": ("r", "alpha", "dropout", "target_modules"),
    "dora": _LORA,
    "pissa": _LORA,
    "lora_plus": (*_LORA, "lr_ratio"),
    "adalora": (*_LORA, "tinit", "tfinal", "orth_reg_weight"),
    "qlora": (*_LORA, "double_quant"),
    "ia3": ("target_modules", "feedforward_modules"),
    "bitfit": (),
    "full": ("optim",),
}
# model.precision=auto by type of device: on a GPU as published; on a CPU int8 takes several times as long.
AUTO: Mapping[str, str] = {"cuda": "int8", "mps": "fp32", "cpu": "fp32"}
DEVICES = {"cuda": "GPU", "mps": "Apple GPU", "cpu": "CPU"}
WHOLE = ("bitfit", "full")  # train the base's own weights: a model is saved, no adapter
UNSCALABLE = ("dora", "adalora", "ia3")  # by eval.strength
SCALABLE = tuple(kind for kind in LORA_KEYS if kind not in UNSCALABLE)
PREFIX = (
    "peft 0.21 cannot put prefixes on Whisper: it needs input_ids or inputs_embeds, where Whisper takes "
    "input_features; ia3 is as small"
)


@dataclass
class LoraConfig:
    """The tuning method, `kind`. It has the settings of LORA_KEYS; the others are None, and not in conf/."""

    kind: str
    r: int | None
    scaling: float | None
    alpha: float | None
    dropout: float | None
    target_modules: list[str] | None
    feedforward_modules: list[str] | None
    lr_ratio: float | None
    tinit: float | None
    tfinal: float | None
    orth_reg_weight: float | None
    double_quant: bool | None
    optim: str | None

    def __post_init__(self) -> None:
        if self.kind == "prefix":
            raise ConfigError(f"lora.kind: {PREFIX}")
        check_choice("lora.kind", self.kind, LORA_KEYS)
        for name, value in asdict(self).items():
            if name != "kind" and value is not None and name not in LORA_KEYS[self.kind]:
                raise ConfigError(unknown_lora_key(name, self.kind))
            missing = name in LORA_KEYS[self.kind] and value is None
            check(f"lora.{name}", value, f"set under lora={self.kind}", not missing)
        check("lora.r", self.r, "at least 1", self.r is None or self.r >= 1)
        for name in ("scaling", "alpha", "lr_ratio"):
            value = getattr(self, name)
            check(f"lora.{name}", value, "more than 0", value is None or 0 < value < float("inf"))
        check("lora.dropout", self.dropout, "in [0, 1)", self.dropout is None or 0 <= self.dropout < 1)
        targets, inner = self.target_modules, self.feedforward_modules
        check("lora.target_modules", targets, "at least one module name", targets is None or bool(targets))
        within = inner is None or set(inner) <= set(targets or [])
        check("lora.feedforward_modules", inner, "some of lora.target_modules, or []", within)
        shares = [share for share in (self.tinit, self.tfinal) if share is not None]
        holds = all(share >= 0 for share in shares) and sum(shares) < 1
        check("lora.tinit and lora.tfinal", shares, "shares of the steps, together less than 1", holds)
        weight = self.orth_reg_weight
        check("lora.orth_reg_weight", weight, "at least 0", weight is None or 0 <= weight < float("inf"))
        if self.optim is not None:
            check_choice("lora.optim", self.optim, ("adamw", "adamw_8bit"))

    @property
    def whole(self) -> bool:
        """Whether training saves a whole model instead of an adapter."""
        return self.kind in WHOLE

    @property
    def memory(self) -> dict[str, Any]:
        """What memory depends on besides trainable parameters, with the names of asr_lora/model/cost.py."""
        return {"kind": self.kind, "eight_bit": self.optim == "adamw_8bit"}


def unknown_lora_key(name: str, kind: str) -> str:
    """Returns the error for a setting that this method does not have, with those that it has."""
    there = ", ".join(f"lora.{key}" for key in LORA_KEYS.get(kind, ())) or "none but its kind"
    return f"lora.{name}: is no setting of lora={kind}; it has {there}"


def resolve_precision(asked: str, device: str, begun: str | None = None) -> tuple[str, str]:
    """Resolves model.precision, `auto` included, on a type of device (cuda, mps or cpu).

    Returns it and a log line.
    `begun` is the precision that the run was started in, if it was: training resumes with those weights.
    """
    if asked != "auto":
        return asked, f"model.precision={asked}"
    new = f"{AUTO[device]} on this {DEVICES[device]}"
    if begun is None or begun == AUTO[device]:
        return AUTO[device], f"model.precision=auto: {new}"
    return begun, f"model.precision=auto: {begun}, as this run was started (a new one: {new})"


def check_base(kind: str, precision: str) -> None:
    """Raises ConfigError, with the reason, where a tuning method does not work on this precision.

    `auto` must work on every type of device: the same settings are valid on all machines.
    """
    if precision != "auto":
        if why := _unfit(kind, precision):
            raise ConfigError(f"model.precision: cannot be {precision} under lora={kind}: {why}")
        return
    for device, each in AUTO.items():
        if why := _unfit(kind, each):
            raise ConfigError(
                f"model.precision: cannot be auto, which is {each} on a {DEVICES[device]}, under lora={kind}: {why}"
            )


def _unfit(kind: str, precision: str) -> str | None:
    quantized = precision in ("int8", "nf4")
    if kind == "full" and precision != "fp32":
        lost = "has no gradients" if quantized else "loses steps smaller than it resolves"
        return f"a weight in {precision} {lost}; take fp32, and hardware.autocast for half-precision arithmetic"
    if kind == "pissa" and quantized:
        return f"it starts from singular vectors of the weights, and {precision} has none; take fp32, or fp16 on a GPU"
    if kind == "bitfit" and quantized:
        return f"the trainer accepts a base in {precision} only with an adapter; take fp32, or fp16 on a GPU"
    if kind == "dora" and precision == "int8":
        return "bitsandbytes loses the scales of an int8 weight once peft's DoRA has read it; take nf4, fp16 or fp32"
    if kind == "qlora" and precision != "nf4":
        return "QLoRA is a base in nf4; on another it is plain LoRA, lora=qv"
    return None
