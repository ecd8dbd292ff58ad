"""Exports of real weights in real runtimes decode like we do, and the snippets of docs/export.md run."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import ctranslate2
import pytest
import soundfile
import torch
from faster_whisper import WhisperModel
from support.runs import hardware_of
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from asr_lora.config.compose import load
from asr_lora.config.stages import EXPORTS
from asr_lora.demo import __main__ as demo_stage
from asr_lora.eval import evaluate
from asr_lora.evaluation.eval_sets import EvalSet, decode_sets
from asr_lora.evaluation.metrics import clip_errors
from asr_lora.export.__main__ import main
from asr_lora.formats import ct2, ggml
from asr_lora.model.pretrained import load_generation_config
from asr_lora.runs import folder as run
from asr_lora.runtime.files import read_json, read_jsonl
from asr_lora.speech.audio import SAMPLE_RATE
from asr_lora.speech.audio import load as load_audio
from asr_lora.speech.normalizer import Normalizer

PAGE = Path(__file__).parents[2] / "docs" / "export.md"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]  # the fixture works on all cores, for minutes


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run of whisper-base, two steps on synthetic Dutch, exported to every format."""
    home = tmp_path_factory.mktemp("real")
    threads = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    few = ["training.max_steps=2", "training.batch_size=2", "data.dev_clips=2", "data.hours=0.01", "eval.limit=4"]
    few += ["training.plain_share=0"]  # two steps leave the base model unsure: the counts below are of this adapter
    named = [f"run_dir={home / 'runs' / 'mine'}", f"runs_dir={home / 'runs'}", "hardware=cpu"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ASR_LORA_CACHE", str(home / "cache"))
        config = load(["experiment=demo", *few, *named])
        demo_stage.demo(config)
        main(load([*named, f"export.formats=[{','.join(EXPORTS)}]", "export.clips=4"]))
        yield config.run
    torch.set_num_threads(threads)


def test_every_format_transcribes_a_long_recording_at_its_runtimes_defaults(exported: Path) -> None:
    for name, row in read_json(exported / "export" / "exports.json").items():
        ways = {"hf": {"timestamps"}, "ggml": {"timestamps"}, "ct2": {"timestamps", "timestamps and VAD"}}
        assert set(row["long"]["ways"]) == ways[name.partition("-")[0]]
        for figures in row["long"]["ways"].values():
            # Of four sentences; quantized weights write a few words otherwise.
            assert abs(figures["error_rate"] - row["long"]["ours"]["error_rate"]) < 0.35


def test_long_recordings_of_a_set_are_transcribed_by_other_tools(exported: Path) -> None:
    ways = ["sequential", "faster_whisper", "faster_whisper_vad", "whisper_cpp"]
    given = [f"run_dir={exported}", "hardware=cpu", f"eval.long_form=[{','.join(ways)}]"]
    source = run.recorded_config(exported, load(given), []).data.source
    talks = f"eval.sets=[{{source: {source}, long: true, minutes: 0.5, name: talks}}]"
    evaluate(run.recorded_config(exported, load([*given, talks]), [*given[1:], talks]))
    found = read_json(exported / "eval" / "talks" / "long.json")["ways"]
    assert list(found) == ways
    for figures in found.values():
        for side in (figures, figures["baseline"]):
            assert abs(side["error_rate"] - found["sequential"]["error_rate"]) < 0.35


def test_every_format_decodes_in_its_own_runtime_like_we_do(exported: Path) -> None:
    rows = read_json(exported / "export" / "exports.json")
    assert rows.keys() == set(EXPORTS)
    for name, row in rows.items():
        (each,) = row["sets"]
        # Which of two words that are equally likely to it this model of two steps writes depends on the arithmetic of
        # the runtime and the processor; and faster-whisper pads features with zeros, not with silence.
        texts = read_jsonl(exported / "export" / "proofs" / f"{name}.jsonl")
        normal = Normalizer("marks")
        ours, theirs = ([normal(line[side]) for line in texts] for side in ("ours", "exported"))
        wrong, characters = (sum(counts) for counts in clip_errors(ours, theirs, "nl", "cer"))
        assert wrong / characters <= {"hf": 0.0, "ggml": 0.1, "ggml-q8_0": 0.2}.get(name, 0.3), texts
        assert each["exported"] < 0.9 and row["failures"] == []  # real weights decode real words
    size = {name: row["bytes"] for name, row in rows.items()}
    assert size["ct2-int8_float16"] < size["ct2-int8"] < 0.6 * size["ct2"]
    assert size["ggml-q5_0"] < size["ggml-q8_0"] < 0.6 * size["ggml"]


def test_ctranslate2_decodes_our_features_to_the_same_tokens(exported: Path) -> None:
    clips = read_jsonl(run.manifest(exported, "test"))[:3]
    folder = exported / "export"
    processor = WhisperProcessor.from_pretrained(folder / "hf")
    ours = WhisperForConditionalGeneration.from_pretrained(folder / "hf", dtype=torch.float32)
    theirs = ctranslate2.models.Whisper(str(folder / "ct2"), device="cpu", compute_type="float32")
    prompt = processor.tokenizer.convert_tokens_to_ids(
        ["<|startoftranscript|>", "<|nl|>", "<|transcribe|>", "<|notimestamps|>"]
    )
    for clip in clips:
        waveform = load_audio(Path(clip["path"]))
        features = processor(waveform, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
        (output,) = theirs.generate(ctranslate2.StorageView.from_array(features.numpy()), [prompt], beam_size=1)
        wanted = ours.generate(features, language="nl", task="transcribe")[0].tolist()
        assert [token for token in wanted if token < 50_257] == output.sequences_ids[0]


@pytest.mark.parametrize("module", [ct2, ggml], ids=["ct2", "ggml"])
def test_short_contexts_decode_like_ours_in_any_order_of_lengths(exported: Path, module: ModuleType) -> None:
    """The base model is not safe at clip length; 12 s behind a clip are enough for it, and end at 17 s, not at 30."""
    config = run.recorded_config(exported, load(["hardware=cpu"]), [])
    clips = read_jsonl(run.manifest(exported, "test"))[:6]
    plain = replace(config.decoding, context="plain", context_margin=12.0, fallback=False)
    sets = [EvalSet("test", "test", "nl", clips, len(clips))]
    (ours,) = decode_sets(config.model, plain, hardware_of(config), sets, run.tuned(exported))
    folder, cpu = exported / "export" / module.__name__.rpartition(".")[2], torch.device("cpu")
    transcribe, alone = module.transcriber(folder, "nl", "transcribe", cpu, 12.0), []
    for clip in clips:  # also the first time, and after longer and shorter ones
        alone.append(module.transcriber(folder, "nl", "transcribe", cpu, 12.0)(load_audio(Path(clip["path"]))))
    texts = [transcribe(load_audio(Path(clip["path"]))) for clip in clips]
    assert texts == alone
    normal = Normalizer("marks")
    assert sum(normal(one) == normal(other) for one, other in zip(texts, ours["hypotheses"], strict=True)) >= 4


def test_faster_whisper_detects_languages_and_has_word_timestamps(exported: Path) -> None:
    base = load_generation_config(str(run.settings(exported)["model"]["checkpoint"]))
    config = read_json(exported / "export" / "ct2" / "config.json")
    assert config["lang_ids"] == sorted(base.lang_to_id.values())
    assert config["alignment_heads"] == base.alignment_heads
    clip = read_jsonl(run.manifest(exported, "test"))[0]
    model = WhisperModel(str(exported / "export" / "ct2"), device="cpu")
    segments, info = model.transcribe(load_audio(Path(clip["path"])), word_timestamps=True, language=None)
    words = [word for segment in segments for word in segment.words]
    assert info.language == "nl" and len(words) > 1
    times = [time for word in words for time in (word.start, word.end)]
    assert times == sorted(times) and times[0] >= 0 and times[-1] <= clip["duration"] + 0.1


@pytest.mark.parametrize("tool", ["peft", "transformers", "faster-whisper", "whisper.cpp", "CTranslate2"])
def test_the_snippet_of_the_page_runs(tool: str, exported: Path, tmp_path: Path) -> None:
    section = PAGE.read_text(encoding="utf-8").partition("## Use it")[2].partition("\n## ")[0]
    snippets = [code for code in re.findall(r"```python\n(.*?)```", section, re.S) if re.match(rf"# {tool}\W", code)]
    assert len(snippets) == 1
    code = snippets[0].replace("openai/whisper-large-v2", str(run.settings(exported)["model"]["checkpoint"]))
    (tmp_path / "runs").symlink_to(exported.parent)
    clip = read_jsonl(run.manifest(exported, "test"))[0]
    soundfile.write(tmp_path / "clip.wav", load_audio(Path(clip["path"])), SAMPLE_RATE)
    ran = subprocess.run(
        [sys.executable, "-c", code], check=False, cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stderr
    words = set(re.findall(r"\w+", ran.stdout.lower()))
    assert len(words & set(re.findall(r"\w+", clip["text"].lower()))) >= 2, (ran.stdout, clip["text"])
