"""The app: both models transcribe, differences are marked, the page works in a browser."""

import json
import os
import re
import shutil
import signal
import socket
import string
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pytest
import soundfile
import torch
from support.pages import HOSTILE, Page, problems_of, served_page, violations
from support.releases import write_release
from support.runs import hardware_of, tiny_run
from transformers import GenerationConfig

from asr_lora.app import models, ui
from asr_lora.app.__main__ import app
from asr_lora.app.models import DETECTED, TUNED, ModelPair, PairResult, of_run, with_adapters
from asr_lora.app.serving import check_address, delete_old, is_loopback
from asr_lora.config.compose import Config, load
from asr_lora.data.manifest import read_manifest
from asr_lora.decoding.generate import Segment, decode_once
from asr_lora.decoding.transcriber import with_base, with_run
from asr_lora.demo.espeak import RATE, Utterance, speak
from asr_lora.model import adapter, arithmetic
from asr_lora.model.pretrained import load_processor
from asr_lora.runs import finding
from asr_lora.runs import folder as run
from asr_lora.runtime.errors import ConfigError, ExternalError
from asr_lora.speech.normalizer import Normalizer
from asr_lora.train import train

SENTENCES = ["de trein vertrekt om drie uur", "morgen gaat het regenen in het noorden"]
SCORING = load([]).eval


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sentences with two seconds of silence between them, in a file whose name a browser must keep."""
    parts = [
        np.frombuffer(pcm, np.int16)
        for pcm in speak([Utterance(text=text, voice="nl+m1", pitch=50, rate=150) for text in SENTENCES])
    ]
    file = tmp_path_factory.mktemp("talks") / "praatje [1], é.wav"
    soundfile.write(file, np.concatenate([parts[0], np.zeros(2 * RATE, np.int16), parts[1]]), RATE)
    return file


@pytest.fixture(scope="module")
def lettered(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The random Whisper, limited to letters: other bytes are not displayable."""
    folder = tmp_path_factory.mktemp("lettered") / "whisper-random"
    shutil.copytree(tiny_checkpoint, folder)
    tokenizer = load_processor(str(folder)).tokenizer
    allowed = {tokenizer.eos_token_id, *tokenizer.convert_tokens_to_ids([*string.ascii_lowercase, "Ġ"])}
    settings = GenerationConfig.from_pretrained(folder)
    settings.suppress_tokens = sorted(set(range(len(tokenizer))) - allowed)
    settings.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def made(lettered: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Trains a run that changes the transcripts, once for each name; its clips stay where they are."""
    folder, known = tmp_path_factory.mktemp("tuned"), {}
    write_release(folder / "cv-corpus-25.0-2026-06-05")
    overrides = tiny_run(folder / "cv-corpus-25.0-2026-06-05", lettered, folder / "runs")

    def trained(name: str, *more: str) -> Path:
        if name not in known:
            sized = [override for override in overrides if override != "lora.r=4" or "lora=bitfit" not in more]
            # A learning rate this high, behind the same silence as decoding has, changes even a random model's texts.
            changing = ["training.learning_rate=0.3", "training.plain_share=0"]
            config = load([*sized, f"run_name={name}", "eval.after=false", *changing, *more])
            train(config)
            known[name] = config.run
        return known[name]

    return trained


def config_of(folder: Path, *more: str) -> Config:
    return load([f"run_dir={folder}", "hardware=cpu", "decoding.max_new_tokens=8", *more])


def pair_of(folder: Path, *more: str) -> ModelPair:
    config = config_of(folder, *more)
    return of_run(config, run.recorded_config(folder, config, []), hardware_of(config))


def no_progress(which: str, done: int, of: int) -> None:
    """Reports nothing."""


# ---- transcripts ----


@pytest.mark.slow
def test_one_base_in_memory_decodes_like_the_run_and_the_checkpoint(made: Callable[..., Path], talk: Path) -> None:
    folder = made("nl")
    pair = pair_of(folder, "transcribe.max_segment_seconds=5")
    assert pair.base is pair.tuned and list(pair.choices) == ["nl"]
    reported: list[tuple[str, int, int]] = []
    result = pair.transcribe(talk, "nl", 1.0, 1.0, False, lambda *each: reported.append(each))
    assert (result.language, result.adapter, len(result.tuned), len(result.base)) == ("nl", "nl", 2, 2)
    assert result.base != result.tuned
    # Runaway segments are counted once.
    assert [each[0] for each in reported if each[1] == 0] == ["base", "fine-tuned"]
    assert reported[-1] == ("fine-tuned", 2, 2) and max(done for _, done, _ in reported) == 2

    config, spoken = config_of(folder), [(each.start, each.end) for each in result.tuned]
    base = f"model.checkpoint={run.settings(folder)['model']['checkpoint']}"
    other, recorded = config_of(folder, base), run.recorded_config(folder, config, [])
    alone = with_base(other.model, other.decoding, hardware_of(config))
    merged = with_run(folder, run.with_pinned_base(recorded).model, config.decoding, hardware_of(config))
    for model, expected in ((alone, result.base), (merged, result.tuned)):
        with model.session("nl", None) as settings:
            assert model.segments([(talk, *part) for part in spoken], settings) == expected


def test_a_strength_decodes_like_a_scaled_adapter_and_strength_0_like_the_base(
    made: Callable[..., Path], talk: Path, tmp_path: Path
) -> None:
    folder = made("nl")
    pair = pair_of(folder)
    checkpoint = pair.base.base.checkpoint
    arithmetic.scale_adapter(run.adapter(folder), 0.5, tmp_path / "half", checkpoint)
    half = adapter.load(checkpoint, tmp_path / "half", "fp32", torch.device("cpu"))
    clips = [{"path": str(talk), "start": 0.0, "end": 2.0, "duration": 2.0}]
    with pair.tuned.session("nl", TUNED, 0.5) as settings:
        assert settings.margin is None  # 30 s
        (live,) = decode_once(pair.tuned.model, pair.tuned.processor, clips, settings)
    (expected,) = decode_once(half, load_processor(checkpoint), clips, settings)
    assert live.tokens == expected.tokens

    result = pair.transcribe(talk, "nl", 0.0, 1.0, False, no_progress)
    assert result.base == result.tuned
    again = pair.transcribe(talk, "nl", 1.0, 1.0, False, no_progress)
    assert again.base != again.tuned  # the strength holds for one transcription only


@pytest.mark.parametrize(("kind", "two"), [("dora", False), pytest.param("bitfit", True, marks=pytest.mark.slow)])
def test_methods_that_do_not_scale_have_no_slider_and_whole_models_a_separate_base(
    made: Callable[..., Path], talk: Path, tmp_path: Path, kind: str, two: bool
) -> None:
    pair = pair_of(made(kind, f"lora={kind}"))
    assert (pair.base is not pair.tuned) == two
    handlers = ui.Handlers(pair, load([]).app, tmp_path)
    slider = handlers.strength(kind)
    assert not slider.interactive and slider.value == 1
    with pytest.raises(ConfigError, match=f"strength: must be 1 for {kind}"):
        pair.transcribe(talk, kind, 0.5, 1.0, False, no_progress)
    result = pair.transcribe(talk, kind, 1.0, 1.0, False, no_progress)
    assert len(result.base) == len(result.tuned) == 1


def test_several_adapters_are_chosen_by_name_or_by_the_detected_language(made: Callable[..., Path], talk: Path) -> None:
    adapters = f"adapters={{nl: {made('nl')}, de: {run.adapter(made('de', 'seed=1'))}}}"
    for language, fits in (("nl", True), ("es", False)):
        few = ["decoding.max_new_tokens=8", "decoding.fallback=false"]
        config = load([adapters, "hardware=cpu", *few, f"transcribe.language={language}"])
        pair = with_adapters(config, config.adapters or {}, hardware_of(config), [])
        assert [(name, each.language) for name, each in pair.choices.items()] == [("nl", "nl"), ("de", "de")]
        assert pair.choices["nl"].clips and not pair.choices["de"].clips  # an adapter alone has no manifest
        if fits:
            named = pair.transcribe(talk, "nl", 1.0, 1.0, False, no_progress)
            assert pair.transcribe(talk, DETECTED, 1.0, 1.0, False, no_progress) == named
            assert pair.transcribe(talk, "de", 1.0, 1.0, False, no_progress).tuned != named.tuned
        else:
            with pytest.raises(ConfigError, match="adapter: none is of the detected language es; choose one of nl"):
                pair.transcribe(talk, DETECTED, 1.0, 1.0, False, no_progress)


def test_an_untrained_run_is_refused(words: list[str], tmp_path: Path) -> None:
    config = load(words)
    with pytest.raises(ConfigError, match=r"no adapter in .*; train it first, with the same settings: make train"):
        of_run(config, config, hardware_of(config))


def test_a_run_of_a_version_without_the_app_can_be_opened(made: Callable[..., Path], tmp_path: Path) -> None:
    settings = run.settings(made("nl"))
    old = {
        name: value
        for name, value in settings.items()
        if name not in ("transcribe", "export", "app", "audio", "adapters", "weights")
    }
    file = finding.settings_file(tmp_path)
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(old))  # JSON is YAML
    assert run.recorded_config(tmp_path, load([]), []).lora.kind == "qv"
    for group in ("label", "app", "transcribe", "plan", "search"):  # of which one setting was added since
        later = {**settings, group: dict([*settings[group].items()][1:])}
        file.write_text(json.dumps(later))
        assert getattr(run.recorded_config(tmp_path, load([]), []), group) == getattr(load([]), group)


# ---- errors ----


@pytest.fixture
def handlers(made: Callable[..., Path], tmp_path: Path) -> ui.Handlers:
    return ui.Handlers(pair_of(made("nl")), load(["app.max_minutes=0.2", "app.max_megabytes=1"]).app, tmp_path)


def _bad(folder: Path, name: str) -> str | None:
    file = folder / f"{name}.wav"
    if name == "nothing":
        return None
    if name == "junk<b>":
        file.write_bytes(b"no sound at all")
    elif name == "empty":
        file.touch()
    elif name == "silent":
        soundfile.write(file, np.zeros(16_000), 16_000)
    elif name == "long":
        soundfile.write(file, np.zeros(8_000 * 13), 8_000, subtype="PCM_U8")
    elif name == "large":
        file.write_bytes(bytes(1_000_001))
    return str(file)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "no recording yet; record audio, or choose a file or a clip"),
        ("gone", "this recording has been deleted (app.keep_minutes); record or choose it again"),
        ("junk<b>", "junk&lt;b&gt;.wav: clip cannot be decoded: Format not recognised"),
        ("empty", "empty.wav: clip cannot be decoded: Format not recognised"),
        ("silent", "no speech found in this recording (Silero VAD)"),
        ("long", "long.wav: is longer than 0.2 minutes (app.max_minutes)"),
        ("large", "large.wav: is larger than 1 MB (app.max_megabytes)"),
    ],
)
def test_a_recording_that_cannot_be_transcribed_is_one_line_on_the_page(
    handlers: ui.Handlers, tmp_path: Path, name: str, message: str
) -> None:
    with pytest.raises(gr.Error) as refusal:
        handlers.transcribe(_bad(tmp_path, name), "nl", None, 1.0, lambda *_, **__: None)
    assert refusal.value.message == message


def test_a_port_in_use_and_a_host_of_another_machine_are_one_line_each() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ExternalError, match=rf"app\.port: another program uses port {port} of 127.0.0.1"):
            app(load([f"app.port={port}"]))  # before anything is loaded
    with pytest.raises(ConfigError, match=r"app\.host: must be available, got 192\.0\.2\.1"):
        check_address(load(["app.host=192.0.2.1"]).app)


@pytest.mark.slow
def test_without_gradio_the_error_names_how_to_install_it() -> None:
    code = "import sys, runpy; sys.modules['gradio'] = None; runpy.run_module('asr_lora.app', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (
        1, "error: app: needs gradio, which is not installed; `uv sync --inexact --extra app` installs it\n"
    )  # fmt: skip


def test_only_loopback_addresses_are_local() -> None:
    assert is_loopback("127.0.0.1") and is_loopback("localhost") and is_loopback("::1")
    assert not is_loopback("0.0.0.0") and not is_loopback("::")


def test_old_recordings_are_deleted(tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.wav").touch()
    os.utime(tmp_path / "old", (time.time() - 100, time.time() - 100))
    delete_old(tmp_path, 60)
    assert [each.name for each in tmp_path.iterdir()] == ["new"]


# ---- results ----


def result_of(base: str, tuned: str) -> PairResult:
    return PairResult("run", "nl", 1.0, 2.0, [Segment(0, 2, base)], [Segment(0, 2, tuned, truncated=True)])


def test_words_that_differ_are_marked_on_both_sides_and_not_by_color_alone() -> None:
    page = ui.render_result(result_of("De trijn, vertrekt - om drie", "de trein vertrekt om drie uur"), SCORING, None)
    assert "<del>trijn,</del>" in page and "<ins>trein</ins>" in page and "<ins>uur</ins>" in page
    assert "<del>-</del>" in page  # not a word, but aligned
    assert "<del>De" not in page and "Against the reference" not in page
    assert "1 of 1 segments ran away and was truncated" in page


def test_against_a_reference_errors_and_rates_equal_those_of_scoring() -> None:
    page = ui.render_result(result_of("de trijn", "de trein"), SCORING, "De trein vertrekt.")
    assert re.search(r"<del>\w+</del> +<del>|<del>vertrekt</del>", page) and "<ins>trijn</ins>" in page
    assert re.findall(r"([\d.]+%) <span class=\"small\">(\d of \d words)", page) == [
        ("66.7%", "2 of 3 words"), ("33.3%", "1 of 3 words")
    ]  # fmt: skip
    silent = ui.render_result(result_of("de", ""), SCORING, "...")
    assert "(no speech)" in silent and "(nothing)" in silent


def test_characters_are_compared_in_unspaced_scripts() -> None:
    result = PairResult("run", "ja", 1.0, 2.0, [Segment(0, 2, "今日は雨")], [Segment(0, 2, "今日は雪")])
    page = ui.render_result(result, SCORING, "今日は雪。")
    assert "<del>雨</del>" in page and "<ins>雪</ins>" in page
    assert "25.0%" in page and "1 of 4 characters" in page


def test_markup_in_hypotheses_and_references_stays_text(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(ui.render_result(result_of(HOSTILE, "x"), SCORING, HOSTILE), encoding="utf-8")
    page = Page(tmp_path / "page.html")
    assert "script" not in {tag for tag, _ in page.tags} and "<script>1</script>" in page.text


def test_differences_keep_every_word_as_it_was_written() -> None:
    base, tuned = "Ja -- auto's, die? kom!", "ja auto's dié kom dan"
    chunks = ui.differences(base, tuned, Normalizer("marks", "nl"))
    assert " ".join(word for chunk in chunks for word in chunk.reference) == base
    assert " ".join(word for chunk in chunks for word in chunk.hypothesis) == tuned
    assert [chunk.hypothesis for chunk in chunks if chunk.kind == "equal"] == [["ja"], ["auto's"], ["kom"]]


def test_a_test_clip_is_decoded_whole_as_in_scoring_and_other_audio_has_no_reference(
    handlers: ui.Handlers, talk: Path
) -> None:
    clip = handlers.pair.choices["nl"].clips[0]
    loaded = handlers.load("nl", clip["id"])
    assert Path(loaded).read_bytes() == Path(clip["path"]).read_bytes()
    shown, (txt, srt) = handlers.transcribe(loaded, "nl", clip["id"], 1.0, lambda *_, **__: None)
    assert "Against the reference" in shown
    assert Path(srt).read_text().startswith("1\n00:00:00,000 --> 00:00:00,") and Path(txt).read_text().count("\n") == 1
    shown, _ = handlers.transcribe(str(talk), "nl", clip["id"], 1.0, lambda *_, **__: None)
    assert "Against the reference" not in shown


def test_the_words_to_expect_are_the_prompt_of_both_models(handlers: ui.Handlers, talk: Path) -> None:
    with pytest.raises(gr.Error, match="prompt: must be at most 31 tokens long"):
        handlers.transcribe(str(talk), "nl", None, 1.0, lambda *_, **__: None, "Wolvenroedel " * 300)
    with handlers.pair.tuned.session("nl", TUNED, 1.0, "Anna en Ben") as settings:
        assert handlers.pair.tuned.processor.decode(settings.prompt) == "<|startofprev|> Anna en Ben"


def test_a_transcription_stops_when_the_app_ends(handlers: ui.Handlers, talk: Path) -> None:
    handlers.end()
    with pytest.raises(gr.Error, match="the app has ended"):
        handlers.transcribe(str(talk), "nl", None, 1.0, lambda *_, **__: None)
    assert not handlers.busy.locked()


def test_clips_whose_files_are_missing_are_not_offered(made: Callable[..., Path], tmp_path: Path) -> None:
    clips = read_manifest(run.manifest(made("nl"), "test"))
    file = run.manifest(tmp_path, "test")
    file.parent.mkdir(parents=True)
    text = run.manifest(made("nl"), "test").read_text().replace(clips[0]["path"], "/nowhere/a.mp3")
    file.write_text(text)
    assert [clip["id"] for clip in models.test_clips(tmp_path)] == [clip["id"] for clip in clips[1:]]
    assert models.test_clips(tmp_path / "no run") == []


# ---- in a real browser ----


def served(*words: str) -> AbstractContextManager[tuple[str, subprocess.Popen[str], list[str]]]:
    return served_page("app", *words)


def visit(browser: Any, address: str, scheme: str, width: int) -> tuple[Any, list[str]]:
    """Opens the page; returns it and its problems, now and later."""
    page = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 900})
    wrong = problems_of(page, address)
    page.goto(address)
    page.wait_for_selector("#start")
    return page, wrong


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize(("scheme", "width"), [("light", 1100), ("dark", 390)])
def test_in_a_browser_both_models_transcribe_and_differences_are_marked(
    made: Callable[..., Path], talk: Path, browser: Any, tmp_path: Path, scheme: str, width: int
) -> None:
    folder = made("nl")
    clip = models.test_clips(folder)[1]
    with served(f"run_dir={folder}", "decoding.max_new_tokens=8", "transcribe.max_segment_seconds=5") as (
        address,
        process,
        lines,
    ):
        page, wrong = visit(browser, address, scheme, width)
        page.locator("button[aria-label='Upload file']").click()
        page.set_input_files("input[type=file]", talk)
        page.wait_for_selector("button[aria-label='Play']")
        page.locator("#start").click()
        page.wait_for_selector(".result", timeout=60_000)
        ins, drawn = page.locator(".result .tuned ins").first, "element => getComputedStyle(element)"
        assert page.locator(".result .base .words").inner_text() and ins.inner_text()
        assert ins.evaluate(f"{drawn}.borderBottomStyle") == "solid"  # not by color alone
        assert page.locator(".result .base del").first.evaluate(f"{drawn}.textDecorationLine") == "line-through"
        assert page.locator(".scored").count() == 0
        with page.expect_download() as fetched:
            page.get_by_text("fine-tuned text as srt").click()
        assert fetched.value.suggested_filename == "praatje [1], é.srt"
        assert Path(fetched.value.path()).read_text(encoding="utf-8").startswith("1\n00:00:0")

        page.locator("#clip input").click()
        page.get_by_role("option").nth(1).click()
        page.wait_for_function("!document.querySelector('.result')")  # the old result is of another recording
        page.wait_for_timeout(500)
        page.locator("#start").click()
        page.wait_for_selector(".scored", timeout=60_000)
        assert page.locator(".scored [data-model=tuned] .rate").inner_text().endswith("words")
        assert page.locator(".scored p").first.inner_text().removeprefix("reference").strip() == (
            Normalizer("marks", "nl")(clip["text"])
        )
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert violations(page) == []
        page.locator("#strength input[type=range]").focus()
        page.keyboard.press("ArrowLeft")  # focused by a script alone, a focus would not be shown
        focused = page.evaluate("[document.activeElement.type, getComputedStyle(document.activeElement).outlineStyle]")
        assert focused == ["range", "solid"]
        assert wrong == []
        if shots := os.environ.get("ASR_LORA_SCREENSHOTS"):  # for a review by eye
            page.screenshot(path=f"{shots}/app-{scheme}-{width}.png", full_page=True)

        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    assert lines[-1] == "app: ended, and the recordings are deleted" and not [line for line in lines if "Trace" in line]


@pytest.mark.slow
@pytest.mark.browser
def test_in_a_browser_a_bad_file_is_one_line_and_the_page_keeps_working(
    made: Callable[..., Path], talk: Path, browser: Any, tmp_path: Path
) -> None:
    (tmp_path / "bad.mp3").write_bytes(b"no sound at all")
    (tmp_path / "large.wav").write_bytes(bytes(2_000_001))
    with served(f"run_dir={made('nl')}", "app.max_megabytes=2", "app.host=localhost") as (address, _, lines):
        page, _ = visit(browser, address.replace("127.0.0.1", "localhost"), "light", 1100)
        for file, message in (
            ("large.wav", "exceed the maximum allowed size"), ("bad.mp3", "bad.mp3: clip cannot be decoded")
        ):  # fmt: skip
            page.reload()
            page.locator("button[aria-label='Upload file']").click()
            page.set_input_files("input[type=file]", tmp_path / file)
            if file == "bad.mp3":
                page.wait_for_selector("audio")
                page.locator("#start").click()
            page.wait_for_selector(f".toast-body:has-text('{message}')", timeout=60_000)
        page.reload()
        page.locator("button[aria-label='Upload file']").click()
        page.set_input_files("input[type=file]", talk)
        page.wait_for_selector("button[aria-label='Play']")
        page.locator("#start").click()
        page.wait_for_selector(".result", timeout=60_000)
    assert not [line for line in lines if "Traceback" in line]


@pytest.mark.slow
def test_a_page_that_other_machines_can_reach_warns(made: Callable[..., Path]) -> None:
    with served(f"run_dir={made('nl')}", "app.host=0.0.0.0") as (_, process, lines):
        (warned,) = (line for line in lines if line.startswith("app.host: 0.0.0.0 is reachable from other machines"))
        assert "without a password and unencrypted" in warned
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
