"""Correcting by hand: in a real browser by keyboard alone, beside another person, and after a kill of the server."""

import base64
import io
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest
import soundfile
from support.correcting import write_labels
from support.pages import HOSTILE, problems_of, served_page, violations

from asr_lora import correct as stage
from asr_lora.app import correcting, serving
from asr_lora.app.correcting import Handlers
from asr_lora.config.compose import load
from asr_lora.correct import correct
from asr_lora.correcting.order import in_order
from asr_lora.correcting.sources import open_source
from asr_lora.correcting.store import Store
from asr_lora.runs.finding import set_last_run, settings_file
from asr_lora.runtime.errors import ConfigError, ExternalError
from asr_lora.runtime.files import read_jsonl, write_json, write_jsonl
from asr_lora.speech.normalizer import Normalizer

HEBREW = "השלום בא מחר בבוקר"
PERSIAN = "می‌خواهم"  # with a zero-width non-joiner, which must survive


def store_of(labels: Path) -> Store:
    return Store(labels / "corrections" / "corrections.sqlite", 600.0)


def handlers_of(labels: Path) -> Handlers:
    source, store = open_source(labels), store_of(labels)
    store.open(in_order(source.items, 0.0, 0), {"source": str(labels)})
    return Handlers(store, source, Normalizer("marks", "nl"), 0, 1.0, labels / "corrections")


# ---- what the page asks for ----


def test_a_clip_is_answered_with_its_cut_alone_and_its_wave(tmp_path: Path) -> None:
    handlers = handlers_of(write_labels(tmp_path, ["een", HOSTILE]))
    item = handlers.answer({"action": "next", "client": "anna"})["item"]
    assert (item["text"], item["seconds"], item["where"]) == (HOSTILE, 1.5, "talk.wav, 2.0 to 3.5 s")
    assert 1000 < len(item["sound"]) < 150_000 and item["wave"]["bars"] > 50
    (tmp_path / "talk.wav").unlink()
    gone = handlers.answer({"action": "next", "client": "bert"})["item"]
    assert "sound" not in gone and "the recording is not there any more" in gone["problem"]
    assert "your name" in handlers.answer({"action": "undo", "client": "anna", "who": " "})["error"]
    page = handlers.answer({"action": "progress"})["html"]
    assert (
        "0 of 2 clips" in page
        and "12.0 min" in page
        and "random sample of the labels that" in page
        and "<script" not in page
    )


def test_a_line_without_an_end_does_not_send_a_whole_recording(tmp_path: Path) -> None:
    labels = write_labels(tmp_path, ["een"] * 20, end=1.0)  # of 40 s
    (line, *_) = read_jsonl(labels / "all.jsonl")
    write_jsonl(labels / "all.jsonl", [{name: value for name, value in line.items() if name != "end"}])
    item = handlers_of(labels).answer({"action": "next", "client": "anna"})["item"]
    assert soundfile.info(io.BytesIO(base64.b64decode(item["sound"]))).duration < 30.2


@pytest.mark.parametrize(
    "asked",
    [
        None, [], "next",
        {}, {"action": "open"}, {"action": ["save"]}, {"action": "next"}, {"action": "next", "client": "x" * 41},
        {"action": "next", "client": "../a"},
        {"action": "save", "client": "a", "item": "1", "revision": 0, "who": "A", "text": ""},
        {"action": "save", "client": "a", "item": 1, "revision": 0, "who": " ", "text": "een"},
        {"action": "save", "client": "a", "item": 1, "revision": 0, "who": "A" * 81, "text": "een"},
        {"action": "save", "client": "a", "item": 1, "revision": 0, "who": "A", "text": " \n"},
        {"action": "save", "client": "a", "item": 1, "revision": 0, "who": "A", "text": "\0"},
        {"action": "save", "client": "a", "item": 1, "revision": 0, "who": "A", "text": "\ud800"},
        {"action": "save", "client": "a", "item": 1, "revision": 0, "who": "A", "text": "x" * 10_001},
        {"action": "save", "client": "a", "item": 10**30, "revision": 0, "who": "A", "text": "een"},
        {"action": "save", "client": "a", "item": 99, "revision": 0, "who": "A", "text": "een"},
        {"action": "save", "client": "a", "item": True, "revision": 0, "who": "A", "text": "een"},
        {"action": "drop", "client": "a", "item": 1, "revision": -1, "who": "A"},
        {"action": "draft", "client": "a", "item": 1}, {"action": "undo", "client": "a", "who": "A"},
    ],
)  # fmt: skip
def test_an_impossible_request_is_one_line_and_decides_nothing(tmp_path: Path, asked: Any) -> None:
    handlers = handlers_of(write_labels(tmp_path, ["een"]))
    assert "\n" not in handlers.answer(asked)["error"]
    assert handlers.store.decided() == []


