"""Recording in the browser: kept at once, gone on with, done again; levels; hostile sentences."""

import base64
import json
import os
import signal
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pytest
import soundfile
from support.pages import HOSTILE, problems_of, served_page, violations

from asr_lora.app.recording import Handlers, parse_take, warnings_of
from asr_lora.corpus import open_corpus
from asr_lora.corpus.recorded import RecordedFolder, speaker_id
from asr_lora.doctor.requirements import unmet
from asr_lora.runtime.errors import ExternalError

SENTENCES = ["De trein vertrekt om drie uur.", HOSTILE, "سلام دنیا، حال شما چطور است؟"]


def sent(level: float = 0.3, seconds: float = 1.0, at: int = 0, rate: int = 48_000) -> str:
    """Returns what the page sends of a tone of this peak."""
    tone = level * np.sin(2 * np.pi * 440 * np.arange(int(seconds * rate)) / rate)
    pcm = np.clip(np.rint(tone * 2**15), -(2**15), 2**15 - 1).astype("<i2").tobytes()
    return json.dumps({"at": at, "rate": rate, "pcm": base64.b64encode(pcm).decode()})


def test_levels_are_measured_on_the_samples() -> None:
    take = parse_take(sent(0.5))
    assert (take.seconds, round(take.peak, 1), take.clipped, warnings_of(take)) == (1.0, -6.0, 0.0, [])
    (quiet,) = warnings_of(parse_take(sent(0.03)))
    (loud,) = warnings_of(parse_take(sent(2.0)))
    assert quiet.startswith("too quiet") and loud.startswith("clipped")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "nothing is recorded yet"),
        ("[]", "no recording of the page"),
        ("{", "no recording of the page"),
        ('{"at": 0, "rate": 48000, "pcm": "?"}', "no recording of the page"),
        ('{"at": 0, "rate": 48000, "pcm": "AAA="}', "shorter than"),
        ('{"at": Infinity, "rate": 48000, "pcm": ""}', "no recording of the page"),
        ('{"at": 0, "rate": 1e999, "pcm": ""}', "no recording of the page"),
        ("[" * 100_000, "no recording of the page"),
        (sent(rate=100, seconds=20), "not between"),
        (sent(rate=44_101), "44,101 Hz, is none that can be resampled"),
        (sent(0.0), "silent"),
        (sent(seconds=31, rate=8_000), "longer than 30 s"),
    ],
)
def test_what_is_no_recording_is_one_line(text: str, message: str) -> None:
    with pytest.raises(ExternalError, match=message):
        parse_take(text)


def test_a_speaker_goes_on_at_the_first_sentence_that_is_not_read(tmp_path: Path) -> None:
    handlers = Handlers(SENTENCES, RecordedFolder(tmp_path, "nl"))
    assert "Enter your name first" in handlers.start(" ")[0]
    shown, _ = handlers.skip(0, "Anna")
    assert 'data-at="1"' in shown and "<script>" not in shown and "0 of 3" in shown
    shown, notice = handlers.keep(sent(at=1, seconds=3), 1, "Anna")
    assert 'data-at="2"' in shown and "1 of 3</b>, 0.1 minutes" in shown and "Kept</b>: 3.0 s" in notice
    again = Handlers(SENTENCES, RecordedFolder(tmp_path, "nl"))
    assert 'data-at="0"' in again.start("anna")[0] and 'data-at="2"' in again.skip(0, "Anna")[0]
    assert "Recorded before, 3.0 s" in again.back(2, "Anna")[0] and "0 of 3" in again.start("Ben")[0]
    for at in (0, 2):
        shown, _ = again.keep(sent(at=at), at, "Anna")
    assert "All sentences are read" in shown and 'data-at="2"' in again.back(-1, "Anna")[0]


def test_a_recording_is_never_kept_under_another_sentence(tmp_path: Path) -> None:
    handlers = Handlers(SENTENCES, RecordedFolder(tmp_path, "nl"))
    for at, shown in ((0, 1), (7, 7), (-1, -1)):
        with pytest.raises(gr.Error, match="of another sentence"):
            handlers.keep(sent(at=at), shown, "Anna")
    for name, message in (("", "a name is needed"), (None, "a name is needed"), ("\ud800", "no text")):
        with pytest.raises(gr.Error, match=message):
            handlers.keep(sent(), 0, name)
    with pytest.raises(gr.Error, match="of another sentence"):
        handlers.keep(sent(), None, "Anna")
    for odd in (None, float("inf"), float("nan"), "1", 99, 0.5):
        for move in (handlers.skip, handlers.back):
            with pytest.raises(gr.Error, match="there is no such sentence"):
                move(odd, "Anna")
    assert handlers.folder.rows() == []


