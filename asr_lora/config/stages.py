"""Branches of the tree of settings: hardware and the stages.

Values are in conf/, the tree is in compose.py.
"""

import re
from dataclasses import dataclass

from asr_lora.runtime.errors import ConfigError, check, check_choice, check_locale
from asr_lora.speech.limits import CONTEXTS, MAX_SECONDS, NORMALIZERS

EXPORTS = ("hf", "ct2", "ct2-int8", "ct2-int8_float16", "ggml", "ggml-q8_0", "ggml-q5_0")
LONG_FORMS = ("vad", "sequential", "previous_text")  # of transcribing long recordings
TOOLS = {"faster_whisper": ("ct2", False), "faster_whisper_vad": ("ct2", True), "whisper_cpp": ("ggml", False)}
# other tools at their defaults: format, and whether they cut by their own VAD
MOST_MINUTES = 180  # of a built recording, 3 hours: 0.7 GB as float samples
NO_ONNX = (
    "export.formats: onnx is not made, since optimum-onnx 0.1 needs transformers before 4.58 and this needs 5; export "
    "hf, and convert that in a separate environment with optimum"
)


@dataclass
class PrepareConfig:
    audit: bool
    audit_decode: int | None
    shards: bool
    shards_dir: str | None

    def __post_init__(self) -> None:
        decoded = self.audit_decode
        holds = decoded is None or (self.audit and decoded >= 0)
        check("prepare.audit_decode", decoded, "at least 0, and with prepare.audit=true", holds)


@dataclass
class TranscribeConfig:
    out: str
    formats: list[str]
    language: str | None
    max_segment_seconds: float
    long_form: str
    mixed_batches: bool
    base_model: bool
    words: bool
    prompt: str | None
    hotwords: list[str]

    def __post_init__(self) -> None:
        for name in self.formats:
            check_choice("transcribe.formats", name, ("txt", "srt", "vtt", "json"))
        check("transcribe.formats", self.formats, "at least one", bool(self.formats))
        fits = 1 <= self.max_segment_seconds <= MAX_SECONDS
        check_choice("transcribe.long_form", self.long_form, LONG_FORMS)
        both = self.mixed_batches and self.long_form != "vad"
        check(
            "transcribe.mixed_batches",
            self.mixed_batches,
            f"false with transcribe.long_form={self.long_form}",
            not both,
        )
        timed = not self.words or (self.long_form == "vad" and not self.mixed_batches)
        check("transcribe.words", self.words, "false but with transcribe.long_form=vad, without mixed_batches", timed)
        check("transcribe.max_segment_seconds", self.max_segment_seconds, f"1 to {MAX_SECONDS:g} (seconds)", fits)


@dataclass
class LabelConfig:
    source: str | None
    split: str | None
    part: str | None
    out: str | None
    writer: str
    base: str | None
    agree: str
    max_cer: float | None
    max_wer: float | None
    text_cer: list[float]
    no_speech: float | None
    language_share: float | None
    pace: bool
    max_repeats: int | None

    def __post_init__(self) -> None:
        check("label.source", repr(self.source), "a path or a name", self.source != "")
        named = self.split is None or (self.split != "" and "/" not in self.split)
        check("label.split", repr(self.split), "the name of a split", named)
        number, parts = self.numbers or (1, 1)
        check("label.part", repr(self.part), "2/8, the second of eight parts, or null", 1 <= number <= parts)
        check_choice("label.writer", self.writer, ("run", "base"))
        check_choice("label.agree", self.agree, ("base", "perturbed", "none"))
        for name in ("max_cer", "max_wer", "no_speech", "language_share"):
            value = getattr(self, name)
            check(f"label.{name}", value, "a share within 0 to 1, or null", value is None or 0 <= value <= 1)
        near_far = len(self.text_cer) == 2 and 0 <= self.text_cer[0] <= self.text_cer[1]
        check("label.text_cer", self.text_cer, "two shares of at least 0, the lesser first", near_far)
        times = self.max_repeats
        check("label.max_repeats", times, "at least 1, or null for no limit", times is None or times >= 1)

    @property
    def numbers(self) -> tuple[int, int] | None:
        """Which part this process labels, and of how many; None: all."""
        if self.part is None:
            return None
        named = re.fullmatch(r"(\d{1,5})/(\d{1,5})", self.part)
        return (int(named[1]), int(named[2])) if named else (0, 0)


@dataclass
class SelfTrainConfig:
    rounds: int
    weight: float

    def __post_init__(self) -> None:
        check("self_train.rounds", self.rounds, "at least 1", self.rounds >= 1)
        check("self_train.weight", self.weight, "more than 0, up to 100", 0 < self.weight <= 100)


@dataclass
class CorrectConfig:
    source: str | None
    out: str | None
    random_share: float
    lease_minutes: float

    def __post_init__(self) -> None:
        for name in ("source", "out"):
            check(f"correct.{name}", repr(getattr(self, name)), "a path, or null", getattr(self, name) != "")
        check("correct.random_share", self.random_share, "a share within 0 to 1", 0 <= self.random_share <= 1)
        check("correct.lease_minutes", self.lease_minutes, "0.1 to 1440 (a day)", 0.1 <= self.lease_minutes <= 1440)


