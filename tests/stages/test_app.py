"""The page to speak to: both models heard with one base, what differs marked, and in a real browser from end to end."""

import json
import os
import re
import shutil
import signal
import socket
import string
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pytest
import soundfile
import torch
from support.pages import HOSTILE, Page
from support.releases import write_release
from support.runs import hardware_of, tiny_run
from transformers import GenerationConfig

from asr_lora.app import models as pair
from asr_lora.app import ui as layout
from asr_lora.app.__main__ import app, forget, is_loopback, refuse_taken
from asr_lora.app.models import WHICHEVER, ModelPair, PairResult
from asr_lora.config.compose import Config, load
from asr_lora.data.manifest import read_manifest
from asr_lora.decoding import transcriber as ears
from asr_lora.decoding.generate import Segment, decode_once
from asr_lora.demo.espeak import RATE, Utterance, speak
from asr_lora.model import adapter, arithmetic
from asr_lora.model.pretrained import load_processor
from asr_lora.runs import folder as run
from asr_lora.runtime.errors import ConfigError, ExternalError
from asr_lora.speech.normalizer import Normalizer
from asr_lora.train import train

SENTENCES = ["de trein vertrekt om drie uur", "morgen gaat het regenen in het noorden"]
SCORING = load([]).eval


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sentences with two seconds of silence between them, under a name that a browser must keep."""
    said = speak([Utterance(text=text, voice="nl+m1", pitch=50, rate=150) for text in SENTENCES])
    parts = [np.frombuffer(pcm, np.int16) for pcm in said]
    file = tmp_path_factory.mktemp("talks") / "praatje [1], é.wav"
    soundfile.write(file, np.concatenate([parts[0], np.zeros(2 * RATE, np.int16), parts[1]]), RATE)
    return file


@pytest.fixture(scope="module")
def lettered(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The random Whisper, which says nothing but letters: bytes of no script are nothing to look at."""
    folder = tmp_path_factory.mktemp("lettered") / "whisper-random"
    shutil.copytree(tiny_checkpoint, folder)
    tokenizer = load_processor(str(folder)).tokenizer
    said = {tokenizer.eos_token_id, *tokenizer.convert_tokens_to_ids([*string.ascii_lowercase, "Ġ"])}
    settings = GenerationConfig.from_pretrained(folder)
    settings.suppress_tokens = sorted(set(range(len(tokenizer))) - said)
    settings.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def made(lettered: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Trains a run that changes what is heard, once a name; its clips stay where they are."""
    folder, known = tmp_path_factory.mktemp("tuned"), {}
    write_release(folder / "cv-corpus-25.0-2026-06-05")
    words = tiny_run(folder / "cv-corpus-25.0-2026-06-05", lettered, folder / "runs")

    def trained(name: str, *more: str) -> Path:
        if name not in known:
            sized = [word for word in words if word != "lora.r=4" or "lora=bitfit" not in more]
            # Steps this large change even a random model's words.
            config = load([*sized, f"run_name={name}", "eval.after=false", "training.learning_rate=0.3", *more])
            train(config)
            known[name] = config.run
        return known[name]

    return trained


def words_of(folder: Path, *more: str) -> Config:
    return load([f"run_dir={folder}", "hardware=cpu", "decoding.max_new_tokens=8", *more])


def both_of(folder: Path, *more: str) -> ModelPair:
    config = words_of(folder, *more)
    return pair.of_run(config, run.recorded_config(folder, config, []), hardware_of(config))


def quietly(which: str, done: int, of: int) -> None:
    """Of nobody who waits."""


# ---- what is heard ----


def test_one_base_is_held_and_hears_as_the_run_and_the_checkpoint_do(made: Callable[..., Path], talk: Path) -> None:
    folder = made("nl")
    both = both_of(folder, "transcribe.max_segment_seconds=5")
    assert both.base is both.tuned and list(both.voices) == ["nl"]
    told: list[tuple[str, int, int]] = []
    heard = both.transcribe(talk, "nl", 1.0, 1.0, False, lambda *each: told.append(each))
    assert (heard.language, heard.voice, len(heard.tuned), len(heard.base)) == ("nl", "nl", 2, 2)
    assert heard.base != heard.tuned
    assert [each[0] for each in told if each[1] == 0] == ["untouched", "tuned"]  # what runs away is counted once
    assert told[-1] == ("tuned", 2, 2) and max(done for _, done, _ in told) == 2

    config, spoken = words_of(folder), [(each.start, each.end) for each in heard.tuned]
    base = f"model.checkpoint={run.settings(folder)['model']['checkpoint']}"
    other, recorded = words_of(folder, base), run.recorded_config(folder, config, [])
    alone = ears.with_base(other.model, other.decoding, hardware_of(config))
    merged = ears.with_run(folder, run.with_pinned_base(recorded).model, config.decoding, hardware_of(config))
    for model, expected in ((alone, heard.base), (merged, heard.tuned)):
        with model.session("nl", None) as settings:
            assert model.segments([(talk, *part) for part in spoken], settings) == expected


def test_a_strength_hears_as_an_adapter_that_was_scaled_for_good_and_none_is_untouched(
    made: Callable[..., Path], talk: Path, tmp_path: Path
) -> None:
    folder = made("nl")
    both = both_of(folder)
    checkpoint = both.base.base.checkpoint
    arithmetic.scale_adapter(run.adapter(folder), 0.5, tmp_path / "half", checkpoint)
    half = adapter.load(checkpoint, tmp_path / "half", "fp32", torch.device("cpu"))
    clips = [{"path": str(talk), "start": 0.0, "end": 2.0, "duration": 2.0}]
    with both.tuned.session("nl", pair.TUNED, 0.5) as settings:
        assert settings.margin is None  # 30 s
        (live,) = decode_once(both.tuned.model, both.tuned.processor, clips, settings)
    (expected,) = decode_once(half, load_processor(checkpoint), clips, settings)
    assert live.tokens == expected.tokens

    heard = both.transcribe(talk, "nl", 0.0, 1.0, False, quietly)
    assert heard.base == heard.tuned
    again = both.transcribe(talk, "nl", 1.0, 1.0, False, quietly)
    assert again.untouched != again.tuned  # the strength went with the hearing


@pytest.mark.parametrize(("kind", "two"), [("dora", False), ("bitfit", True)])
def test_what_does_not_scale_has_no_slider_and_a_whole_model_stands_beside_its_base(
    made: Callable[..., Path], talk: Path, tmp_path: Path, kind: str, two: bool
) -> None:
    both = both_of(made(kind, f"lora={kind}"))
    assert (both.base is not both.tuned) == two
    acts = layout.Handlers(both, load([]).app, tmp_path)
    slider = acts.strength(kind)
    assert not slider.interactive and slider.value == 1
    with pytest.raises(ConfigError, match=f"strength: must be 1 for {kind}"):
        both.transcribe(talk, kind, 0.5, 1.0, False, quietly)
    heard = both.transcribe(talk, kind, 1.0, 1.0, False, quietly)
    assert len(heard.base) == len(heard.tuned) == 1


def test_several_adapters_are_chosen_by_name_or_by_the_language_that_is_heard(
    made: Callable[..., Path], talk: Path
) -> None:
    adapters = f"adapters={{nl: {made('nl')}, de: {run.adapter(made('de', 'seed=1'))}}}"
    for asked, fits in (("nl", True), ("es", False)):
        config = load([adapters, "hardware=cpu", "decoding.max_new_tokens=8", f"transcribe.language={asked}"])
        both = pair.with_adapters(config, config.adapters or {}, hardware_of(config), [])
        assert [(name, each.language) for name, each in both.voices.items()] == [("nl", "nl"), ("de", "de")]
        assert both.voices["nl"].clips and not both.voices["de"].clips  # an adapter alone has no manifest
        if fits:
            named = both.transcribe(talk, "nl", 1.0, 1.0, False, quietly)
            assert both.transcribe(talk, WHICHEVER, 1.0, 1.0, False, quietly) == named
            assert both.transcribe(talk, "de", 1.0, 1.0, False, quietly).tuned != named.tuned
        else:
            with pytest.raises(ConfigError, match="es is heard, and no adapter is of that language; choose one of nl"):
                both.transcribe(talk, WHICHEVER, 1.0, 1.0, False, quietly)


def test_a_run_that_was_not_trained_is_refused(words: list[str], tmp_path: Path) -> None:
    config = load(words)
    with pytest.raises(ConfigError, match=r"run_dir: no adapter in .*; train it first, with make train"):
        pair.of_run(config, config, hardware_of(config))


def test_a_run_of_a_version_that_had_no_such_page_is_heard(made: Callable[..., Path], tmp_path: Path) -> None:
    settings = run.settings(made("nl"))
    old = {
        name: value
        for name, value in settings.items()
        if name not in ("transcribe", "export", "app", "audio", "adapters", "weights")
    }
    file = run.settings_file(tmp_path)
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(old))  # which is YAML too
    assert run.recorded_config(tmp_path, load([]), []).lora.kind == "qv"


# ---- what cannot be heard ----


@pytest.fixture
def acts(made: Callable[..., Path], tmp_path: Path) -> layout.Handlers:
    return layout.Handlers(both_of(made("nl")), load(["app.max_minutes=0.2", "app.max_megabytes=1"]).app, tmp_path)


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
    ("name", "says"),
    [
        ("nothing", "there is nothing to hear yet; record something, or choose a file or a clip"),
        ("gone", "this recording is deleted by now (app.keep_minutes); record or choose it again"),
        ("junk<b>", "junk&lt;b&gt;.wav: clip cannot be decoded: Format not recognised"),
        ("empty", "empty.wav: clip cannot be decoded: Format not recognised"),
        ("silent", "nobody speaks in this recording, as far as Silero&#39;s detector hears"),
        ("long", "long.wav: is longer than 0.2 minutes (app.max_minutes)"),
        ("large", "large.wav: is larger than 1 MB (app.max_megabytes)"),
    ],
)
def test_what_cannot_be_heard_is_one_line_on_the_page(
    acts: layout.Handlers, tmp_path: Path, name: str, says: str
) -> None:
    with pytest.raises(gr.Error) as refusal:
        acts.hear(_bad(tmp_path, name), "nl", None, 1.0, lambda *_, **__: None)
    assert refusal.value.message == says


def test_a_port_that_is_taken_and_a_host_that_is_not_ours_are_one_line_each() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ExternalError, match=rf"app\.port: another program has port {port} of 127.0.0.1"):
            app(load([f"app.port={port}"]))  # before anything is loaded
    with pytest.raises(ConfigError, match=r"app\.host: must be one that can be had, got 192\.0\.2\.1"):
        refuse_taken(load(["app.host=192.0.2.1"]).app)


@pytest.mark.slow
def test_without_gradio_the_way_out_is_named() -> None:
    code = "import sys, runpy; sys.modules['gradio'] = None; runpy.run_module('asr_lora.app', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (
        1, "error: app: needs gradio, which is not installed; `uv sync --inexact --extra app` installs it\n"
    )  # fmt: skip


def test_only_loopback_is_this_machine_alone() -> None:
    assert is_loopback("127.0.0.1") and is_loopback("localhost") and is_loopback("::1")
    assert not is_loopback("0.0.0.0") and not is_loopback("::")


def test_recordings_go_when_they_are_old(tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.wav").touch()
    os.utime(tmp_path / "old", (time.time() - 100, time.time() - 100))
    forget(tmp_path, 60)
    assert [each.name for each in tmp_path.iterdir()] == ["new"]


# ---- what is shown ----


def said(untouched: str, tuned: str) -> PairResult:
    return PairResult("run", "nl", 1.0, 2.0, [Segment(0, 2, untouched)], [Segment(0, 2, tuned, truncated=True)])


def test_words_that_differ_are_marked_on_both_sides_and_not_by_color_alone() -> None:
    page = layout.render_result(said("De trijn, vertrekt - om drie", "de trein vertrekt om drie uur"), SCORING, None)
    assert "<del>trijn,</del>" in page and "<ins>trein</ins>" in page and "<ins>uur</ins>" in page
    assert "<del>-</del>" in page  # no word: its own key
    assert "<del>De" not in page and "Against the reference" not in page
    assert "1 of 1 pieces ran away and was cut" in page


def test_against_a_reference_stand_the_errors_and_rates_that_scoring_counts() -> None:
    page = layout.render_result(said("de trijn", "de trein"), SCORING, "De trein vertrekt.")
    assert re.search(r"<del>\w+</del> +<del>|<del>vertrekt</del>", page) and "<ins>trijn</ins>" in page
    assert re.findall(r"([\d.]+%) <span class=\"small\">(\d of \d words)", page) == [
        ("66.7%", "2 of 3 words"), ("33.3%", "1 of 3 words")
    ]  # fmt: skip
    silent = layout.render_result(said("de", ""), SCORING, "...")
    assert "(nobody speaks)" in silent and "(nothing)" in silent


def test_where_no_spaces_are_written_characters_are_compared() -> None:
    heard = PairResult("run", "ja", 1.0, 2.0, [Segment(0, 2, "今日は雨")], [Segment(0, 2, "今日は雪")])
    page = layout.render_result(heard, SCORING, "今日は雪。")
    assert "<del>雨</del>" in page and "<ins>雪</ins>" in page
    assert "25.0%" in page and "1 of 4 characters" in page


def test_what_a_model_or_a_corpus_says_stays_text(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(layout.render_result(said(HOSTILE, "x"), SCORING, HOSTILE), encoding="utf-8")
    page = Page(tmp_path / "page.html")
    assert "script" not in {tag for tag, _ in page.tags} and "<script>1</script>" in page.text


def test_differences_keep_every_word_as_it_was_written() -> None:
    untouched, tuned = "Ja -- auto's, die? kom!", "ja auto's dié kom dan"
    chunks = layout.differences(untouched, tuned, Normalizer("marks", "nl"))
    assert " ".join(word for chunk in chunks for word in chunk.reference) == untouched
    assert " ".join(word for chunk in chunks for word in chunk.hypothesis) == tuned
    assert [chunk.hypothesis for chunk in chunks if chunk.kind == "equal"] == [["ja"], ["auto's"], ["kom"]]


def test_a_test_clip_is_heard_whole_as_it_is_scored_and_other_sound_has_no_reference(
    acts: layout.Handlers, talk: Path
) -> None:
    clip = acts.pair.voices["nl"].clips[0]
    loaded = acts.load("nl", clip["id"])
    assert Path(loaded).read_bytes() == Path(clip["path"]).read_bytes()
    shown, (txt, srt) = acts.hear(loaded, "nl", clip["id"], 1.0, lambda *_, **__: None)
    assert "Against the reference" in shown
    assert Path(srt).read_text().startswith("1\n00:00:00,000 --> 00:00:00,") and Path(txt).read_text().count("\n") == 1
    shown, _ = acts.hear(str(talk), "nl", clip["id"], 1.0, lambda *_, **__: None)
    assert "Against the reference" not in shown


def test_what_is_heard_when_the_app_ends_is_broken_off(acts: layout.Handlers, talk: Path) -> None:
    acts.end()
    with pytest.raises(gr.Error, match="the app has ended"):
        acts.hear(str(talk), "nl", None, 1.0, lambda *_, **__: None)
    assert not acts.busy.locked()


def test_clips_whose_sound_is_gone_are_not_offered(made: Callable[..., Path], tmp_path: Path) -> None:
    clips = read_manifest(run.manifest(made("nl"), "test"))
    file = run.manifest(tmp_path, "test")
    file.parent.mkdir(parents=True)
    text = run.manifest(made("nl"), "test").read_text().replace(clips[0]["path"], "/nowhere/a.mp3")
    file.write_text(text)
    assert [clip["id"] for clip in pair.test_clips(tmp_path)] == [clip["id"] for clip in clips[1:]]
    assert pair.test_clips(tmp_path / "no run") == []


# ---- in a real browser ----


@contextmanager
def served(*words: str) -> Iterator[tuple[str, subprocess.Popen[str], list[str]]]:
    """The app as a person starts it, on a free port: its address, its process and the lines that it says."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it, and so their own
    command = [sys.executable, "-m", "asr_lora.app", "hardware=cpu", f"app.port={port}", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines: list[str] = []
    opened = threading.Event()

    def listen() -> None:
        for line in process.stdout or ():
            lines.append(line.rstrip())
            if line.startswith("app: http"):
                opened.set()
        opened.set()

    thread = threading.Thread(target=listen)
    thread.start()
    try:
        assert opened.wait(120) and process.poll() is None, lines
        yield f"http://127.0.0.1:{port}/", process, lines
    finally:
        process.terminate()  # it deletes its folder then
        process.wait()
        thread.join()
        if process.stdout:
            process.stdout.close()


def visit(browser: Any, address: str, scheme: str, width: int) -> tuple[Any, list[str]]:
    """The page, and what is wrong with it, now and later: errors, and requests to any other host."""
    page = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 900})
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    own = (address, "data:", f"blob:{address}")
    page.on("request", lambda request: None if request.url.startswith(own) else wrong.append(request.url))
    page.goto(address)
    page.wait_for_selector("#start")
    return page, wrong


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize(("scheme", "width"), [("light", 1100), ("dark", 390)])
def test_in_a_browser_people_speak_to_both_and_see_what_differs(
    made: Callable[..., Path], talk: Path, browser: Any, tmp_path: Path, scheme: str, width: int
) -> None:
    folder = made("nl")
    clip = pair.test_clips(folder)[1]
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
        page.wait_for_selector(".heard", timeout=60_000)
        ins, drawn = page.locator(".heard .tuned ins").first, "element => getComputedStyle(element)"
        assert page.locator(".heard .untouched .words").inner_text() and ins.inner_text()
        assert ins.evaluate(f"{drawn}.borderBottomStyle") == "solid"  # not by colour alone
        assert page.locator(".heard .untouched del").first.evaluate(f"{drawn}.textDecorationLine") == "line-through"
        assert page.locator(".scored").count() == 0
        with page.expect_download() as fetched:
            page.get_by_text("tuned text as srt").click()
        assert fetched.value.suggested_filename == "praatje [1], é.srt"
        assert Path(fetched.value.path()).read_text(encoding="utf-8").startswith("1\n00:00:0")

        page.locator("#clip input").click()
        page.get_by_role("option").nth(1).click()
        page.wait_for_function("!document.querySelector('.heard')")  # what was said is of another recording
        page.wait_for_timeout(500)
        page.locator("#start").click()
        page.wait_for_selector(".scored", timeout=60_000)
        assert page.locator(".scored [data-model=tuned] .rate").inner_text().endswith("words")
        assert page.locator(".scored p").first.inner_text().removeprefix("reference").strip() == (
            Normalizer("marks", "nl")(clip["text"])
        )
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert wrong == []
        if shots := os.environ.get("ASR_LORA_SCREENSHOTS"):  # to look at them oneself
            page.screenshot(path=f"{shots}/app-{scheme}-{width}.png", full_page=True)

        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    assert lines[-1] == "app: ended, and the recordings are deleted" and not [line for line in lines if "Trace" in line]


