"""Types and rules of the settings of what uses a trained model: transcribe, export, app. Values are in conf/."""

import re
from dataclasses import dataclass

from asr_lora.runtime.errors import ChoiceError, check, check_choice
from asr_lora.speech.audio import MAX_SECONDS

EXPORTS = ("hf", "ct2", "ct2-int8", "ct2-int8_float16", "ggml", "ggml-q8_0", "ggml-q5_0")
NO_ONNX = (
    "export.formats: onnx is not made, since optimum-onnx 0.1 wants transformers before 4.58 and this needs 5; export "
    "hf, and convert that in an environment of optimum's own"
)


@dataclass
class TranscribeConfig:
    out: str
    formats: list[str]
    language: str | None
    longest: float
    windows: bool
    together: bool
    untouched: bool

    def __post_init__(self) -> None:
        for name in self.formats:
            check_choice("transcribe.formats", name, ("txt", "srt", "vtt", "json"))
        check("transcribe.formats", self.formats, "at least one", bool(self.formats))
        fits = 1 <= self.longest <= MAX_SECONDS
        check(
            "transcribe.together", self.together, "false under transcribe.windows", not (self.together and self.windows)
        )
        check("transcribe.longest", self.longest, f"1 to {MAX_SECONDS:g} (seconds)", fits)


@dataclass
class ExportConfig:
    formats: list[str]
    clips: int | None
    tolerance: float
    out: str | None
    combine: str
    push: str | None
    pushed: str
    private: bool
    dry_run: bool

    def __post_init__(self) -> None:
        for name in self.formats:
            if name == "onnx":
                raise ChoiceError(NO_ONNX)
            check_choice("export.formats", name, EXPORTS)
        twice = len(set(self.formats)) < len(self.formats)
        check("export.formats", self.formats, "each of them once", not twice)
        check("export.clips", self.clips, "at least 1, or null for all", self.clips is None or self.clips >= 1)
        check("export.tolerance", self.tolerance, "a share in [0, 1), such as 0.03", 0 <= self.tolerance < 1)
        check_choice("export.combine", self.combine, ("cat", "svd"))
        named = self.push is None or re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", self.push, re.ASCII) is not None
        check("export.push", self.push, "owner/name", named)
        check_choice("export.pushed", self.pushed, ("adapter", *self.formats))


@dataclass
class AppConfig:
    host: str
    port: int
    max_minutes: float
    max_megabytes: int
    max_waiting: int
    keep_minutes: float
    clips: int

    def __post_init__(self) -> None:
        check("app.host", repr(self.host), "a name or address of this machine", self.host.strip() != "")
        check("app.port", self.port, "1 to 65535", 1 <= self.port <= 65_535)
        for name in ("max_minutes", "keep_minutes"):
            value = getattr(self, name)
            check(f"app.{name}", value, "more than 0, up to 1440 (a day)", 0 < value <= 1440)
        for name, least in (("max_megabytes", 1), ("max_waiting", 1), ("clips", 0)):
            check(f"app.{name}", getattr(self, name), f"at least {least}", getattr(self, name) >= least)