@dataclass
class ExportConfig:
    formats: list[str]
    clips: int | None
    wer_tolerance: float
    short_margin: float | None
    long_minutes: float | None
    out: str | None
    combine: str
    push: str | None
    push_format: str
    private: bool
    dry_run: bool

    def __post_init__(self) -> None:
        for name in self.formats:
            if name == "onnx":
                raise ConfigError(NO_ONNX)
            check_choice("export.formats", name, EXPORTS)
        twice = len(set(self.formats)) < len(self.formats)
        check("export.formats", self.formats, "each of them once", not twice)
        check("export.clips", self.clips, "at least 1, or null for all", self.clips is None or self.clips >= 1)
        check(
            "export.wer_tolerance", self.wer_tolerance, "a share in [0, 1), such as 0.03", 0 <= self.wer_tolerance < 1
        )
        margin = self.short_margin
        fits = margin is None or 0 <= margin <= MAX_SECONDS
        check("export.short_margin", margin, "within 0 to 30 s, or null for no short contexts", fits)
        minutes = self.long_minutes
        fits = minutes is None or 0.5 <= minutes <= MOST_MINUTES
        check("export.long_minutes", minutes, f"0.5 to {MOST_MINUTES}, or null for no long recording", fits)
        check_choice("export.combine", self.combine, ("cat", "svd"))
        named = self.push is None or re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", self.push, re.ASCII) is not None
        check("export.push", self.push, "owner/name", named)
        check_choice("export.push_format", self.push_format, ("adapter", *self.formats))


@dataclass
class RecordConfig:
    prompts: str | None
    out: str

    def __post_init__(self) -> None:
        check("record.prompts", repr(self.prompts), "a file of sentences", self.prompts != "")
        check("record.out", repr(self.out), "a folder", self.out.strip() != "")


@dataclass
class AppConfig:
    host: str
    port: int
    max_minutes: float
    max_megabytes: int
    max_queue: int
    keep_minutes: float
    clips: int

    def __post_init__(self) -> None:
        check("app.host", repr(self.host), "a name or address of this machine", self.host.strip() != "")
        check("app.port", self.port, "1 to 65535", 1 <= self.port <= 65_535)
        for name in ("max_minutes", "keep_minutes"):
            value = getattr(self, name)
            check(f"app.{name}", value, "more than 0, up to 1440 (a day)", 0 < value <= 1440)
        for name, least in (("max_megabytes", 1), ("max_queue", 1), ("clips", 0)):
            check(f"app.{name}", getattr(self, name), f"at least {least}", getattr(self, name) >= least)


@dataclass
class HardwareConfig:
    device: str
    autocast: str
    micro_batch: int | None
    gradient_checkpointing: bool | None
    workers: int | None
    decode_batch: int | None
    memory_gb: float | None
    tflops: dict[str, float]
    dollars_per_hour: float | None
    price_source: str | None

    def __post_init__(self) -> None:
        check_choice("hardware.device", self.device, ("auto", "cpu", "cuda", "mps"))
        check_choice("hardware.autocast", self.autocast, ("auto", "fp16", "bf16", "none"))
        for name, least in (("micro_batch", 1), ("workers", 0), ("decode_batch", 1)):
            value = getattr(self, name)
            check(f"hardware.{name}", value, f"at least {least}", value is None or value >= least)
        memory, price = self.memory_gb, self.dollars_per_hour
        check("hardware.memory_gb", memory, "more than 0 (GB)", memory is None or memory > 0)
        check("hardware.dollars_per_hour", price, "at least 0", price is None or price >= 0)
        for precision, rate in self.tflops.items():
            check(f"hardware.tflops.{precision}", rate, "more than 0 (TFLOP/s)", rate > 0)


@dataclass
class SearchConfig:
    """`space` has settings and their values in Hydra's grammar of sweeps: `lora.r=choice(4,8)`."""

    trials: int
    max_hours: float | None
    startup_trials: int
    warmup_share: float
    space: list[str]

    def __post_init__(self) -> None:
        check("search.trials", self.trials, "at least 1", self.trials >= 1)
        hours = self.max_hours
        check("search.max_hours", hours, "more than 0, or null for no limit", hours is None or hours > 0)
        check("search.startup_trials", self.startup_trials, "at least 0", self.startup_trials >= 0)
        check("search.warmup_share", self.warmup_share, "a share in [0, 1]", 0 <= self.warmup_share <= 1)


@dataclass
class PlanConfig:
    calibrate: bool
    clip_seconds: float

    def __post_init__(self) -> None:
        mean = self.clip_seconds
        check("plan.clip_seconds", mean, f"0.1 to {MAX_SECONDS:g} (seconds)", 0.1 <= mean <= MAX_SECONDS)


