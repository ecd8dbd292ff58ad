"""The page on which people correct texts: what its script asks for, answered from the file of corrections."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from asr_lora.config.stages import AppConfig
from asr_lora.correcting.progress import progress
from asr_lora.correcting.sources import Source
from asr_lora.correcting.store import DROPPED, StaleError, Store
from asr_lora.reporting import charts
from asr_lora.reporting.pages import environment
from asr_lora.runtime.errors import ConfigError, ExternalError, UserError, check
from asr_lora.speech import audio
from asr_lora.speech.normalizer import Normalizer

LONGEST_TEXT = 10_000  # characters, as corpus.segments has it
LONGEST_NAME = 80
CLIENT = 40  # characters of a browser's id, at most


@dataclass
class Handlers:
    """Answers the page. `hours` are those that the run was trained on, None where not known; `folder` has the table."""

    store: Store
    source: Source
    normalizer: Normalizer
    seed: int
    hours: float | None
    folder: Path
    shown: tuple[int, str] = (-1, "")  # the last decision that the progress has, and its HTML

    def answer(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the answer to one request of the page; `error` is one line about what a user can fix.

        `action` is next, save, drop, skip, undo, draft, hold or progress. All but progress name the `client`; those of
        an item its `item`, a decision also `revision`, `who` and, to save, `text`. A save of an older revision is
        answered by `other`, what was saved meanwhile.
        """
        actions = {
            "next": self._next, "save": self._save, "drop": self._save, "skip": self._skip, "undo": self._undo,
            "draft": self._draft, "hold": self._hold, "progress": self._progress,
        }  # fmt: skip
        try:
            check("request", type(asked).__name__, "an object", isinstance(asked, Mapping))
            action = asked.get("action")
            check("action", action, f"one of {', '.join(actions)}", isinstance(action, str) and action in actions)
            return actions[str(action)](asked)
        except StaleError as stale:
            return {"other": _other(stale.item)}
        except UserError as error:
            return {"error": str(error)}

    def _next(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        found = self.store.next(_client(asked))
        return {"item": None if found is None else self._shown(found)}

    def _save(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        text = None if asked["action"] == "drop" else _text(asked)
        who = _who(asked)
        if text == "":
            raise ConfigError("text: must have a word, got none; press d to drop a clip without speech")
        revision = self.store.save(_number(asked, "item"), _number(asked, "revision"), text, who, _client(asked))
        return {"saved": revision}

    def _skip(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        self.store.skip(_number(asked, "item"), _client(asked))
        return {"saved": None}

    def _undo(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        found = self.store.undo(_who(asked), _client(asked))
        if found is None:
            raise ConfigError("undo: there is no decision of yours that still holds")
        return {"item": self._shown(found)}

    def _draft(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        self.store.draft(_number(asked, "item"), _client(asked), _text(asked))
        return {"saved": None}

    def _hold(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        found = self.store.hold(_number(asked, "item"), _client(asked))
        return {} if found["revision"] == _number(asked, "revision") else {"other": _other(found)}

    def _progress(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the HTML of what was learned so far, made anew when a hundredth more is decided: it takes a while."""
        items, last = self.store.size()
        if self.shown[0] < 0 or last - self.shown[0] >= max(1, self.shown[0] // 100):
            found = progress(self.store.decided(), items, self.normalizer, self.seed, self.hours)
            template = environment(autoescape=True).get_template("correct_progress.html")
            facts = {
                "found": found,
                "population": self.source.population,
                "table": self.folder / "corrected.jsonl",
                "normalizer": self.normalizer,
            }
            self.shown = last, template.render(facts)
        return {"html": self.shown[1]}

    def _shown(self, item: Mapping[str, Any]) -> dict[str, Any]:
        """Returns an item as the page shows it, with its sound at 16 kHz as FLAC and its waveform, or a `problem`."""
        start = item["start"] or 0.0
        view = {name: item[name] for name in ("id", "revision", "draft", "second", "text")} | {
            "why": "drawn at random" if item["random"] else item["why"], "language": self.source.language,
            "seconds": item["duration"], "place": item["place"],
            "where": f"{Path(item['path']).name}, {start:.1f} to {start + item['duration']:.1f} s",
        }  # fmt: skip
        try:
            if not Path(item["path"]).is_file():
                raise ExternalError(f"{item['path']}: the recording is not there any more; skip it, or put it back")
            clip = audio.decode(Path(item["path"]), item["start"], item["end"], most=audio.LONGEST)
        except ExternalError as error:
            return view | {"problem": str(error)}
        samples = audio.resample(*clip)
        sound = base64.b64encode(audio.encode_flac(samples, audio.SAMPLE_RATE)).decode()
        return view | {"sound": sound, "wave": charts.waveform(samples)}


def _other(item: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "revision": item["revision"], "who": item["who"] or "another person", "dropped": item["kind"] == DROPPED,
        "text": item["corrected"], "undone": item["kind"] is None,
    }  # fmt: skip


def _string(asked: Mapping[str, Any], name: str, longest: int) -> str:
    value = asked.get(name)
    plain = isinstance(value, str) and not any(char == "\0" or "\ud800" <= char <= "\udfff" for char in value)
    check(name, type(value).__name__, f"a text of up to {longest:,} characters", plain and len(str(value)) <= longest)
    return str(value)


def _text(asked: Mapping[str, Any]) -> str:
    return " ".join(_string(asked, "text", LONGEST_TEXT).split())


def _who(asked: Mapping[str, Any]) -> str:
    who = " ".join(_string(asked, "who", LONGEST_NAME).split())
    check("your name", "none", "typed before the first decision: the table says who corrected", who != "")
    return who


def _client(asked: Mapping[str, Any]) -> str:
    client = _string(asked, "client", CLIENT)
    check("client", repr(client), "the id of a browser", client.isascii() and client.replace("-", "").isalnum())
    return client


def _number(asked: Mapping[str, Any], name: str) -> int:
    value = asked.get(name)
    check(name, type(value).__name__, "a whole number", type(value) is int and 0 <= value < 2**53)
    return int(value or 0)


def page(handlers: Handlers, settings: AppConfig, opened: bool) -> Any:
    """Builds the page, a gr.Blocks; `opened`: other machines can reach it. It loads nothing from other hosts."""
    template = environment(autoescape=True).get_template
    facts = {"source": handlers.source, "folder": handlers.folder, "opened": opened, "settings": settings}

    def ask(asked: Mapping[str, Any]) -> dict[str, Any]:
        return handlers.answer(asked)

    with gr.Blocks(title="asr_lora: correct", analytics_enabled=False) as made:
        gr.HTML(template("correct_head.html").render(facts), elem_id="head")
        gr.HTML(
            "", html_template=template("correct.html").render(),  # static: gradio would run what is between ${ and }
            js_on_load=environment(autoescape=False).get_template("correct.js").render(), server_functions=[ask],
            elem_id="correct",
        )  # fmt: skip
    return made
