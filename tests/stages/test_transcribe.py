"""Transcription of recordings of any length, with one base and an adapter for each language."""

import io
import json
import re
import shutil
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from support.containers import written
from support.releases import write_release
from support.runs import hardware_of, tiny_run
from support.speech import write_talk

from asr_lora.config.compose import load
from asr_lora.decoding import transcriber
from asr_lora.decoding.fallback import decode_clips
from asr_lora.decoding.generate import (
    DecodingOptions,
    Hypothesis,
    RowAdapter,
    Segment,
    decode_once,
    decoding_options,
)
from asr_lora.decoding.transcriber import prompt_of, srt, txt, vtt, with_adapters, with_base
from asr_lora.model import adapter, whisper
from asr_lora.model.adapter import BASE
from asr_lora.model.pretrained import load_processor
from asr_lora.runs import finding
from asr_lora.runs import folder as run
from asr_lora.runtime.errors import ConfigError, ExternalError
from asr_lora.speech import audio
from asr_lora.speech.activity import speech_segments
from asr_lora.train import train
from asr_lora.transcribe import recordings, transcribe


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sentences with two seconds of silence between them, as a wav at the synthesizer's rate."""
    return write_talk(tmp_path_factory.mktemp("talks") / "praatje [1], é.wav")


@pytest.fixture(scope="module")
def runs(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs of one base by language on clips alone, whose adapters change the transcripts; that of Dutch is the last."""
    folder, made = tmp_path_factory.mktemp("tuned"), {}
    write_release(folder / "cv-corpus-25.0-2026-06-05")
    overrides = tiny_run(folder / "cv-corpus-25.0-2026-06-05", tiny_checkpoint, folder / "runs")
    overrides.append("training.context=dynamic")
    for seed, language in enumerate(("de", "nl")):
        named = [f"run_name={language}", f"seed={seed}", "training.learning_rate=0.3", "eval.after=false"]
        train(config := load([*overrides, *named]))
        made[language] = config.run
    return made


def test_speech_is_cut_at_pauses_and_joined_while_it_fits(talk: Path) -> None:
    waveform = audio.load(talk)
    apart, together = speech_segments(waveform, 5.0), speech_segments(waveform, 30.0)
    assert len(apart) == 3 and len(together) == 1
    assert all(earlier[1] < later[0] for earlier, later in pairwise(apart))
    assert together[0] == (apart[0][0], apart[-1][1])
    assert all(end - start <= 2.0 for start, end in speech_segments(waveform, 2.0))
    assert speech_segments(np.zeros(16_000, np.float32), 5.0) == []


def test_a_folder_is_transcribed_file_by_file_and_a_bad_one_does_not_stop_the_rest(
    words: list[str], talk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "two talks" / "below"
    folder.mkdir(parents=True)
    (folder / "good.wav").write_bytes(talk.read_bytes())
    (folder / "bad.mp3").write_bytes(b"no sound at all")
    (folder / "notes.txt").write_text("not a recording")
    out = tmp_path / "out"
    overrides = [*words, f'audio="{folder.parent}"', f"transcribe.out={out}", "transcribe.base_model=true"]
    config = load(
        [
            *overrides,
            "transcribe.language=nl",
            "transcribe.max_segment_seconds=5",
            "transcribe.formats=[txt,srt,vtt,json]",
        ]
    )
    with pytest.raises(ExternalError, match="1 of 2 recordings could not be transcribed"):
        transcribe(config)
    assert re.search(r"left out: .*bad\.mp3: clip cannot be decoded", capsys.readouterr().err)
    written = {str(file.relative_to(out)) for file in out.rglob("*") if file.is_file()}
    assert written == {f"below/good.{name}" for name in ("txt", "srt", "vtt", "json")}
    result = json.loads((out / "below" / "good.json").read_text())
    assert (result["language"], result["adapter"], len(result["segments"])) == ("nl", None, 3)
    assert result["seconds"] == pytest.approx(soundfile.info(talk).duration, abs=0.01)
    said = [segment["text"] for segment in result["segments"] if segment["text"]]  # a random model may write none
    assert (out / "below" / "good.txt").read_text().splitlines() == said


def test_the_prompt_is_the_text_and_behind_it_the_words_to_expect(
    words: list[str], talk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert prompt_of(None, []) == "" and prompt_of("Over de wolf.", ["Anna", "Ben"]) == "Over de wolf. Anna, Ben."
    given = [*words, f'audio="{talk}"', f"transcribe.out={tmp_path}", "transcribe.base_model=true",
             "transcribe.language=nl"]  # fmt: skip
    prompts = []

    def spy(model: Any, processor: Any, clips: Any, settings: DecodingOptions, *rest: Any) -> list[Hypothesis]:
        prompts.append(processor.decode(settings.prompt))
        return decode_clips(model, processor, clips, settings, *rest)

    monkeypatch.setattr(transcriber, "decode_clips", spy)
    for prompt in ([], ["transcribe.prompt='Over de wolf.'", "transcribe.hotwords=[Anna,Ben]"]):
        transcribe(load([*given, *prompt]))
    assert prompts == ["", "<|startofprev|> Over de wolf. Anna, Ben."]
    with pytest.raises(ConfigError, match=r"prompt: must be at most 31 tokens long"):
        transcribe(load([*given, f"transcribe.hotwords=[{','.join(['Wolvenroedel'] * 300)}]"]))


def test_the_base_model_translates(
    words: list[str], talk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def spy(model: Any, processor: Any, clips: Any, settings: DecodingOptions, *rest: Any) -> list[Hypothesis]:
        asked.append((settings.language, settings.task))
        return decode_clips(model, processor, clips, settings, *rest)

    monkeypatch.setattr(transcriber, "decode_clips", spy)
    base = ["transcribe.base_model=true", "transcribe.language=nl", "model.task=translate"]
    transcribe(load([*words, f'audio="{talk}"', f"transcribe.out={tmp_path}", *base]))
    assert asked == [("nl", "translate")] and list(tmp_path.glob("*.txt"))


def test_recordings_of_a_folder_that_cannot_be_read_are_counted_and_named(
    words: list[str], talk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "talks", tmp_path / "out"
    folder.mkdir()
    samples, rate = soundfile.read(talk)
    inverted = np.stack([samples, -samples], axis=1)
    soundfile.write(folder / "a.wav", inverted, rate)
    for name in ("b.m4a", "c.m4a"):
        (folder / name).write_bytes(written(samples, rate, "ipod", "aac"))
    (folder / "._a.wav").write_bytes(b"of a file manager")
    (folder / "notes.txt").write_text("not a recording")
    config = load([*words, f"audio={folder}", f"transcribe.out={out}", "transcribe.base_model=true",
                   "transcribe.language=nl"])  # fmt: skip
    transcribe(config)
    logged = capsys.readouterr().err
    assert "a: the channels have opposite phases" in logged and "3 of 3 recordings" in logged
    assert {file.name for file in out.iterdir() if file.suffix == ".txt"} == {"a.txt", "b.txt", "c.txt"}
    monkeypatch.setitem(sys.modules, "av", None)
    message = r"2 of 3 recordings could not be transcribed \(logged above\): b\.m4a, c\.m4a"
    with pytest.raises(ExternalError, match=message):
        transcribe(config)
    assert re.search(r"left out: .*b\.m4a: clip cannot be decoded by libsndfile.*media", capsys.readouterr().err)


def test_a_flac_of_unknown_length_is_transcribed_to_its_end(words: list[str], talk: Path, tmp_path: Path) -> None:
    samples, rate = soundfile.read(talk)
    soundfile.write(tmp_path / "talk.flac", samples, rate)
    content = (tmp_path / "talk.flac").read_bytes()
    (tmp_path / "talk.flac").write_bytes(content[:21] + bytes([content[21] & 0xF0, 0, 0, 0, 0]) + content[26:])
    overrides = ["transcribe.base_model=true", "transcribe.language=nl", "transcribe.formats=[json]"]
    transcribe(load([*words, f"audio={tmp_path}/talk.flac", f"transcribe.out={tmp_path}", *overrides]))
    assert json.loads((tmp_path / "talk.json").read_text())["seconds"] == pytest.approx(len(samples) / rate, abs=0.001)


def test_a_batch_size_that_ran_out_of_memory_is_not_tried_with_the_next_recording(words: list[str], talk: Path) -> None:
    config, sizes = load(words), []
    base = with_base(config.model, config.decoding, hardware_of(config))

    def small(module: torch.nn.Module, args: tuple[torch.Tensor]) -> None:
        sizes.append(len(args[0]))
        if len(args[0]) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    base.model.get_encoder().conv1.register_forward_pre_hook(small)
    for _ in range(2):
        with base.session("nl", None) as settings:
            assert len(base.segments([(talk, 0.0, 1.0), (talk, 1.0, 2.0)], settings)) == 2
    assert sizes[0] == 2 and set(sizes[1:]) == {1}


def test_each_language_is_decoded_with_its_adapter_as_if_merged(
    words: list[str], talk: Path, runs: dict[str, Path]
) -> None:
    config = load([*words, f"adapters={{nl: {runs['nl']}, de: {runs['de']}}}"])
    transcriber = with_adapters(config.adapters or {}, config.model, config.decoding, hardware_of(config))
    clips = [{"path": str(talk), "start": 0.0, "end": 2.0, "duration": 2.0}]
    tokens = {}
    for name in ("nl", "de", None, "nl"):  # and back
        with transcriber.session("nl", name) as settings:
            (hypothesis,) = decode_once(transcriber.model, transcriber.processor, clips, settings)
        alone = (
            whisper.load(config.model.checkpoint, "fp32", torch.device("cpu"))
            if name is None
            else adapter.load(config.model.checkpoint, run.adapter(runs[name]), "fp32", torch.device("cpu"))
        )
        (expected,) = decode_once(alone, load_processor(config.model.checkpoint), clips, settings)
        assert hypothesis.tokens == expected.tokens
        tokens[name] = hypothesis.tokens
    assert len({tuple(own) for own in tokens.values()}) == 3


@pytest.mark.parametrize("decoding", ["greedy", pytest.param("beam", marks=pytest.mark.slow)])
def test_rows_of_one_batch_have_their_own_adapters_and_languages(
    decoding: str, words: list[str], talk: Path, runs: dict[str, Path]
) -> None:
    both = f"adapters={{nl: {runs['nl']}, de: {runs['de']}}}"
    config = load([*words, both, f"decoding={decoding}", "decoding.context=full"])
    several = with_adapters(config.adapters, config.model, config.decoding, hardware_of(config))
    clips = [{"path": str(talk), "start": start, "end": start + 2, "duration": 2.0} for start in (0.0, 0.0, 0.0, 2.0)]
    rows = [RowAdapter("nl", "nl"), RowAdapter("de", "de"), RowAdapter("nl", BASE), RowAdapter("de", "nl")]
    settings = decoding_options(config.decoding, config.model, several.hardware, "nl", short=False)
    mixed = decode_once(several.model, several.processor, clips, settings, adapters=rows)
    for clip, each, hypothesis in zip(clips, rows, mixed, strict=True):
        alone = (
            whisper.load(config.model.checkpoint, "fp32", torch.device("cpu"))
            if each.adapter == BASE
            else adapter.load(config.model.checkpoint, run.adapter(runs[each.adapter]), "fp32", torch.device("cpu"))
        )
        inputs = several.processor(
            audio.load(talk, clip["start"], clip["end"]), sampling_rate=16_000, return_tensors="pt"
        )
        options = {"language": each.language, "num_beams": settings.num_beams, "max_new_tokens": 8}
        output = alone.generate(inputs.input_features, force_unique_generate_call=True, task="transcribe", **options)
        assert hypothesis.tokens == output[0].tolist()[4:]
    assert len({tuple(hypothesis.tokens) for hypothesis in mixed[:3]}) == 3


@pytest.mark.parametrize("model", ["base", "a run", "adapters"])
def test_a_language_without_a_token_is_refused_before_transcription(
    words: list[str], talk: Path, runs: dict[str, Path], tmp_path: Path, model: str
) -> None:
    chosen = {
        "base": "transcribe.base_model=true",
        "a run": f"runs_dir={runs['nl'].parent}",
        "adapters": f"adapters={{nl: {runs['nl']}}}",
    }
    overrides = [*words, f'audio="{talk}"', f"transcribe.out={tmp_path / 'out'}", "transcribe.language=xx"]
    with pytest.raises(ConfigError, match=r"transcribe\.language: this Whisper has no token 'xx'; af, am"):
        transcribe(load([*overrides, chosen[model]]))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_mixed_batches_write_the_same_files_as_one_by_one_and_leave_out_bad_recordings(
    words: list[str], talk: Path, runs: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "talks"
    folder.mkdir()
    for name in ("a.wav", "b.wav"):
        (folder / name).write_bytes(talk.read_bytes())
    (folder / "bad.mp3").write_bytes(b"no sound at all")
    overrides = [
        *words,
        f"adapters={{nl: {runs['nl']}}}",
        f"audio={folder}",
        "transcribe.language=nl",
        "decoding.context=full",
    ]
    for mixed in ("true", "false"):
        more = [f"transcribe.mixed_batches={mixed}", f"transcribe.out={tmp_path / mixed}"]
        with pytest.raises(ExternalError, match="1 of 3 recordings could not be transcribed"):
            transcribe(load([*overrides, *more]))
    for name in ("a.txt", "b.txt"):
        assert (tmp_path / "true" / name).read_text() == (tmp_path / "false" / name).read_text()
    with pytest.raises(ConfigError, match=r"transcribe\.mixed_batches: must be false without adapters"):
        load([*words, "transcribe.mixed_batches=true"])


@pytest.mark.slow
def test_a_language_without_an_adapter_is_decoded_by_the_base_model_and_logged(
    words: list[str], talk: Path, runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    overrides = [
        *words,
        f"adapters={{nl: {runs['nl']}}}",
        f'audio="{talk}"',
        f"transcribe.out={out}",
        "transcribe.formats=[json]",
    ]
    for language, name in (("de", None), ("nl", "nl")):
        transcribe(load([*overrides, f"transcribe.language={language}"]))
        result = json.loads((out / f"{talk.stem}.json").read_text())
        assert (result["language"], result["adapter"]) == (language, name)
    assert "no adapter for it: the base model" in capsys.readouterr().err
    transcribe(load(overrides))  # the language is detected, by a random model: any
    result = json.loads((out / f"{talk.stem}.json").read_text())
    assert result["adapter"] == ("nl" if result["language"] == "nl" else None)


@pytest.mark.slow
def test_a_run_of_clips_says_so_where_a_recording_is_long(
    runs: dict[str, Path], talk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sound, rate = soundfile.read(talk)
    soundfile.write(tmp_path / "long.wav", np.resize(sound, 31 * rate), rate)
    given = [f"runs_dir={runs['nl'].parent}", "hardware=cpu", f"transcribe.out={tmp_path}"]
    for file, warned in ((talk, False), (tmp_path / "long.wav", True)):
        transcribe(load([*given, f'audio="{file}"']))
        assert ("trained on clips: on long recordings it may make more errors" in capsys.readouterr().err) == warned


def test_the_last_run_transcribes_standard_input(
    talk: Path, runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load(["audio=-", f"runs_dir={runs['nl'].parent}", "hardware=cpu", "transcribe.formats=[srt]"])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(talk.read_bytes())))
    transcribe(config)
    output = capsys.readouterr()
    assert output.out.startswith("1\n00:00:0") and f"run: {runs['nl'].resolve()}" in output.err
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    with pytest.raises(ConfigError, match="audio: - takes a recording from standard input, got nothing"):
        transcribe(config)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("audio=null", "audio: names no recording"),
        ("audio=/nowhere/a.wav", "audio: no file, folder or pattern"),
        ('audio="/nowhere/*.wav"', "audio: no file, folder or pattern"),
    ],
)
def test_no_recording_is_one_clear_line(words: list[str], override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        transcribe(load([*words, override]))


def test_a_folder_without_an_adapter_is_refused(words: list[str], tmp_path: Path) -> None:
    config = load(words)
    with pytest.raises(ConfigError, match=r"adapters\.nl: no adapter in "):
        with_adapters({"nl": str(tmp_path)}, config.model, config.decoding, hardware_of(config))


def test_runs_of_two_bases_are_refused(words: list[str], runs: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(runs["de"], tmp_path / "de")
    settings = finding.settings_file(tmp_path / "de")
    settings.write_text(settings.read_text().replace("base: ", "base: 0"))
    config = load(words)
    with pytest.raises(ConfigError, match=r"adapters: must be of one base, got nl on \w+, de on 0"):
        with_adapters(
            {"nl": str(runs["nl"]), "de": str(tmp_path / "de")}, config.model, config.decoding, hardware_of(config)
        )


def test_names_that_differ_only_in_their_suffix_keep_it(tmp_path: Path) -> None:
    for name in ("a.wav", "a.mp3", "b.ogg"):
        (tmp_path / name).touch()
    with recordings(str(tmp_path)) as found:
        assert [each.name for each in found] == ["a.mp3", "a.wav", "b"]
    with recordings(str(tmp_path / "*.wav")) as found:
        assert [each.name for each in found] == ["a"]


def test_subtitles_are_in_the_formats_that_players_read() -> None:
    # The second has no text: silence, or a window in which the model found none.
    segments = [Segment(0.0, 1.5, "ja & nee"), Segment(2.0, 3.0, ""), Segment(3661.25, 3662.0, "a --> b <i>")]
    assert txt(segments) == "ja & nee\na --> b <i>\n"
    assert srt(segments) == (
        "1\n00:00:00,000 --> 00:00:01,500\nja & nee\n\n2\n01:01:01,250 --> 01:01:02,000\na -> b <i>\n"
    )
    assert vtt(segments) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.500\nja &amp; nee\n\n01:01:01.250 --> 01:01:02.000\na -> b &lt;i>\n"
    )
