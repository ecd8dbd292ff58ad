"""Systems behind an OpenAI-compatible server (POST {url}/audio/transcriptions), such as vLLM's or speaches."""

import os
import threading
from collections.abc import Callable
from typing import Any

import httpx

from asr_lora.config.stages import EvalModelConfig
from asr_lora.data.manifest import Clip, waveform
from asr_lora.evaluation.eval_sets import EvalSet
from asr_lora.runtime.errors import ConfigError, ExternalError, first_line
from asr_lora.speech import audio
from asr_lora.systems.system import System, transcribed

AT_ONCE = 4  # requests at a time
TRIES = 5
WAIT = 0.5  # seconds before the second try, doubled before every other one
AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504})  # statuses that pass
TIMEOUT = httpx.Timeout(120.0, connect=10.0)  # seconds; a server may load its model at the first request


def of_url(name: str, asked: EvalModelConfig) -> System:
    """Returns the system behind a URL; its key is in the environment variable that the settings name.

    Raises ConfigError without the name of the model that is served, or without the variable that was named.
    """
    url, served = str(asked.model).rstrip("/"), asked.served
    host = _host(url)
    if not served:
        raise ConfigError(f"eval.models: {url} serves models by name; add served=<its name>, as GET {url}/models lists")
    key = None if asked.key is None else os.environ.get(asked.key, "").strip()
    if asked.key is not None and not key:
        raise ConfigError(f"eval.models: the environment variable {asked.key} is not set; export {asked.key}=...")
    if key and not (key.isascii() and key.isprintable()):
        raise ConfigError(f"eval.models: the environment variable {asked.key} holds characters that no key has")
    stopped = threading.Event()

    def load(language: str) -> Callable[[Clip], str]:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        client = httpx.Client(timeout=TIMEOUT, headers=headers)
        stopped.clear()
        return lambda clip: _text(client, f"{url}/audio/transcriptions", served, language, clip, stopped)

    def transcribe(each: EvalSet) -> dict[str, Any]:
        content = {"url": url, "served": served, "language": each.language}
        return transcribed(name, content, each.clips, lambda: load(each.language), None, AT_ONCE, stopped.set)

    return System(name, "server", f"{served} at {host}", None, transcribe)


def _host(url: str) -> str:
    """Returns the host of a URL. Raises ConfigError for one that is none, or holds what may be secret."""
    try:
        place = httpx.URL(url)
        host = place.host.encode("idna").decode() if place.host else ""
    except (httpx.InvalidURL, UnicodeError) as error:
        raise ConfigError(f"eval.models: a server's URL is none ({first_line(error)}); http://host:8000/v1") from error
    if place.userinfo or place.query:
        raise ConfigError(
            "eval.models: a server's URL must have no user, password or query; a key goes into key=VARIABLE"
        )
    return host


def _text(client: httpx.Client, url: str, served: str, language: str, clip: Clip, stopped: threading.Event) -> str:
    """Returns what the server makes of a clip. Raises ExternalError after TRIES, or for an answer that is none."""
    sound = audio.encode_flac(waveform(clip), audio.SAMPLE_RATE)
    fields = {"model": served, "language": language, "response_format": "json", "temperature": "0"}
    problem = ""
    for tried in range(TRIES):
        if tried and stopped.wait(WAIT * 2 ** (tried - 1)):
            break
        try:
            answer = client.post(url, data=fields, files={"file": ("clip.flac", sound, "audio/flac")})
        except httpx.RequestError as error:
            problem = first_line(error) or type(error).__name__
            continue
        if answer.status_code not in AGAIN:
            return _read(answer, url)
        problem = f"status {answer.status_code}"
    raise ExternalError(f"eval.models: {url} does not answer after {TRIES} tries ({problem}); what it gave is kept")


def _read(answer: httpx.Response, url: str) -> str:
    if answer.status_code != httpx.codes.OK:
        reason = " ".join(answer.text[:200].split())
        raise ExternalError(f"eval.models: {url} refuses with status {answer.status_code}: {reason}")
    try:
        text = answer.json()["text"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ExternalError(f"eval.models: {url} answers without a text: {answer.text[:80]!r}") from error
    if not isinstance(text, str):
        raise ExternalError(f"eval.models: {url} answers with a text that is none: {text!r}")
    return text.encode("utf-8", "replace").decode().strip()  # JSON may hold halves of surrogate pairs
