"""The branches of the settings' tree: what each holds, and what its values must be. The tree is in compose.py."""

import re
from dataclasses import dataclass

from asr_lora.runtime.errors import check, check_choice, check_locale, check_range, check_word
from asr_lora.speech.audio import MAX_SECONDS
from asr_lora.speech.augment import KINDS
from asr_lora.speech.normalizer import NORMALIZERS

COLUMNS = ("path", "text", "speaker", "start", "end", "duration", "split")  # of a table of one's own


@dataclass
class SourceConfig:
    """An item of a list, which conf/ cannot give values to: what is not said is None, and once an epoch."""

    path: str
    weight: float = 1.0
    language: str | None = None

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
    language: str
    hours: float | None
    seed: int
    dev_clips: int
    train_split: str
    held_out: float
    exclude: str | None
    drop: str | None
    streaming: bool
    shuffle_buffer: int
    augment: str | None

    def __post_init__(self) -> None:
        # As recorded they are plain dictionaries.
        self.sources = [each if isinstance(each, SourceConfig) else SourceConfig(**each) for each in self.sources]
        both = bool(self.sources) and self.source is not None
        check("data.sources", "data.source too", "the only one of the two", not both)
        for name in self.columns or ():
            check_choice("data.columns", name, COLUMNS)
        check_choice("data.train_split", self.train_split, ("train", "validated"))
        check("data.held_out", self.held_out, "a share in (0, 0.4]", 0 < self.held_out <= 0.4)
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
        if self.augment is not None:
            check_choice("data.augment", self.augment, KINDS)

    def _check_streaming(self) -> None:
        """What needs a list of all clips, a stream cannot have."""
        one = self.source is not None and not self.sources
        check("data.source", self.source, "one data set, hf:<name> or a path, under data.streaming=true", one)
        rule = "null under data.streaming=true, where no clips are drawn (training.max_steps says how long it takes)"
        check("data.hours", self.hours, rule, self.hours is None)
        check("data.drop", self.drop, "null under data.streaming=true", self.drop is None)


@dataclass
class ModelConfig:
    name: str
    checkpoint: str
    language: str | None
    task: str
    precision: str

    def __post_init__(self) -> None:
        check_word("model.name", self.name)
        check_choice("model.task", self.task, ("transcribe", "translate"))
        check_choice("model.precision", self.precision, ("auto", "int8", "nf4", "fp16", "bf16", "fp32"))


@dataclass
class TrainingConfig:
    max_steps: int | None
    batch_size: int
    learning_rate: float
    warmup: float
    weight_decay: float
    max_grad_norm: float
    context: str
    margin: list[float]
    multiple: float
    long_share: float
    long_rows: int
    long_seconds: list[float]
    packed_single: float
    packed_timestamps: float
    spec_augment: bool
    mask_time_prob: float
    mask_feature_prob: float
    save_steps: int
    max_hours: float | None
    keep_adapters: int
    eval_steps: int | None
    dev_share: float
    dev_normalizer: str | None
    patience: int | None

    def __post_init__(self) -> None:
        for name in ("max_steps", "batch_size", "save_steps", "eval_steps", "patience"):
            value = getattr(self, name)
            check(f"training.{name}", value, "at least 1", value is None or value >= 1)
        hours = self.max_hours
        check("training.max_hours", hours, "more than 0, or null for no limit", hours is None or hours > 0)
        check("training.keep_adapters", self.keep_adapters, "at least 0", self.keep_adapters >= 0)
        check("training.learning_rate", self.learning_rate, "more than 0", 0 < self.learning_rate < float("inf"))
        check("training.warmup", self.warmup, "a share in [0, 1)", 0 <= self.warmup < 1)
        check("training.weight_decay", self.weight_decay, "at least 0", 0 <= self.weight_decay < float("inf"))
        check("training.max_grad_norm", self.max_grad_norm, "more than 0", self.max_grad_norm > 0)
        check("training.dev_share", self.dev_share, "a share in (0, 1]", 0 < self.dev_share <= 1)
        if self.dev_normalizer is not None:
            check_choice("training.dev_normalizer", self.dev_normalizer, NORMALIZERS)
        check_choice("training.context", self.context, ("dynamic", "full", "packed"))
        check_range("training.margin", self.margin, MAX_SECONDS)
        check_range("training.long_seconds", self.long_seconds, MAX_SECONDS)
        whole = 0 < self.multiple <= MAX_SECONDS and abs(self.multiple * 50 - round(self.multiple * 50)) < 1e-6
        check("training.multiple", self.multiple, "a multiple of 0.02 s, Whisper's position, up to 30", whole)
        check("training.long_rows", self.long_rows, "at least 1", self.long_rows >= 1)
        # Whisper's masks are 0.1 s long, and no context is shorter than one multiple.
        masks_fit = not self.spec_augment or self.multiple >= 0.1
        check("training.multiple", self.multiple, "at least 0.1 s under training.spec_augment", masks_fit)
        for name in ("long_share", "packed_single", "packed_timestamps", "mask_time_prob", "mask_feature_prob"):
            check(f"training.{name}", getattr(self, name), "a share in [0, 1]", 0 <= getattr(self, name) <= 1)