def test_without_labels_the_error_names_what_can_be_corrected(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run_dir: no run yet"):
        correct(load([f"runs_dir={tmp_path}", "app.port=7999"]))
    set_last_run(tmp_path / "nl", tmp_path)
    with pytest.raises(ConfigError, match=r"correct\.source: run .*nl has no labels; make label"):
        correct(load([f"runs_dir={tmp_path}", "app.port=7999"]))


def test_a_folder_of_corrections_that_leads_elsewhere_is_refused(tmp_path: Path) -> None:
    labels = write_labels(tmp_path, ["een"])
    (labels / "corrections").mkdir()
    (labels / "corrections" / "corrections.sqlite").symlink_to(tmp_path / "elsewhere.sqlite")
    with pytest.raises(ConfigError, match=r"correct\.out: .* is a link that leads out"):
        correct(load([f"correct.source={labels}", "app.port=7999"]))
    assert not (tmp_path / "elsewhere.sqlite").exists()


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The handlers of each page, which is not served: clips are accepted until none is left, as a browser would."""
    found: list[Any] = []

    def serve(page: Any, *settings: Any) -> Any:
        for _ in range(2):
            if item := found[-1].store.next("anna"):
                found[-1].store.save(item["id"], 0, item["text"], "Anna", "anna")
            settings[-1]()
        return page

    def page(handlers: Handlers, *settings: Any) -> Any:
        found.append(handlers)
        return SimpleNamespace(close=lambda verbose: None)

    monkeypatch.setattr(correcting, "page", page)
    monkeypatch.setattr(serving, "serve_until_stopped", serve)
    return found


def corrected(tmp_path: Path, source: Path, *words: str) -> None:
    correct(load([f"runs_dir={tmp_path}/runs", f"correct.source={source}", "app.port=7999", *words]))


def test_a_table_that_cannot_be_written_does_not_end_the_page(
    tmp_path: Path, pages: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    labels, table = write_labels(tmp_path, ["een", "twee"]), tmp_path / "labels" / "corrections" / "corrected.jsonl"
    renewed: list[bool] = []

    def serve(page: Any, *settings: Any) -> Any:
        for in_the_way in (True, False):
            if in_the_way:
                table.unlink()
                table.mkdir()
            else:
                table.rmdir()
            item = pages[-1].store.next("anna")
            pages[-1].store.save(item["id"], 0, item["text"], "Anna", "anna")
            settings[-1]()
            renewed.append(table.is_file())
        return page

    monkeypatch.setattr(serving, "serve_until_stopped", serve)
    corrected(tmp_path, labels)
    assert renewed == [False, True] and len(read_jsonl(table)) == 2
    assert "corrections: Is a directory; make room there, or name another folder" in capsys.readouterr().err
    (tmp_path / "file").touch()
    with pytest.raises(ExternalError, match=r"correct\.out: cannot write .*file: .*name another folder"):
        corrected(tmp_path, labels, f"correct.out={tmp_path}/file")


def test_a_run_that_was_moved_opens_its_corrections_and_other_sources_do_not(tmp_path: Path, pages: list[Any]) -> None:
    labels = write_labels(tmp_path / "nl", ["een", "twee"])
    for named in (labels, labels / "all.jsonl"):
        corrected(tmp_path, named)
    (tmp_path / "moved").mkdir()
    moved = labels.rename(tmp_path / "moved" / "labels")  # its recordings stay
    corrected(tmp_path, moved)
    assert len(pages[-1].store.decided()) == 2 and len(pages) == 3
    other = write_labels(tmp_path / "other", ["een"])
    with pytest.raises(ConfigError, match=r"was made with source=\.\., not .*other/labels; keep that"):
        corrected(tmp_path, other, f"correct.out={moved / 'corrections'}")


def test_the_hours_of_another_run_are_not_those_of_transcripts(
    tmp_path: Path, pages: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_labels(tmp_path, ["een"])
    facts = {"audio": str(tmp_path / "talk.wav"), "language": "nl", "segments": [{"start": 0, "end": 1, "text": "een"}]}
    write_json(tmp_path / "talk.json", facts)
    last = tmp_path / "runs" / "nl-1h"
    write_json(last / "data" / "summary.json", {"splits": {"train": {"hours": 0.5}}})
    set_last_run(last, tmp_path / "runs")
    corrected(tmp_path, tmp_path / "talk.json")
    named = f"run_dir={last}"
    monkeypatch.setattr(stage, "job_overrides", lambda: [named])
    with pytest.raises(ConfigError, match=r"run_dir: no run in .*nl-1h"):
        corrected(tmp_path, tmp_path / "talk.json", named)
    write_json(settings_file(last), {})
    corrected(tmp_path, tmp_path / "talk.json", named)
    write_json(last / "data" / "summary.json", {"splits": ["train"]})
    corrected(tmp_path, tmp_path / "talk.json", named)
    assert [page.hours for page in pages] == [None, 0.5, None]


# ---- in a real browser ----


def visit(browser: Any, address: str, scheme: str = "light", width: int = 1100) -> tuple[Any, list[str]]:
    """Opens the page in a browser of its own; returns it and its problems: errors, and requests to other hosts."""
    page = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 900}).new_page()
    wrong = problems_of(page, address)
    page.goto(address)
    page.wait_for_function("document.querySelector('#sound')?.src")
    return page, wrong


def waited(holds: Callable[[], bool]) -> bool:
    end = time.monotonic() + 20
    while not (found := holds()) and time.monotonic() < end:
        time.sleep(0.1)
    return found


def shown(page: Any, text: str) -> None:
    page.wait_for_function("text => document.querySelector('#text')?.value === text", arg=text)


def shot(page: Any, name: str) -> None:
    if folder := os.environ.get("ASR_LORA_SCREENSHOTS"):  # for a review by eye
        page.screenshot(path=f"{folder}/correct-{name}.png", full_page=True)


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize(("scheme", "width"), [("light", 1100), ("dark", 390)])
def test_three_clips_are_corrected_by_keyboard_alone(browser: Any, tmp_path: Path, scheme: str, width: int) -> None:
    folder = tmp_path / "runs" / "he-1h"
    labels = write_labels(folder / "labels", ["blijft", "muziek", "zij leest", HEBREW, HOSTILE], language="he")
    write_json(folder / "data" / "summary.json", {"splits": {"train": {"hours": 0.5}}})
    write_json(settings_file(folder), {})
    set_last_run(folder, tmp_path / "runs")
    with served_page("correct", f"runs_dir={tmp_path}/runs", "correct.random_share=0") as (address, process, lines):
        page, wrong = visit(browser, address, scheme, width)
        assert page.evaluate("document.activeElement.id") == "who"
        page.keyboard.type("Zoë sb d")  # no key of it is a command
        page.keyboard.press("Enter")
        shown(page, HOSTILE)
        page.keyboard.press("s")
        page.keyboard.press("Space")
        page.wait_for_function("document.querySelector('#sound').currentTime > 0.3")
        page.keyboard.press("Space")
        state = "[document.querySelector('#sound').paused, document.querySelector('#sound').playbackRate]"
        assert page.evaluate(state) == [True, 0.75]
        page.keyboard.press("ArrowLeft")
        assert page.evaluate("document.querySelector('#sound').currentTime") == 0
        page.keyboard.press("e")
        page.keyboard.press("ControlOrMeta+a")
        page.keyboard.type("ndbsu e")  # keys of commands, in the text
        page.keyboard.press("Control+Enter")

        shown(page, HEBREW)
        drawn = "getComputedStyle(document.querySelector('#text'))"
        assert page.evaluate(f"[{drawn}.direction, document.querySelector('#text').lang]") == ["rtl", "he"]
        page.keyboard.press("e")
        page.keyboard.press("End")
        page.keyboard.type(f" {PERSIAN}")
        page.wait_for_selector("#state:has-text('draft saved')")
        page.keyboard.press("Escape")
        assert violations(page) == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        shot(page, f"{scheme}-{width}")
        page.keyboard.press("Enter")

        shown(page, "zij leest")
        page.keyboard.press("d")
        shown(page, "muziek")
        page.keyboard.press("u")
        shown(page, "zij leest")
        page.keyboard.press("Enter")
        shown(page, "muziek")
        page.keyboard.press("n")
        shown(page, "blijft")
        page.wait_for_selector("#progress:has-text('3 of 5 clips: 1 accepted, 2 edited')")
        page.wait_for_selector("#progress:has-text('20 % of the 0.50 h that the run was trained on, 6.0 min')")
        assert wrong == []
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    rows = read_jsonl(labels / "corrections" / "corrected.jsonl")
    assert [row["text"] for row in rows] == ["zij leest", f"{HEBREW} {PERSIAN}", "ndbsu e"]
    assert {row["corrected_by"] for row in rows} == {"Zoë sb d"} and rows[2]["machine_text"] == HOSTILE
    assert lines[-1].startswith("corrected: ") and not [line for line in lines if "Trace" in line]


@pytest.mark.slow
@pytest.mark.browser
def test_what_another_person_saved_is_shown_and_a_killed_server_loses_nothing(browser: Any, tmp_path: Path) -> None:
    labels = write_labels(tmp_path, ["een", "twee", "drie"])
    with served_page("correct", f"correct.source={labels}") as (address, process, _):
        anna, wrong = visit(browser, address)
        bert, _ = visit(browser, address)
        texts = [page.evaluate("document.querySelector('#text').value") for page in (anna, bert)]
        assert len(set(texts)) == 2  # two people, two clips
        anna.keyboard.type("Anna")
        anna.keyboard.press("Enter")
        item = store_of(labels).next("carl")  # the third; Carl saves over Anna's clip, as after her lease
        assert item is not None and item["text"] not in texts
        with_hers = next(each for each in range(1, 4) if store_of(labels).hold(each, "carl")["text"] == texts[0])
        store_of(labels).save(with_hers, 0, "door Carl", "Carl", "carl")
        anna.keyboard.press("Enter")
        anna.wait_for_selector("#message:has-text('Carl meanwhile saved: door Carl')")
        shot(anna, "conflict")
        assert violations(anna) == []
        assert [each["who"] for each in store_of(labels).decided()] == ["Carl"]
        anna.keyboard.press("Enter")  # knowing it
        assert waited(lambda: [each["who"] for each in store_of(labels).decided()] == ["Anna"])
        assert wrong == []

        bert.keyboard.type("Bert")
        bert.keyboard.press("Enter")
        bert.keyboard.press("e")
        bert.keyboard.press("End")
        bert.keyboard.type(" half")
        bert.wait_for_selector("#state:has-text('draft saved')")
        process.kill()
        process.wait()
        bert.keyboard.press("Control+Enter")
        bert.wait_for_selector("#message:has-text('Not saved: the server does not answer')")
        assert bert.evaluate("document.querySelector('#text').value") == f"{texts[1]} half"
    assert [each["corrected"] for each in store_of(labels).decided()] == [texts[0]]
    with served_page("correct", f"correct.source={labels}", f"app.port={urlsplit(address).port}") as (_, process, _):
        assert [row["text"] for row in read_jsonl(labels / "corrections" / "corrected.jsonl")] == [texts[0]]
        other = browser.new_context(storage_state=bert.context.storage_state()).new_page()
        other.goto(address)
        shown(other, f"{texts[1]} half")  # the draft, in the same browser after its end
        shown(bert, f"{texts[1]} half")  # and the page that stayed open goes on
        bert.keyboard.press("Escape")
        bert.keyboard.press("Enter")
        assert waited(
            lambda: [each["who"] for each in store_of(labels).decided()] in (["Anna", "Bert"], ["Bert", "Anna"])
        )
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    rows = read_jsonl(labels / "corrections" / "corrected.jsonl")
    assert {(row["text"], row["corrected_by"]) for row in rows} == {(texts[0], "Anna"), (f"{texts[1]} half", "Bert")}