@dataclass
class BaselineConfig:
    models: list[str]
    clips: int | None

    def __post_init__(self) -> None:
        count = len(self.models)
        check("baseline.models", count, "1 to 10, as many as a page can show", 1 <= count <= 10)
        check("baseline.models", self.models, "each a Hub id or a path", all(name.strip() for name in self.models))
        check("baseline.clips", self.clips, "at least 1, or null for all", self.clips is None or self.clips >= 1)


@dataclass
class EvalSetConfig:
    """An item of eval.sets. Its defaults are here, as conf/ cannot have any for items: the split is test.

    `language` is the corpus's locale, `token` the language token for Whisper where it has none for that locale. With
    `long` it is a set of long recordings: those that the corpus has segments of, or with `minutes` recordings of about
    that length, joined of its clips in `orders` orders.
    """

    source: str
    language: str | None = None
    name: str | None = None
    split: str = "test"
    token: str | None = None
    long: bool = False
    minutes: float | None = None
    orders: int = 1

    def __post_init__(self) -> None:
        check("eval.sets.source", repr(self.source), "a path, silence or noise", self.source != "")
        folder = self.name is None or re.fullmatch(r"\w[\w.-]*", self.name) is not None
        check("eval.sets.name", repr(self.name), "letters, digits, _, . and - alone, a letter first", folder)
        check_choice("eval.sets.split", self.split, ("train", "dev", "test"))
        fits = self.minutes is None or (self.long and 0.5 <= self.minutes <= MOST_MINUTES)
        check("eval.sets.minutes", self.minutes, f"0.5 to {MOST_MINUTES:g}, with long=true", fits)
        joined = self.orders == 1 or (self.orders > 1 and self.minutes is not None)
        check("eval.sets.orders", self.orders, "at least 1; more than 1 with minutes=...", joined)
        if self.language is not None:
            check_locale("eval.sets.language", self.language)


@dataclass
class EvalModelConfig:
    """An item of eval.models: a `model` of any kind, or a table of `hypotheses` of one that cannot be run here.

    `name` is its name in tables, `base` the checkpoint of an adapter, where its settings do not say it. Behind a URL,
    `served` is the name of the model there, and `key` the environment variable that holds the server's key.
    """

    model: str | None = None
    hypotheses: str | None = None
    name: str | None = None
    base: str | None = None
    served: str | None = None
    key: str | None = None

    def __post_init__(self) -> None:
        place = self.hypotheses if self.model is None else self.model
        one = bool(place) and (self.model is None or self.hypotheses is None)
        check("eval.models", repr(place), "{model: ...} or {hypotheses: ...}, one of the two", one)
        check("eval.models.base", self.base, "left out with hypotheses", self.base is None or self.hypotheses is None)
        served = (self.served is None and self.key is None) or "://" in (self.model or "")
        check("eval.models", self.served or self.key, "without served and key, unless model is a URL", served)
        variable = self.key is None or re.fullmatch(r"[A-Za-z_]\w*", self.key, re.ASCII) is not None
        check("eval.models.key", "***", "the name of an environment variable, never the key itself", variable)


@dataclass
class EvalConfig:
    split: str
    limit: int | None
    after: bool
    normalizer: str
    numbers: bool
    sets: list[EvalSetConfig]
    max_regression: float | None
    strict: bool
    strength: float
    strengths: list[float]
    contexts: list[str]
    margins: list[float]
    long_form: list[str]
    prompt: str | None
    average: int | None
    models: list[EvalModelConfig]
    against: str | None
    out: str | None

    def __post_init__(self) -> None:
        # In recorded settings they are plain dictionaries.
        self.models = [each if isinstance(each, EvalModelConfig) else EvalModelConfig(**each) for each in self.models]
        check("eval.models", len(self.models), "at most 10, as many as a page can show", len(self.models) <= 10)
        self.sets = [each if isinstance(each, EvalSetConfig) else EvalSetConfig(**each) for each in self.sets]
        most = self.max_regression
        check("eval.max_regression", most, "a share of at least 0, such as 0.01", most is None or 0 <= most < 1)
        for name, strengths in (("strength", [self.strength]), ("strengths", self.strengths)):
            check(f"eval.{name}", strengths, "within 0 (base model) to 2", all(0 <= each <= 2 for each in strengths))
        for context in self.contexts:
            check_choice("eval.contexts", context, CONTEXTS)
        check(
            "eval.margins", self.margins, "at least 0 (seconds)", all(0 <= each <= MAX_SECONDS for each in self.margins)
        )
        for way in self.long_form:
            check_choice("eval.long_form", way, (*LONG_FORMS, *TOOLS))
        once = 0 < len(self.long_form) == len(set(self.long_form))
        check("eval.long_form", self.long_form, "at least one, each of them once", once)
        check("eval.average", self.average, "at least 1", self.average is None or self.average >= 1)
        check_choice("eval.split", self.split, ("test", "dev"))
        check("eval.limit", self.limit, "at least 1, or null for all", self.limit is None or self.limit >= 1)
        check_choice("eval.normalizer", self.normalizer, NORMALIZERS)


@dataclass
class ReportConfig:
    runs: str | None
    license: str | None
