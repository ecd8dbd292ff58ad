"""Exports are verified in their runtimes or fail with evidence; combined adapters; the Hub."""

import json
import logging
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants
from huggingface_hub import HfApi
from safetensors.torch import load_file
from support.models import tiny_whisper
from support.releases import write_release
from support.runs import hardware_of, tiny_run
from transformers import GenerationConfig, WhisperForConditionalGeneration, pipeline

from asr_lora.config.compose import Config, load
from asr_lora.decoding.generate import Segment
from asr_lora.eval import evaluate
from asr_lora.evaluation.eval_sets import EvalSet, decode_sets
from asr_lora.export import __main__ as command
from asr_lora.export import long_proof, verify
from asr_lora.export.__main__ import main
from asr_lora.formats import ct2, ggml, hf
from asr_lora.model import adapter, adapter_folder, arithmetic, convert_openai, whisper
from asr_lora.model.pretrained import load_generation_config, load_processor
from asr_lora.runs import folder as run
from asr_lora.runs.finding import last_run
from asr_lora.runtime.errors import ConfigError, ExternalError
from asr_lora.runtime.files import read_json, read_jsonl, write_json
from asr_lora.speech import audio
from asr_lora.train import train

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 1)
OF_HF = {
    "README.md", "added_tokens.json", "config.json", "generation_config.json", "merges.txt", "model.safetensors",
    "preprocessor_config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json",
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two trained runs of one base with different transcripts; the second is the last."""
    folder, made = tmp_path_factory.mktemp("tuned"), []
    write_release(folder / "cv-corpus-25.0-2026-06-05")
    overrides = tiny_run(folder / "cv-corpus-25.0-2026-06-05", tiny_checkpoint, folder / "runs")
    for seed, name in enumerate(("first", "nl-1h-lr0.3")):
        more = [f"run_name={name}", f"seed={seed}", "training.learning_rate=0.3", "eval.limit=2", "eval.after=false"]
        train(config := load([*overrides, *more]))
        made.append(config.run)
    evaluate(config)
    return made


@pytest.fixture
def config_of(runs: list[Path], tmp_path: Path) -> Callable[..., Config]:
    def config(*more: str) -> Config:
        return load(
            [
                f"runs_dir={runs[1].parent}",
                "hardware=cpu",
                "export.clips=2",
                "export.long_minutes=null",
                f"export.out={tmp_path / 'out'}",
                *more,
            ]
        )

    return config


# ---- a long recording ----


@pytest.mark.slow
def test_an_export_transcribes_a_long_recording_at_its_runtimes_defaults(
    config_of: Callable[..., Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(config_of("export.formats=[hf]", "export.long_minutes=0.5", "export.short_margin=null"))
    row = read_json(tmp_path / "out" / "exports.json")["hf"]["long"]
    (recording,) = (tmp_path / "out" / "proofs" / "recording").iterdir()
    assert row["recording_seconds"] == pytest.approx(len(audio.load(recording)) / audio.SAMPLE_RATE)
    assert set(row["ways"]) == {"timestamps"} and row["ours"].keys() < row["ways"]["timestamps"].keys()
    assert "each runtime at its defaults" in capsys.readouterr().out


def test_a_window_of_transformers_without_times_goes_on_from_the_last_one(
    runs: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tokenizer = load_processor(run.settings(runs[0])["model"]["checkpoint"]).tokenizer
    tokens = np.array([tokenizer("<|0.00|> een<|0.40|> twee", add_special_tokens=False).input_ids])

    class Pipe:
        """transformers' pipeline, of a model that writes these tokens."""

        model = SimpleNamespace(generation_config=GenerationConfig(is_multilingual=False))

        def __call__(self, recording: dict[str, Any], **_: Any) -> dict[str, Any]:
            window = {"tokens": tokens, "stride": (30.0, 0.0, 0.0)}
            options = {"return_timestamps": True, "return_language": False, "time_precision": 0.02}
            text, more = tokenizer._decode_asr([window], **options)
            return {"text": text, **more}

    monkeypatch.setattr(hf, "_pipeline", lambda folder, device: Pipe())
    found = hf.long_form(tmp_path, "nl", "transcribe", CPU, vad=False)(np.zeros(3 * audio.SAMPLE_RATE, np.float32))
    assert found == [Segment(0.0, 0.4, "een"), Segment(0.4, 3.0, "twee")]


def test_text_that_an_export_skips_or_repeats_and_we_do_not_fails_it() -> None:
    clean = {"skipped": 0, "skipped_words": 0, "repeated": 0, "repeated_words": 0}
    found = {
        "recording_seconds": 300,
        "ours": clean,
        "ways": {"timestamps": clean | {"skipped": 1, "skipped_words": 14}},
    }
    (failure,) = long_proof.failures(found)
    assert failure == (
        "of a recording of 5:00 min (timestamps) 1 passages are skipped (14 words), which our own decoding does not"
    )
    assert long_proof.failures(found | {"ways": {"timestamps": clean}}) == []
    assert long_proof.failures(found | {"ours": clean | {"skipped": 1, "skipped_words": 20}}) == []
    assert long_proof.failures(found | {"ours": clean | {"repeated": 1, "repeated_words": 12}}) == [failure]


# ---- formats ----


def test_an_export_loads_in_plain_tools_and_decodes_like_the_model(
    config_of: Callable[..., Config], runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(config_of("export.formats=[hf]"))
    assert {file.name for file in (tmp_path / "out" / "hf").iterdir()} == OF_HF
    rows = read_json(tmp_path / "out" / "exports.json")
    for row in rows.values():
        (each,) = row["sets"]
        assert (each["equal"], each["clips"], each["run_away"], row["failures"]) == (2, 2, 0, [])
    # the whole model, in fp16, with the settings of the base
    base = run.settings(runs[1])["model"]["checkpoint"]
    merged = adapter.load(base, run.adapter(runs[1]), "fp32", CPU).state_dict()
    saved = load_file(tmp_path / "out" / "hf" / "model.safetensors")
    assert all(tensor.dtype is torch.float16 for tensor in saved.values())
    name = "model.decoder.layers.0.self_attn.q_proj.weight"
    torch.testing.assert_close(saved[name].float(), merged[name], atol=2e-3, rtol=2e-3)
    of_base = load_generation_config(base).to_dict()
    generation = read_json(tmp_path / "out" / "hf" / "generation_config.json")
    assert (generation["language"], generation["task"]) == ("nl", "transcribe")
    assert {name for name, value in of_base.items() if value is not None} <= generation.keys()
    card = (tmp_path / "out" / "hf" / "README.md").read_text()
    assert "an adapter merged into it" in card and "model-index:" in card and "library_name: transformers" in card
    assert "hf: verified before" not in capsys.readouterr().err
    main(config_of("export.formats=[hf]"))
    again = capsys.readouterr()
    assert "hf: verified before" in again.err and "exports, each verified" in again.out


def test_ctranslate2_has_languages_and_alignment_heads_of_the_base_and_faster_whispers_files(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    base = whisper.load(str(tiny_checkpoint), "fp32", CPU)
    base.generation_config.alignment_heads = [[1, 0], [0, 1]]
    base.save_pretrained(tmp_path / "base")
    load_processor(str(tiny_checkpoint)).save_pretrained(tmp_path / "base")
    hf.write(base, str(tmp_path / "base"), "nl", "transcribe", tmp_path / "hf")
    ct2.write(tmp_path / "hf", "int8", tmp_path / "ct2")
    assert {file.name for file in (tmp_path / "ct2").iterdir()} == {
        "config.json", "model.bin", "preprocessor_config.json", "tokenizer.json", "vocabulary.json",
    }  # fmt: skip
    config = read_json(tmp_path / "ct2" / "config.json")
    assert config["lang_ids"] == sorted(base.generation_config.lang_to_id.values())
    assert config["alignment_heads"] == [[1, 0], [0, 1]]


def test_language_and_task_are_defaults_of_an_export(tiny_checkpoint: Path, tmp_path: Path, release: Path) -> None:
    hf.write(whisper.load(str(tiny_checkpoint), "fp32", CPU), str(tiny_checkpoint), "de", "translate", tmp_path)
    model = WhisperForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32)
    given = WhisperForConditionalGeneration.from_pretrained(str(tiny_checkpoint), dtype=torch.float32)
    features = torch.randn(1, 80, 3000, generator=torch.Generator().manual_seed(0))
    plain = model.generate(features, max_new_tokens=4)
    assert plain.tolist() == given.half().float().generate(
        features, max_new_tokens=4, language="de", task="translate"
    ).tolist()  # fmt: skip
    assert pipeline("automatic-speech-recognition", model=str(tmp_path)).feature_extractor.sampling_rate == 16_000


def test_a_format_that_cannot_be_written_is_a_row_and_the_others_are_kept(
    config_of: Callable[..., Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ExternalError, match=r"ggml-q5_0: export.formats: ggml-q5_0 needs rows of a multiple of 32"):
        main(config_of("export.formats=[ggml-q5_0,hf]"))
    rows = read_json(tmp_path / "out" / "exports.json")
    assert (rows["hf"]["failures"], rows["ggml-q5_0"]["outcome"]) == ([], "failed")
    assert "needs rows of a multiple of 32" in rows["ggml-q5_0"]["failures"][0]
    assert (tmp_path / "out" / "hf").is_dir() and not (tmp_path / "out" / "ggml-q5_0").exists()
    assert "failed" in capsys.readouterr().out


def test_added_tokens_are_in_the_export_to_transformers_and_no_ggml_file(tmp_path: Path, processor: Any) -> None:
    processor.tokenizer = deepcopy(processor.tokenizer)  # shared with other tests
    processor.tokenizer.add_tokens(["ŋ̊", "kwaŋ ziŋ"])  # "ŋ" is none of the letters that stand for bytes
    model = tiny_whisper(processor.tokenizer)
    model.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    hf.write(model, str(tmp_path / "base"), "nl", "transcribe", tmp_path / "hf")
    assert load_processor(str(tmp_path / "hf")).tokenizer.get_vocab()["ŋ̊"] == model.config.vocab_size - 2
    with pytest.raises(ConfigError, match=r"whisper.cpp cannot represent the 2 tokens that this base has beside"):
        ggml.write(tmp_path / "hf", "", tmp_path / "ggml")
    assert not (tmp_path / "ggml").exists()


@pytest.mark.parametrize("weights", ["", "q8_0", "q5_0"])
def test_a_ggml_file_holds_sizes_filters_tokens_and_every_tensor_under_openais_names(
    weights: str, tmp_path: Path, processor: Any
) -> None:
    tokenizer = processor.tokenizer
    model = tiny_whisper(tokenizer, d_model=32)
    model.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    hf.write(model, str(tmp_path / "base"), "nl", "transcribe", tmp_path / "hf")
    ggml.write(tmp_path / "hf", weights, tmp_path / "ggml")
    data = (tmp_path / "ggml" / ggml.FILE).read_bytes()
    kind = {"": 1, "q8_0": 2007, "q5_0": 2008}[weights]
    config = model.config
    assert np.frombuffer(data, "<i4", 12).tolist() == [
        0x67676D6C, config.vocab_size, 1500, 32, 2, 2, 64, 32, 2, 2, 80, kind,
    ]  # fmt: skip
    assert np.frombuffer(data, "<i4", 2, 48).tolist() == [80, 201]
    filters = np.frombuffer(data, "<f4", 80 * 201, 56).reshape(80, 201)
    np.testing.assert_allclose(filters, processor.feature_extractor.mel_filters.T, atol=1e-6)
    at = 56 + 4 * 80 * 201
    count, at = int(np.frombuffer(data, "<i4", 1, at)[0]), at + 4
    tokens = []
    for _ in range(count):
        size = int(np.frombuffer(data, "<i4", 1, at)[0])
        tokens.append(data[at + 4 : at + 4 + size])
        at += 4 + size
    ids = tokenizer.get_vocab()
    letters = ggml.bytes_to_unicode()
    assert tokens == [bytes([byte]) for byte in sorted(range(256), key=lambda byte: ids[letters[byte]])]
    tensors = read_tensors(data, at)
    expected = {
        convert_openai.openai_name(n): t.half().float() for n, t in model.state_dict().items() if n != "proj_out.weight"
    }
    assert tensors.keys() == expected.keys()
    assert {
        "encoder.blocks.1.attn.query.weight", "decoder.blocks.0.cross_attn_ln.bias", "decoder.ln.weight",
        "decoder.token_embedding.weight", "encoder.positional_embedding", "encoder.blocks.0.mlp.2.bias",
    } <= tensors.keys()  # fmt: skip
    coarse = {"": 0.0, "q8_0": 0.01, "q5_0": 0.08}[weights]  # of the largest weight of a row
    for name, (written, kind) in tensors.items():
        wanted = expected[name].numpy().reshape(written.shape)
        quantized = kind in (6, 8)
        assert quantized == (bool(weights) and wanted.ndim == 2 and name.endswith(".weight") and "conv" not in name)
        bound = coarse * np.abs(wanted).max() if quantized else 0
        assert np.abs(written - wanted).max() <= bound


def read_tensors(data: bytes, at: int) -> dict[str, tuple[np.ndarray, int]]:
    found = {}
    while at < len(data):
        dims, length, kind = np.frombuffer(data, "<i4", 3, at).tolist()
        shape = np.frombuffer(data, "<i4", dims, at + 12).tolist()[::-1]
        at += 12 + 4 * dims
        name, at = data[at : at + length].decode(), at + length
        count = int(np.prod(shape))
        if kind < 2:
            values = np.frombuffer(data, ("<f4", "<f2")[kind], count, at)
            at += count * (4, 2)[kind]
        else:
            size = count // 32 * {6: 22, 8: 34}[kind]
            packed = np.frombuffer(data, np.uint8, size, at).reshape(shape[0], -1)
            values, at = quants.dequantize(packed, GGMLQuantizationType(kind)), at + size
        found[name] = values.astype(np.float32).reshape(shape), kind
    return found


def test_blocks_that_do_not_fit_are_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    hf.write(whisper.load(str(tiny_checkpoint), "fp32", CPU), str(tiny_checkpoint), "nl", "transcribe", tmp_path / "hf")
    with pytest.raises(ConfigError, match=r"export\.formats: ggml-q5_0 needs rows of a multiple of 32 weights, got 16"):
        ggml.write(tmp_path / "hf", "q5_0", tmp_path / "ggml")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["export.formats=[onnx]"], "export.formats: onnx is not made, since optimum-onnx"),
        (["export.formats=[gguf]"], "export.formats: gguf is none of hf, ct2, ct2-int8"),
        (["export.formats=[hf,hf]"], "export.formats: must be each of them once"),
        (["export.clips=0"], "export.clips: must be at least 1, or null for all"),
        (["export.wer_tolerance=2"], "export.wer_tolerance: must be a share"),
        (["export.combine=linear"], "export.combine: linear is none of cat, svd"),
        (["export.push=me"], "export.push: must be owner/name, got me"),
        (["export.push_format=ggml", "export.formats=[hf]"], "export.push_format: ggml is none of adapter, hf"),
        (["weights=[0.5]"], "weights: must be one each of adapters"),
        (["adapters=[a,b]", "weights=[0.5]"], "weights: must be one each of adapters"),
        (["adapters=runs"], "adapters: must be {nl: "),
        (["adapters=[1]"], "adapters: must be {nl: "),
    ],
)
def test_settings_that_are_impossible_are_refused_in_one_line(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        load(overrides)


def test_a_missing_runtime_is_named_with_its_extra(
    config_of: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"export.formats: ct2 needs faster-whisper, .*--extra export"):
        main(config_of("export.formats=[hf,ct2]"))


# ---- old settings of a base ----


@pytest.fixture
def old_base(tiny_checkpoint: Path, tmp_path: Path, processor: Any) -> Path:
    """A base with settings of old checkpoints (2022): German forced, other tokens suppressed."""
    base = shutil.copytree(tiny_checkpoint, tmp_path / "whisper-old")
    german, transcribe = processor.tokenizer.convert_tokens_to_ids(["<|de|>", "<|transcribe|>"])
    old = {"suppress_tokens": [], "begin_suppress_tokens": [220, 257]}
    of_config = {"forced_decoder_ids": [[1, german], [2, transcribe]], "max_length": 448}
    write_json(base / "config.json", read_json(base / "config.json") | old | of_config)
    forced = {"forced_decoder_ids": [[1, None], [2, transcribe]]}
    write_json(base / "generation_config.json", read_json(base / "generation_config.json") | old | forced)
    return base


def first_tokens(folder: Path, processor: Any, **given: str) -> tuple[list[str], list[str]]:
    """Decodes with a saved model in plain transformers; returns its first tokens and its warnings."""
    warned: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: warned.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    begun: list[list[int]] = []
    try:
        model = WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
        model.register_forward_pre_hook(
            lambda _, __, inputs: begun.append(inputs["decoder_input_ids"][0].tolist()), with_kwargs=True
        )
        model.generate(torch.randn(1, 80, 3000, generator=torch.Generator().manual_seed(0)), **given)
    finally:
        logger.removeHandler(handler)
    first = next(tokens for tokens in begun if len(tokens) > 1)  # a single token is for detecting the language
    return processor.tokenizer.convert_ids_to_tokens(first), warned


@pytest.mark.parametrize("made", ["export", "whole"])
def test_forced_tokens_of_an_old_base_are_in_no_export_and_no_whole_model(
    made: str, old_base: Path, tmp_path: Path, processor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = whisper.load(str(old_base), "fp32", CPU)
    if made == "export":
        hf.write(model, str(old_base), "nl", "transcribe", tmp_path / "made")
    else:
        adapter.save(model, tmp_path / "made", str(old_base), "full")
    for name in ("config.json", "generation_config.json"):
        assert "forced_decoder_ids" not in read_json(tmp_path / "made" / name)
    given, warned = first_tokens(tmp_path / "made", processor, language="nl", task="transcribe")
    assert given[:3] == ["<|startoftranscript|>", "<|nl|>", "<|transcribe|>"]
    assert not [line for line in warned if "forced" in line or "language" in line]
    alone, warned = first_tokens(tmp_path / "made", processor)
    assert (alone[1] == "<|nl|>") if made == "export" else (alone[1] != "<|de|>")
    assert not [line for line in warned if "forced" in line or "language" in line]
    if made == "export":
        ct2.write(tmp_path / "made", "", tmp_path / "ct2")
        assert "forced_decoder_ids" not in read_json(tmp_path / "ct2" / "config.json")


# ---- verification ----


def test_an_export_with_other_texts_fails_and_leaves_the_evidence(
    config_of: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as wrong:
        wrong.setattr(hf, "transcriber", lambda *_: lambda clip: "ja " * 90)
        with pytest.raises(ExternalError, match=r"export: hf: WER of test is .* ours .*; the texts are in .*proofs"):
            main(config_of("export.formats=[hf]"))
    assert (tmp_path / "out" / "hf.failed" / "model.safetensors").is_file() and not (tmp_path / "out" / "hf").exists()
    lines = read_jsonl(tmp_path / "out" / "proofs" / "hf.jsonl")
    assert len(lines) == 2 and all(line["exported"].startswith("ja ja") and not line["equal"] for line in lines)
    main(config_of("export.formats=[hf]"))
    assert (tmp_path / "out" / "hf").is_dir() and not (tmp_path / "out" / "hf.failed").exists()


def test_an_interrupted_export_leaves_nothing_that_looks_finished(
    config_of: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    (tmp_path / "out" / ".unproven-killed" / "hf").mkdir(parents=True)  # left by a killed export
    with monkeypatch.context() as stopping:
        stopping.setattr(hf, "transcriber", interrupt)
        with pytest.raises(KeyboardInterrupt):
            main(config_of("export.formats=[hf]"))
    assert list((tmp_path / "out").iterdir()) == []


def test_significant_differences_above_tolerance_fail_and_one_word_of_few_does_not(words: list[str]) -> None:
    config = load(words)
    clips = [
        {"id": str(at), "text": text, "speaker": "", "duration": 3.0}
        for at, text in enumerate(["de trein vertrekt om drie uur", "zij leest een boek", "het regent", "ik kom"])
    ]
    each = EvalSet("test", "test", "nl", clips, 4)  # type: ignore[arg-type]
    right = [clip["text"] for clip in clips]
    ours = [{"hypotheses": right, "truncated": [False] * 4, "seconds": 1.0}]

    def failures(theirs: list[str]) -> list[str]:
        figures, lines = verify.compare(config.eval, config.seed, [each], ours, [theirs])
        assert figures[0]["equal"] == sum(line["equal"] for line in lines)
        return verify.parity_failures(figures, 0.03)

    assert failures(right) == []
    assert failures(["De trein, vertrekt om drie uur.", "zij leest een boek", "het regent", "ik kwam"]) == []
    wrong = failures(["dat is niet waar hoor nee", "geen woord klopt", "ook hier niet", "en hier"])
    assert len(wrong) == 1 and wrong[0].startswith("WER of test is ") and "ours 0.0 %" in wrong[0]
    assert failures([right[0] + " uur" * 40, *right[1:]])[-1].startswith("1 of 4 texts of test run away")
    ours[0]["hypotheses"] = [right[0] + " uur" * 40, *right[1:]]
    assert (
        verify.compare(config.eval, config.seed, [each], ours, [ours[0]["hypotheses"]])[0][0]["run_away"] == 0
    )  # ours does too


def figures_of(config: Config, right: int, changed: int) -> list[dict[str, Any]]:
    """Figures of an export whose texts equal ours in `right` clips of four words, and lose one word in `changed`."""
    texts = ["een twee drie vier"] * (right + changed)
    clips = [{"id": str(at), "text": text, "speaker": "", "duration": 3.0} for at, text in enumerate(texts)]
    each = EvalSet("test", "test", "nl", clips, len(clips))  # type: ignore[arg-type]
    ours = [{"hypotheses": texts, "truncated": [False] * len(texts), "seconds": 1.0}]
    theirs = [texts[:right] + ["een twee drie"] * changed]
    return verify.compare(config.eval, config.seed, [each], ours, theirs)[0]


@pytest.mark.parametrize(
    ("right", "changed", "outcome", "why"),
    [
        (100, 0, "passed", None),  # 3 of 100 is the tolerance
        (99, 0, "cannot tell", "99 clips of test exclude a difference of 3.0 points at best"),
        (16, 0, "cannot tell", "16 clips of test exclude a difference of 18.8 points at best"),
        (95, 5, "passed", None),
        (90, 10, "cannot tell", "WER of test differs by +2.5 points (+1.2 to +4.0) on 100 clips"),
        (60, 40, "failed", None),
    ],
)
def test_too_few_clips_for_the_tolerance_cannot_tell_and_are_not_passed(
    words: list[str], right: int, changed: int, outcome: str, why: str | None
) -> None:
    figures = figures_of(load(words), right, changed)
    undecided = verify.undecided(figures, 0.03)
    assert verify.outcome(verify.parity_failures(figures, 0.03), undecided) == outcome
    assert undecided[0].startswith(why) if why else not undecided or outcome == "failed", undecided


@pytest.mark.slow
def test_an_export_of_few_clips_is_kept_and_recorded_as_cannot_tell(
    config_of: Callable[..., Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):  # the second time it is known, and said again
        main(config_of("export.formats=[hf]"))
        shown = capsys.readouterr()
        (line,) = (line for line in shown.err.splitlines() if line.startswith("hf: cannot tell"))
        assert "2 clips of test" in line and line.endswith("export.clips=null decodes all test clips")
        assert "cannot tell" in " ".join(shown.out.split())
    row = read_json(tmp_path / "out" / "exports.json")["hf"]
    assert (row["outcome"], row["failures"], len(row["undecided"])) == ("cannot tell", [], 1)
    assert (tmp_path / "out" / "hf").is_dir() and not (tmp_path / "out" / "hf.failed").exists()
    main(config_of("export.formats=[hf]", "export.clips=100"))
    assert (
        "6 clips of test exclude a difference of 50.0 points at best; test has no more clips" in capsys.readouterr().err
    )


# ---- devices of verification ----


@pytest.fixture
def of_ct2(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    hf.write(whisper.load(str(tiny_checkpoint), "fp32", CPU), str(tiny_checkpoint), "nl", "transcribe", tmp_path / "hf")
    ct2.write(tmp_path / "hf", "", tmp_path / "ct2")
    return tmp_path / "ct2"


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a usable GPU")
def test_ctranslate2_runs_on_the_cpu_if_the_gpu_fails_and_logs_why(
    of_ct2: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ct2.runs_on(of_ct2, CPU) == CPU and capsys.readouterr().err == ""
    assert ct2.runs_on(of_ct2, CUDA) == CPU
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(
        r"ct2: CTranslate2 cannot use the GPU \(CUDA failed .*\), so its verification runs on the CPU", line
    )

    def without_cublas(*_: object, **__: object) -> None:
        raise RuntimeError("Library libcublas.so.12 is not found or cannot be loaded")

    monkeypatch.setattr(ct2, "WhisperModel", without_cublas)
    assert ct2.runs_on(of_ct2, CUDA) == CPU
    assert capsys.readouterr().err.endswith(
        "runs on the CPU; `uv pip install nvidia-cublas-cu12` installs the library\n"
    )


def test_ctranslate2_runs_on_the_gpu_of_the_run_if_it_can(of_ct2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual, used = ct2.WhisperModel, []

    def on_cpu(path: str, device: str, device_index: int, **settings: Any) -> Any:
        used.append((device, device_index))
        return usual(path, device="cpu", **settings)

    monkeypatch.setattr(ct2, "WhisperModel", on_cpu)
    assert ct2.runs_on(of_ct2, CUDA) == CUDA
    ct2.transcriber(of_ct2, "nl", "transcribe", CUDA)
    ct2.transcriber(of_ct2, "nl", "transcribe", CPU)
    assert used == [("cuda", 1), ("cuda", 1), ("cpu", 0)]


def test_a_verification_logs_its_runtime_and_device_and_predicts_its_duration(
    config_of: Callable[..., Config],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(verify, "FIRST", 1e9)
    main(config_of("export.formats=[hf]"))
    err = capsys.readouterr().err
    assert re.search(r"hf: transcribing 2 clips \(0:0\d min of speech\) at 30 s in transformers [\d.]+ on cpu\n", err)
    assert "about" not in err  # it ended earlier
    assert read_json(tmp_path / "out" / "exports.json")["hf"]["device"] == "cpu"
    shutil.rmtree(tmp_path / "out")
    monkeypatch.setattr(verify, "FIRST", 0.0)
    main(config_of("export.formats=[hf]"))
    assert re.findall(r"hf: about \d+:\d\d min for all 2 clips, by the first (\d)\n", capsys.readouterr().err) == ["1"]


# ---- combinations ----


@pytest.fixture
def folders(tmp_path: Path, processor: Any) -> dict[str, Path]:
    """A plain LoRA of rank 4 and a rank-stabilized one of rank 2, both nonzero."""
    made = {}
    for name, overrides in {"plain.0": ["lora.r=4"], "stable": ["lora=rslora", "lora.r=2"]}.items():
        tuned = adapter.attach(tiny_whisper(processor.tokenizer), load(overrides).lora, seed=0)
        with torch.no_grad():
            for parameter_name, parameter in tuned.named_parameters():
                if "lora_B" in parameter_name:
                    parameter.normal_(std=0.1)
        adapter.save(tuned, tmp_path / name, "openai/whisper-tiny", "dynamic")
        made[name] = tmp_path / name
    return made


def changed(folder: Path, processor: Any) -> dict[str, torch.Tensor]:
    """Returns what an adapter adds to every weight."""
    base = tiny_whisper(processor.tokenizer).state_dict()
    merged = adapter.merge(tiny_whisper(processor.tokenizer), folder).state_dict()
    return {name: merged[name] - base[name] for name in base if "proj.weight" in name}


@pytest.mark.parametrize(("method", "rank"), [("cat", 6), ("svd", 4)])
def test_a_combination_is_the_weighted_sum_of_its_adapters(
    method: str, rank: int, folders: dict[str, Path], tmp_path: Path, processor: Any
) -> None:
    base = tiny_whisper(processor.tokenizer)
    arithmetic.combine_adapters(folders, [0.3, 0.9], method, tmp_path / "sum", base)
    first, second = (changed(folder, processor) for folder in folders.values())
    for name, delta in changed(tmp_path / "sum", processor).items():
        wanted = 0.3 * first[name] + 0.9 * second[name]
        if method == "cat":
            torch.testing.assert_close(delta, wanted, atol=1e-6, rtol=1e-4)
        else:  # the closest matrix of that rank, by Eckart and Young
            lost = torch.linalg.svdvals(wanted)[rank:].square().sum().sqrt()
            torch.testing.assert_close((delta - wanted).norm(), lost, atol=1e-5, rtol=1e-2)
    settings = read_json(tmp_path / "sum" / "adapter_config.json")
    assert (settings["r"], settings["base_model_name_or_path"]) == (rank, "openai/whisper-tiny")
    assert not adapter_folder.knows_short_context(tmp_path / "sum")
    assert "openai/whisper-tiny" in (tmp_path / "sum" / "README.md").read_text()


def test_adapters_that_cannot_be_added_are_refused(folders: dict[str, Path], tmp_path: Path, processor: Any) -> None:
    tuned = adapter.attach(
        tiny_whisper(processor.tokenizer), load(["lora=dora", "lora.r=2", "model.precision=fp32"]).lora, 0
    )
    adapter.save(tuned, tmp_path / "dora", "openai/whisper-tiny", "dynamic")
    with pytest.raises(ConfigError, match=r"adapters.dora: must be a plain LoRA, got .*dora"):
        both = {**folders, "dora": tmp_path / "dora"}
        arithmetic.combine_adapters(both, [1, 1, 1], "cat", tmp_path / "sum", tiny_whisper(processor.tokenizer))


@pytest.mark.slow
def test_runs_are_combined_scored_on_each_ones_test_and_exported(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    combination = [f"adapters=[{runs[0]},{runs[1]}]", "weights=[0.25,0.75]", f"runs_dir={tmp_path}", "hardware=cpu"]
    main(load([*combination, "export.formats=[hf]", "export.clips=2", "export.long_minutes=null", "eval.limit=2"]))
    (out,) = (tmp_path / "combined").iterdir()
    found = read_json(out / "combined.json")
    assert [(row["set"], row["clips"]) for row in found["sets"]] == [(each.name, 2) for each in runs]
    assert {"base", "own", "combined"} <= found["sets"][0].keys()
    assert [each["set"] for each in read_json(out / "exports.json")["hf"]["sets"]] == [each.name for each in runs]
    assert "combined (cat): 0.25 of first, 0.75 of nl-1h-lr0.3" in capsys.readouterr().err


def test_the_same_shares_of_adapters_in_another_order_have_another_folder(tmp_path: Path) -> None:
    first, second = {"a": tmp_path / "a"}, {"b": tmp_path / "b"}
    config = load([f"runs_dir={tmp_path}"])
    places = {verify._place(config, folders, [0.3, 0.7]) for folders in (first | second, second | first)}
    assert len(places) == 2


def test_runs_that_cannot_be_combined_are_refused(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="adapters: must be a list"):
        main(load([f"adapters={{nl: {runs[0]}}}"]))
    with pytest.raises(ConfigError, match="adapters: must have different names"):
        main(load([f"adapters=[{runs[0]},{runs[0]}]"]))
    with pytest.raises(ConfigError, match="run_dir: no run in"):
        main(load([f"adapters=[{runs[0]},{tmp_path}]"]))


# ---- the Hub ----


class FakeHub(BaseHTTPRequestHandler):
    """The parts of the Hub that a small upload needs; records `commits` and `created`."""

    commits: list[list[dict[str, Any]]]
    created: list[dict[str, Any]]
    tokens: set[str]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        self.tokens.add(self.headers["Authorization"])
        if self.path == "/api/repos/create":
            self.created.append(json.loads(body))
            self.answer({"url": f"http://{self.headers['Host']}/me/model"})
        elif self.path.endswith("/preupload/main"):
            files = [{**file, "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]]
            self.answer({"files": files})
        elif self.path.endswith("/commit/main"):
            self.commits.append([json.loads(line) for line in body.splitlines()])
            self.answer(
                {
                    "success": True,
                    "commitOid": "0" * 40,
                    "commitUrl": f"http://{self.headers['Host']}/me/model/commit/0",
                }
            )
        else:
            self.answer({})

    def do_GET(self) -> None:
        self.answer({"id": "me/model", "siblings": [], "sha": "0" * 40})

    def answer(self, value: object) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def fake_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FakeHub]]:
    FakeHub.commits, FakeHub.created, FakeHub.tokens = [], [], set()
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(command, "HfApi", partial(HfApi, endpoint))
    monkeypatch.setenv("HF_TOKEN", "hf_planted")
    yield FakeHub
    server.shutdown()
    server.server_close()


def test_a_dry_run_lists_the_files_and_uploads_nothing(
    config_of: Callable[..., Config], fake_hub: type[FakeHub], capsys: pytest.CaptureFixture[str]
) -> None:
    main(config_of("export.formats=[]", "export.push=me/model"))
    shown = capsys.readouterr().err
    assert "would upload to me/model (public)" in shown and "nothing was uploaded" in shown
    assert all(name in shown for name in ("README.md", "adapter_model.safetensors", "adapter_config.json"))
    assert not fake_hub.created and not fake_hub.commits


def test_without_dry_run_the_adapter_is_uploaded_as_one_commit_with_its_card(
    config_of: Callable[..., Config], runs: list[Path], fake_hub: type[FakeHub], capsys: pytest.CaptureFixture[str]
) -> None:
    main(config_of("export.formats=[]", "export.push=me/model", "export.private=true", "export.dry_run=false"))
    (commit,) = fake_hub.commits
    sent = {line["value"]["path"] for line in commit if line["key"] == "file"}
    assert sent == {file.name for file in run.adapter(runs[1]).iterdir()}
    assert fake_hub.created[0]["visibility"] == "private" and fake_hub.tokens == {"Bearer hf_planted"}
    assert "/me/model/commit/0" in capsys.readouterr().err
    planted = [file for file in runs[1].rglob("*") if file.is_file() and b"hf_planted" in file.read_bytes()]
    assert planted == []


def test_an_upload_without_results_token_or_network_fails_in_one_line(
    config_of: Callable[..., Config], runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = replace(load().export, push="me/model", dry_run=False)
    with pytest.raises(ConfigError, match=r"export.push: the card of .* has no results yet"):
        command.push(run.adapter(runs[0]), upload)
    monkeypatch.setattr(command, "get_token", lambda: None)
    with pytest.raises(ConfigError, match=r"export.push: needs a token of the Hub, got none"):
        command.push(run.adapter(runs[1]), upload)
    monkeypatch.setattr(command, "get_token", lambda: "hf_planted")
    with pytest.raises(ExternalError, match=r"export.push: the upload to me/model failed") as error:
        command.push(run.adapter(runs[1]), upload)
    assert "hf_planted" not in str(error.value)


# ---- short contexts ----


@pytest.mark.slow
def test_an_export_is_verified_at_short_contexts_too_and_must_pass_there(
    config_of: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    contexts: list[float | None] = []
    really = hf.transcriber

    def at_any_context(*given: Any) -> Callable[[np.ndarray], str]:
        *rest, margin = given
        contexts.append(margin)
        return really(*rest) if margin is None else lambda clip: said

    monkeypatch.setattr(hf, "has_short_contexts", lambda: True)
    monkeypatch.setattr(hf, "transcriber", at_any_context)
    said = "ja " * 90
    with pytest.raises(ExternalError, match=r"export: hf: at clip length and 0\.5 s: WER of test is"):
        main(config_of("export.formats=[hf]", "export.short_margin=0.5"))
    config = config_of("export.formats=[hf]", "export.short_margin=0.5")
    lines = read_jsonl(tmp_path / "out" / "proofs" / "hf.jsonl")
    capsys.readouterr()
    recorded = run.recorded_config(last_run(Path(config.runs_dir)), config, [])
    hardware = hardware_of(recorded)
    plain = replace(recorded.decoding, context="plain", context_margin=0.5, num_beams=1, fallback=False)
    sets = verify.of_run(recorded, hardware).sets
    (ours,) = decode_sets(recorded.model, plain, hardware, sets, run.tuned(recorded.run))
    texts = iter(ours["hypotheses"])
    monkeypatch.setattr(
        hf, "transcriber", lambda *given: really(*given[:-1]) if given[-1] is None else lambda clip: next(texts)
    )
    main(config)
    row = read_json(tmp_path / "out" / "exports.json")["hf"]
    assert contexts == [None, 0.5] and len(lines) == 2
    assert row["failures"] == [] and row["short"]["margin"] == 0.5
    assert [(each["equal"], each["clips"]) for each in row["short"]["sets"]] == [(2, 2)]
    assert "clip + 0.5 s" in capsys.readouterr().out
    main(config_of("export.formats=[hf]", "export.short_margin=null"))  # other proof: verified anew
    assert "short" not in read_json(tmp_path / "out" / "exports.json")["hf"]


def test_a_model_that_runs_away_at_short_contexts_is_said_to_be_unsafe_there_and_is_exported(
    config_of: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    really = command.decode_sets

    def decode(model: Any, decoding: Any, *rest: Any) -> list[dict[str, Any]]:
        found = really(model, decoding, *rest)
        return [each | {"hypotheses": ["ja " * 90] * 2} for each in found] if decoding.context == "plain" else found

    monkeypatch.setattr(hf, "has_short_contexts", lambda: True)
    monkeypatch.setattr(command, "decode_sets", decode)
    main(config_of("export.formats=[hf]"))
    row = read_json(tmp_path / "out" / "exports.json")["hf"]
    assert "short" not in row and row["failures"] == []
    assert re.search(
        r"not safe at short contexts .*test: WER \d+\.\d %, at 30 s .*training\.plain_share", capsys.readouterr().err
    )


def test_transformers_has_no_short_contexts(tmp_path: Path) -> None:
    assert (hf.has_short_contexts(), ct2.has_short_contexts(), ggml.has_short_contexts()) == (False, True, True)
    with pytest.raises(ValueError, match="margin: must be None in transformers, got 1"):
        hf.transcriber(tmp_path, "nl", "transcribe", CPU, 1.0)
