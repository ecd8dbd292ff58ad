"""What the page speaks to: an untouched base and the tuned models to choose from; what both hear in a recording.

An adapter is worn by the base that hears without it: one model in memory. Of lora=bitfit or full there are two.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from asr_lora.config.compose import Config
from asr_lora.config.stages import EvalConfig, TranscribeConfig
from asr_lora.data.manifest import Clip, missing_files, read_manifest
from asr_lora.decoding import transcriber as ears
from asr_lora.decoding.generate import Segment
from asr_lora.decoding.transcriber import Transcriber, speech_segments
from asr_lora.model import adapter_folder as stored
from asr_lora.model.hardware import Hardware
from asr_lora.model.pretrained import language_token, language_tokens
from asr_lora.runs import folder as run
from asr_lora.runtime.errors import ConfigError, ExternalError
from asr_lora.speech import audio

TUNED = "tuned"  # the adapter of a run that is alone: peft allows no dots in a name, and a run's may have some
WHICHEVER = "by the language that is heard"

Progress = Callable[[str, int, int], None]  # which model hears, stretches heard, of how many


@dataclass(frozen=True)
class AdapterChoice:
    """A tuned model: the adapter `name` of Ears (None: the model itself), what it is told to hear, and its test clips.

    Without a `language` it is told the one that the untouched base hears.
    """

    name: str | None
    language: str | None
    scales: bool
    clips: Sequence[Clip]


@dataclass(frozen=True)
class PairResult:
    """What both models said; `voice` is the tuned one's name, `seconds` the recording's length."""

    voice: str
    language: str
    strength: float
    seconds: float
    base: list[Segment]
    tuned: list[Segment]


@dataclass(frozen=True)
class ModelPair:
    """`voices` by the names that people choose; `kind` of tuning where it is one run's; `scoring` of
    references; `listening` tells the language, where it is given, and the longest piece."""

    base: Transcriber
    tuned: Transcriber
    voices: Mapping[str, AdapterChoice]
    kind: str | None
    scoring: EvalConfig
    listening: TranscribeConfig

    def transcribe(
        self, path: Path, voice: str, strength: float, most: float, whole: bool, advance: Progress
    ) -> PairResult:
        """What both hear in a recording of at most `most` minutes: `whole` (a test clip), or where people speak in it.

        Raises ChoiceError or WorldError for what cannot be heard.
        """
        waveform = _read(path, most)
        seconds = len(waveform) / audio.SAMPLE_RATE
        spoken = [(0.0, seconds)] if whole else speech_segments(waveform, self.listening.max_segment_seconds)
        if not spoken:
            raise ExternalError("nobody speaks in this recording, as far as Silero's detector hears")
        voice, told = self._chosen(voice, waveform)
        if strength != 1 and not self.voices[voice].scales:
            raise ConfigError(
                f"strength: must be 1 for {voice}, whose way of tuning has no strengths between 0 and that"
            )
        said = []
        for which, model, name, strong in (
            ("untouched", self.base, None, 1.0), ("tuned", self.tuned, self.voices[voice].name, strength)
        ):  # fmt: skip
            done = 0

            def count(clips: int, which: str = which) -> None:
                nonlocal done
                done = min(done + clips, len(spoken))  # what runs away is heard again
                advance(which, done, len(spoken))

            count(0)
            with model.session(told, name, strong) as settings:
                said.append(model.segments([(path, *part) for part in spoken], settings, count))
        return PairResult(voice, told, strength, seconds, *said)

    def _chosen(self, voice: str, waveform: audio.Waveform) -> tuple[str, str]:
        """The name of a voice, and Whisper's language. Raises ChoiceError where no voice is of what is heard."""
        asked = self.listening.language
        if voice != WHICHEVER:
            return voice, asked or self.voices[voice].language or self.base.detect_language(waveform)
        told = asked or self.base.detect_language(waveform)
        fitting = [name for name, each in self.voices.items() if told in (each.language, name)]
        if not fitting:
            raise ConfigError(
                f"{told} is heard, and no adapter is of that language; choose one of {', '.join(self.voices)}"
            )
        return fitting[0], told


def of_run(config: Config, recorded: Config, hardware: Hardware) -> ModelPair:
    """What a run has learnt, and its base; `recorded` are its own settings. Raises ChoiceError where it has none."""
    tuned = run.tuned(recorded.run)
    if not tuned.is_dir():
        raise ConfigError(f"run_dir: no adapter in {recorded.run}/train; train it first, with make train")
    base, kind, told = run.with_pinned_base(recorded).model, recorded.lora.kind, config.transcribe.language
    language, clips = language_token(recorded.model, recorded.data.language), test_clips(recorded.run)
    if stored.is_whole(tuned):
        voice = AdapterChoice(None, language, False, clips)
        alone = ears.with_base(base, config.decoding, hardware, told)
        models = alone, ears.with_run(recorded.run, base, config.decoding, hardware, told)
    else:
        voice = AdapterChoice(TUNED, language, stored.is_scalable(tuned), clips)
        models = (ears.with_adapters({TUNED: str(tuned)}, base, config.decoding, hardware, told),) * 2
    return ModelPair(*models, {recorded.run.resolve().name: voice}, kind, recorded.eval, config.transcribe)


def with_adapters(config: Config, adapters: Mapping[str, str], hardware: Hardware, words: Sequence[str]) -> ModelPair:
    """One base and several adapters, by name: folders of runs or of adapters, as ears.with_adapters takes them."""
    told, voices = config.transcribe.language, {}
    both = ears.with_adapters(adapters, config.model, config.decoding, hardware, told)
    for name, place in adapters.items():
        folder = Path(place).expanduser()
        if run.settings_file(folder).is_file():
            recorded = run.recorded_config(folder, config, words)
            scales = stored.is_scalable(run.adapter(folder))
            voices[name] = AdapterChoice(
                name, language_token(recorded.model, recorded.data.language), scales, test_clips(folder)
            )
        else:
            spoken = name if name in language_tokens(both.base.checkpoint) else None
            voices[name] = AdapterChoice(name, spoken, stored.is_scalable(folder), [])
    return ModelPair(both, both, voices, None, config.eval, config.transcribe)


def test_clips(folder: Path) -> list[Clip]:
    """Those of a run whose sound is still there, in the manifest's order."""
    file = run.manifest(folder, "test")
    clips = read_manifest(file) if file.is_file() else []
    lost = {clip["id"] for clip in missing_files(clips)}
    return [clip for clip in clips if clip["id"] not in lost]


def _read(path: Path, most: float) -> audio.Waveform:
    """(samples,) at 16 kHz. Raises ChoiceError where it is longer than `most` minutes, of which no more is read."""
    try:
        samples, rate = audio.decode(path, most=60 * most + 1)
    except ExternalError as error:  # nobody on the page knows the path
        raise ExternalError(str(error).replace(str(path), path.name)) from error
    if len(samples) > 60 * most * rate:
        raise ConfigError(f"{path.name}: is longer than {most:g} minutes (app.max_minutes)")
    return audio.resample(samples, rate)