@pytest.mark.slow
@pytest.mark.browser
def test_in_a_browser_a_bad_file_is_one_line_and_the_page_goes_on(
    made: Callable[..., Path], talk: Path, browser: Any, tmp_path: Path
) -> None:
    (tmp_path / "bad.mp3").write_bytes(b"no sound at all")
    (tmp_path / "large.wav").write_bytes(bytes(2_000_001))
    with served(f"run_dir={made('nl')}", "app.max_megabytes=2", "app.host=localhost") as (address, _, lines):
        page, _ = visit(browser, address.replace("127.0.0.1", "localhost"), "light", 1100)
        for file, says in (
            ("large.wav", "exceed the maximum allowed size"), ("bad.mp3", "bad.mp3: clip cannot be decoded")
        ):  # fmt: skip
            page.reload()
            page.locator("button[aria-label='Upload file']").click()
            page.set_input_files("input[type=file]", tmp_path / file)
            if file == "bad.mp3":
                page.wait_for_selector("audio")
                page.locator("#start").click()
            page.wait_for_selector(f".toast-body:has-text('{says}')", timeout=60_000)
        page.reload()
        page.locator("button[aria-label='Upload file']").click()
        page.set_input_files("input[type=file]", talk)
        page.wait_for_selector("button[aria-label='Play']")
        page.locator("#start").click()
        page.wait_for_selector(".heard", timeout=60_000)
    assert not [line for line in lines if "Traceback" in line]


@pytest.mark.slow
def test_a_page_for_other_machines_says_what_that_means(made: Callable[..., Path]) -> None:
    with served(f"run_dir={made('nl')}", "app.host=0.0.0.0") as (_, process, lines):
        (warned,) = (line for line in lines if line.startswith("app.host: 0.0.0.0 is more than this machine"))
        assert "without a password and unencrypted" in warned
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