def test_what_is_missing_is_answered_before_anything_is_imported(tmp_path: Path) -> None:
    ((line,), status) = unmet("record", [])
    assert status == 2 and "record.prompts: names no file; " in line
    ((line,), _) = unmet("record", [f"record.prompts={tmp_path}/none.txt"])
    assert "record.prompts" in line and "none.txt" in line


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize(("scheme", "width"), [("light", 1100), ("dark", 390)])
def test_in_a_browser_sentences_are_recorded_by_keys_alone(
    browser: Any, tmp_path: Path, scheme: str, width: int
) -> None:
    (tmp_path / "sentences.txt").write_text("\n".join(SENTENCES), encoding="utf-8")
    out = tmp_path / "mine"
    settings = [f"record.prompts={tmp_path / 'sentences.txt'}", f"record.out={out}"]

    def at(number: int) -> None:
        page.wait_for_selector(f"#prompt [data-at='{number}']")

    def read(seconds: float) -> None:
        page.keyboard.press("Space")
        page.wait_for_function(f"parseFloat(document.querySelector('#meter p').textContent.split(' ')[1]) > {seconds}")
        page.keyboard.press("Space")
        page.wait_for_selector("#notice:not([data-old]) >> text=Recorded")

    with served_page("record", *settings) as (address, process, _):
        page = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 900})
        wrong = problems_of(page, address)
        page.route("**/queue/join*", lambda route: None)  # held: a name may be typed before the page's first answer
        with page.expect_request("**/queue/join*"):
            page.goto(address)
        page.wait_for_selector("#prompt >> text=Enter your name first")
        page.locator("#speaker :is(input, textarea)").fill("Anna")
        page.unroute_all()  # which lets it go on
        page.wait_for_timeout(2_000)
        page.keyboard.press("Enter")
        at(0)
        page.keyboard.press("Enter")
        page.wait_for_selector(".toast-body:has-text('nothing is recorded yet')")
        page.locator(".toast-close").click()
        read(1.2)  # the browser's own microphone beeps each half second, and is silent between
        assert "clipped" in page.locator("#notice").inner_text()
        assert float(page.locator("#meter .level").get_attribute("aria-valuenow")) >= -60
        page.keyboard.press("p")
        page.keyboard.press("Enter")
        at(1)
        assert HOSTILE in page.locator("#prompt").inner_text() and "1 of 3" in page.locator("#prompt").inner_text()
        page.keyboard.press("n")
        at(2)
        drawn = page.locator("#prompt .sentence").evaluate("element => getComputedStyle(element).direction")
        assert drawn == "rtl"
        read(0.8)
        assert violations(page) == [] and page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        if shots := os.environ.get("ASR_LORA_SCREENSHOTS"):  # for a review by eye
            page.screenshot(path=f"{shots}/record-{scheme}-{width}.png", full_page=True)
        process.send_signal(signal.SIGKILL)
        process.wait()
        first = open_corpus(out, "nl").tables["train"]
        assert [each.text for each in first] == SENTENCES[:1] and first[0].speaker == speaker_id("Anna")
        assert wrong == []
        page.close()

    with served_page("record", *settings) as (address, process, lines):
        page = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 900})
        page.goto(address)
        page.locator("#speaker :is(input, textarea)").fill("Anna")
        page.keyboard.press("Enter")
        at(1)
        page.reload()
        at(1)  # the browser remembers the name
        page.keyboard.press("b")
        at(0)
        read(0.8)
        page.keyboard.press("r")
        page.wait_for_function("parseFloat(document.querySelector('#meter p').textContent.split(' ')[1]) > 0.8")
        page.keyboard.press("Enter")  # stops, too
        at(1)
        (only,) = open_corpus(out, "nl").tables["train"]
        assert only.path != first[0].path and not (out / "clips" / first[0].path).exists()
        facts = soundfile.info(out / "clips" / only.path)
        assert (facts.samplerate, facts.channels, facts.format) == (16_000, 1, "FLAC") and facts.duration > 0.3
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    assert lines[-1].startswith("record: 1 recordings of 1 speakers, ") and not [
        line for line in lines if "Trace" in line
    ]