@dataclass
class DecodingConfig:
    num_beams: int
    max_new_tokens: int | None
    tokens_per_second: float
    context: str
    margin: float

    def __post_init__(self) -> None:
        check("decoding.num_beams", self.num_beams, "at least 1", self.num_beams >= 1)
        limit = self.max_new_tokens
        check("decoding.max_new_tokens", limit, "at least 1", limit is None or limit >= 1)
        check("decoding.tokens_per_second", self.tokens_per_second, "more than 0", self.tokens_per_second > 0)
        check_choice("decoding.context", self.context, ("auto", "full"))
        check("decoding.margin", self.margin, f"0 to {MAX_SECONDS:g} (seconds)", 0 <= self.margin <= MAX_SECONDS)


@dataclass
class HardwareConfig:
    device: str
    autocast: str
    micro_batch: int | None
    gradient_checkpointing: bool | None
    workers: int | None
    decode_batch: int | None
    memory: float | None
    rates: dict[str, float]
    dollars_per_hour: float | None
    price_source: str | None

    def __post_init__(self) -> None:
        check_choice("hardware.device", self.device, ("auto", "cpu", "cuda"))
        check_choice("hardware.autocast", self.autocast, ("auto", "fp16", "bf16", "none"))
        for name, least in (("micro_batch", 1), ("workers", 0), ("decode_batch", 1)):
            value = getattr(self, name)
            check(f"hardware.{name}", value, f"at least {least}", value is None or value >= least)
        memory, price = self.memory, self.dollars_per_hour
        check("hardware.memory", memory, "more than 0 (GB)", memory is None or memory > 0)
        check("hardware.dollars_per_hour", price, "at least 0", price is None or price >= 0)
        for precision, rate in self.rates.items():
            check(f"hardware.rates.{precision}", rate, "more than 0 (TFLOP/s)", rate > 0)


@dataclass
class SearchConfig:
    """`space` holds settings and their values in the words of Hydra's sweeps: `lora.r=choice(4,8)`."""

    trials: int
    max_hours: float | None
    startup: int
    warmup: float
    space: list[str]

    def __post_init__(self) -> None:
        check("search.trials", self.trials, "at least 1", self.trials >= 1)
        hours = self.max_hours
        check("search.max_hours", hours, "more than 0, or null for no limit", hours is None or hours > 0)
        check("search.startup", self.startup, "at least 0", self.startup >= 0)
        check("search.warmup", self.warmup, "a share in [0, 1]", 0 <= self.warmup <= 1)


@dataclass
class GuardConfig:
    bad_step: str
    spike: float | None
    in_a_row: int
    collapse: str
    lower: float

    def __post_init__(self) -> None:
        check_choice("guard.bad_step", self.bad_step, ("skip", "back", "stop"))
        check("guard.spike", self.spike, "more than 0 (nats per token), or null", self.spike is None or self.spike > 0)
        check("guard.in_a_row", self.in_a_row, "at least 2", self.in_a_row >= 2)
        check_choice("guard.collapse", self.collapse, ("back", "stop", "go_on"))
        check("guard.lower", self.lower, "a share in (0, 1)", 0 < self.lower < 1)


@dataclass
class PlanConfig:
    calibrate: bool
    clip_seconds: float

    def __post_init__(self) -> None:
        mean = self.clip_seconds
        check("plan.clip_seconds", mean, f"0.1 to {MAX_SECONDS:g} (seconds)", 0.1 <= mean <= MAX_SECONDS)


@dataclass
class EvalSet:
    """An item of a list, which conf/ cannot give values to: what is not said is None, and the split test.

    `language` is the corpus's locale, `token` the language that Whisper is told where it has no token for that one.
    """

    source: str
    language: str | None = None
    name: str | None = None
    split: str = "test"
    token: str | None = None

    def __post_init__(self) -> None:
        check("eval.sets.source", repr(self.source), "a path, silence or noise", self.source != "")
        folder = self.name is None or re.fullmatch(r"\w[\w.-]*", self.name) is not None
        check("eval.sets.name", repr(self.name), "letters, digits, _, . and - alone, a letter first", folder)
        check_choice("eval.sets.split", self.split, ("train", "dev", "test"))
        if self.language is not None:
            check_locale("eval.sets.language", self.language)


@dataclass
class EvalConfig:
    split: str
    limit: int | None
    after: bool
    normalizer: str
    numbers: bool
    sets: list[EvalSet]
    max_regression: float | None
    strict: bool
    strength: float
    strengths: list[float]
    average: int | None

    def __post_init__(self) -> None:
        # As recorded they are plain dictionaries.
        self.sets = [each if isinstance(each, EvalSet) else EvalSet(**each) for each in self.sets]
        most = self.max_regression
        check("eval.max_regression", most, "a share of at least 0, such as 0.01", most is None or 0 <= most < 1)
        for name, strengths in (("strength", [self.strength]), ("strengths", self.strengths)):
            check(f"eval.{name}", strengths, "within 0 (untouched) to 2", all(0 <= each <= 2 for each in strengths))
        check("eval.average", self.average, "at least 1", self.average is None or self.average >= 1)
        check_choice("eval.split", self.split, ("test", "dev"))
        check("eval.limit", self.limit, "at least 1, or null for all", self.limit is None or self.limit >= 1)
        check_choice("eval.normalizer", self.normalizer, NORMALIZERS)


@dataclass
class ReportConfig:
    runs: str | None
    license: str | None
