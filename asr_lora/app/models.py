"""The base model and the fine-tuned models of the page, and their transcripts of a recording.

Adapters share one base model in memory, which also decodes without them. For lora=bitfit and full there are two models.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from asr_lora.config.compose import Config
from asr_lora.config.stages import EvalConfig, TranscribeConfig
from asr_lora.data.manifest import Clip, missing_files, read_manifest
from asr_lora.decoding import transcriber
from asr_lora.decoding.generate import Segment
from asr_lora.decoding.transcriber import Transcriber
from asr_lora.model import adapter_folder
from asr_lora.model.hardware import Hardware
from asr_lora.model.pretrained import language_token, language_tokens
from asr_lora.runs import folder as run
from asr_lora.runs.finding import settings_file
from asr_lora.runtime.errors import ConfigError, ExternalError
from asr_lora.speech import audio
from asr_lora.speech.activity import speech_segments

TUNED = "tuned"  # peft's name of a single run's adapter: a run's name may have dots, which peft does not allow
DETECTED = "by the detected language"

Progress = Callable[[str, int, int], None]  # model, segments decoded, segments in all


@dataclass(frozen=True)
class AdapterChoice:
    """A fine-tuned model: the adapter `name` of a Transcriber (None: a whole model), and test clips.

    It decodes in `language`; None: in the language that the base model detects.
    """

    name: str | None
    language: str | None
    scales: bool
    clips: Sequence[Clip]


@dataclass(frozen=True)
class PairResult:
    """The transcripts of both models; `adapter` is the choice's name, `seconds` the recording's length."""

    adapter: str
    language: str
    strength: float
    seconds: float
    base: list[Segment]
    tuned: list[Segment]


@dataclass(frozen=True)
class ModelPair:
    """The base model and the fine-tuned models that users choose from.

    `choices` are the adapters by their names on the page; `kind` is the tuning method of a single run; `scoring` are
    settings of error rates; `settings` have the language, if set, and the longest segment.
    """

    base: Transcriber
    tuned: Transcriber
    choices: Mapping[str, AdapterChoice]
    kind: str | None
    scoring: EvalConfig
    settings: TranscribeConfig

    def transcribe(
        self,
        path: Path,
        choice: str,
        strength: float,
        most: float,
        whole: bool,
        advance: Progress,
        prompt: str = "",
    ) -> PairResult:
        """Transcribes at most `most` minutes with both models, after `prompt`: the `whole`, or segments with speech.

        Raises ConfigError or ExternalError for a recording that cannot be transcribed.
        """
        waveform = _read(path, most)
        seconds = len(waveform) / audio.SAMPLE_RATE
        parts = [(0.0, seconds)] if whole else speech_segments(waveform, self.settings.max_segment_seconds)
        if not parts:
            raise ExternalError("no speech found in this recording (Silero VAD)")
        choice, language = self._chosen(choice, waveform)
        if strength != 1 and not self.choices[choice].scales:
            raise ConfigError(f"strength: must be 1 for {choice}, whose tuning method cannot be scaled")
        texts = []
        for which, model, name, scale in (
            ("base", self.base, None, 1.0), ("fine-tuned", self.tuned, self.choices[choice].name, strength)
        ):  # fmt: skip
            done = 0

            def count(clips: int, which: str = which) -> None:
                nonlocal done
                done = min(done + clips, len(parts))  # runaway segments are decoded again
                advance(which, done, len(parts))

            count(0)
            with model.session(language, name, scale, prompt) as options:
                texts.append(model.segments([(path, *part) for part in parts], options, count))
        return PairResult(choice, language, strength, seconds, *texts)

    def _chosen(self, choice: str, waveform: audio.Waveform) -> tuple[str, str]:
        """Returns the name of a choice, and Whisper's language.

        Raises ConfigError if no adapter is of the detected language.
        """
        given = self.settings.language
        if choice != DETECTED:
            return choice, given or self.choices[choice].language or self.base.detect_language(waveform)
        language = given or self.base.detect_language(waveform)
        fitting = [name for name, each in self.choices.items() if language in (each.language, name)]
        if not fitting:
            raise ConfigError(
                f"adapter: none is of the detected language {language}; choose one of {', '.join(self.choices)}"
            )
        return fitting[0], language


def of_run(config: Config, recorded: Config, hardware: Hardware) -> ModelPair:
    """Opens the base and the fine-tuned model of a run; `recorded` are its settings.

    Raises ConfigError if it is not trained.
    """
    tuned = run.tuned(recorded.run)
    base, kind, given = run.open_trained(recorded).model, recorded.lora.kind, config.transcribe.language
    language, clips = language_token(recorded.model, recorded.data.language), test_clips(recorded.run)
    if adapter_folder.is_whole(tuned):
        choice = AdapterChoice(None, language, False, clips)
        alone = transcriber.with_base(base, config.decoding, hardware, given)
        models = alone, transcriber.with_run(recorded.run, base, config.decoding, hardware, given)
    else:
        choice = AdapterChoice(TUNED, language, adapter_folder.is_scalable(tuned), clips)
        models = (transcriber.with_adapters({TUNED: str(tuned)}, base, config.decoding, hardware, given),) * 2
    return ModelPair(*models, {recorded.run.resolve().name: choice}, kind, recorded.eval, config.transcribe)


def with_adapters(
    config: Config, adapters: Mapping[str, str], hardware: Hardware, overrides: Sequence[str]
) -> ModelPair:
    """Opens one base model and adapters by name: folders of runs or of adapters."""
    given, choices = config.transcribe.language, {}
    both = transcriber.with_adapters(adapters, config.model, config.decoding, hardware, given)
    for name, place in adapters.items():
        folder = Path(place).expanduser()
        if settings_file(folder).is_file():
            recorded = run.recorded_config(folder, config, overrides)
            scales = adapter_folder.is_scalable(run.adapter(folder))
            choices[name] = AdapterChoice(
                name, language_token(recorded.model, recorded.data.language), scales, test_clips(folder)
            )
        else:
            language = name if name in language_tokens(both.base.checkpoint) else None
            choices[name] = AdapterChoice(name, language, adapter_folder.is_scalable(folder), [])
    return ModelPair(both, both, choices, None, config.eval, config.transcribe)


def test_clips(folder: Path) -> list[Clip]:
    """Returns the test clips of a run whose files exist, in the manifest's order."""
    file = run.manifest(folder, "test")
    clips = read_manifest(file) if file.is_file() else []
    missing = {clip["id"] for clip in missing_files(clips)}
    return [clip for clip in clips if clip["id"] not in missing]


def _read(path: Path, most: float) -> audio.Waveform:
    """Reads (samples,) at 16 kHz, at most `most` minutes. Raises ConfigError for a longer recording."""
    try:
        samples, rate = audio.decode(path, most=60 * most + 1)
    except ExternalError as error:  # the page shows the file's name, not the server's path
        raise ExternalError(str(error).replace(str(path), path.name)) from error
    if len(samples) > 60 * most * rate:
        raise ConfigError(f"{path.name}: is longer than {most:g} minutes (app.max_minutes)")
    return audio.resample(samples, rate)
