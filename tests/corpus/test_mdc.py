"""Sources mdc:... downloaded once, complete and verified, resumed after an interruption; clear errors.

The server is a local one, on loopback. It answers what the datacollective SDK requests of Mozilla Data Collective:
details of a data set, a download session, and the archive itself, in ranges.
"""

import gc
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.releases import RELEASE, pack, write_release
from support.runs import sets_of

from asr_lora.config.compose import load
from asr_lora.corpus import mdc
from asr_lora.evaluation.eval_sets import check_eval_sets
from asr_lora.planning.devices import durations
from asr_lora.prepare import prepare
from asr_lora.runtime.errors import ConfigError, ExternalError, UserError
from asr_lora.runtime.files import read_json, read_jsonl

# The SDK leaves the socket of a download that was refused to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")

ID, SLUG, KEY = "cmt95wvb80027qb6e2vezm3d9", "mcv-nl-v25.0", "a-key"
PIECE = 1 << 16  # bytes that the SDK writes at a time
ARCHIVE = f"{RELEASE}-nl.tar.gz"


class Site:
    """The server: what it holds, how it fails, and the requests that it got."""

    def __init__(self, content: bytes) -> None:
        self.content, self.requests, self.ranges = content, [], []
        self.details: dict[str, Any] = {
            "id": ID, "slug": SLUG, "filename": ARCHIVE, "sizeBytes": len(content),
            "checksum": hashlib.sha256(content).hexdigest(), "datasetUrl": f"https://mdc.test/datasets/{ID}",
        }  # fmt: skip
        self.failing: dict[str, tuple[int, dict[str, str], bytes]] = {}  # by route: details, session, archive
        self.cut_at: int | None = None  # bytes, after which the next download breaks off
        self.on_cut = lambda: None
        self.takes_ranges, self.slow = True, 0.0  # seconds before an archive is sent

    def fails(self, route: str, status: int, body: Any = None, **headers: str) -> None:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        self.failing[route] = (status, sent, body if isinstance(body, bytes) else json.dumps(body or {}).encode())

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        routes = {
            ("GET", f"/api/datasets/{ID}"): "details", ("GET", f"/api/datasets/{SLUG}"): "details",
            ("POST", f"/api/datasets/{ID}/download"): "session", ("GET", "/storage/x?signature=secret"): "archive",
        }  # fmt: skip
        route = routes.get((request.command, request.path), "nowhere")
        self.requests.append(route)
        if route in self.failing:
            self.send(request, *self.failing[route])
        elif route == "nowhere":
            self.send(request, 404, {}, b'{"error": "Dataset not found"}')
        elif route == "details":
            self.send(request, 200, {}, json.dumps(self.details).encode())
        elif route == "archive":
            self.send_archive(request)
        elif request.headers["Authorization"] != f"Bearer {KEY}":
            self.send(request, 401, {}, b'{"error": "Invalid API key"}')
        else:
            url = f"http://{request.headers['Host']}/storage/x?signature=secret"
            facts = {"downloadUrl": url, "sizeBytes": str(self.details["sizeBytes"])}
            self.send(request, 200, {}, json.dumps(facts | {"checksum": self.details["checksum"]}).encode())

    def send(self, request: BaseHTTPRequestHandler, status: int, headers: dict[str, str], body: bytes) -> None:
        request.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(body)

    def send_archive(self, request: BaseHTTPRequestHandler) -> None:
        given = request.headers["Range"]
        self.ranges.append(given)
        start = int(re.fullmatch(r"bytes=(\d+)-", given)[1]) if given and self.takes_ranges else 0
        if start >= len(self.content):
            self.send(request, 416, {}, b"")
            return
        time.sleep(self.slow)
        if self.cut_at is None:
            self.send(request, 206 if start else 200, {}, self.content[start:])
            return
        request.send_response(206 if start else 200)
        request.send_header("Content-Length", str(len(self.content) - start))
        request.end_headers()
        request.wfile.write(self.content[start : self.cut_at])
        request.wfile.flush()
        self.cut_at = None
        self.on_cut()


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An archive of several pieces."""
    folder = tmp_path_factory.mktemp("mdc") / RELEASE
    (write_release(folder) / "noise").write_bytes(random.Random(0).randbytes(8 * PIECE))  # tones pack to nothing
    return pack(folder, folder.parent / ARCHIVE).read_bytes()


@pytest.fixture
def site(packed: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    made = Site(packed)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            made.answer(self)

        def do_POST(self) -> None:
            made.answer(self)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        monkeypatch.setenv("MDC_API_URL", f"http://127.0.0.1:{server.server_address[1]}/api")
        monkeypatch.setenv("MDC_API_KEY", KEY)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield made
        server.shutdown()
        thread.join()
    if "archive" in made.failing:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()  # here, and not in another test


def refusal(kind: type[UserError], name: str = SLUG) -> str:
    """Returns the message, a single line without a key or a signed address; no complete archive is left."""
    with pytest.raises(kind) as error:
        mdc.download(name)
    message = str(error.value)
    assert "\n" not in message and "secret" not in message and KEY not in message
    assert complete() == []
    return message


def files() -> list[Path]:
    return [file for file in Path(os.environ["ASR_LORA_CACHE"]).rglob("*") if file.is_file()]


def complete() -> list[Path]:
    return [file for file in files() if file.name == ARCHIVE]


# --- fetched ----------------------------------------------------------------------------------------------------------


def test_a_data_set_is_fetched_and_prepared_like_any_archive(
    site: Site, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    config = load([*words, f"data.source=mdc:{SLUG}"])
    prepare(config)
    assert len(read_jsonl(config.run / "data" / "train.jsonl")) == 12
    summary = read_json(config.run / "data" / "summary.json")
    assert summary["release"] == RELEASE and summary["source"] == f"mdc:{SLUG}"
    out, logged = capsys.readouterr()
    assert out == "" and f"mdc:{SLUG}: fetching {ARCHIVE}, {len(site.content) / 1e6:.1f} MB, into" in logged
    assert re.search(rf"fetching {ARCHIVE} \(MB\): \d+/\d+", logged) and "checking (MB)" in logged


def test_a_complete_archive_is_not_requested_again_under_either_of_its_names(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = mdc.download(SLUG)
    assert archive.read_bytes() == site.content and archive.name == ARCHIVE
    requests = list(site.requests)
    monkeypatch.delenv("MDC_API_KEY")
    assert mdc.download(SLUG) == mdc.download(ID) == archive
    assert site.requests == requests and requests.count("archive") == 1


def test_nothing_but_the_archive_and_its_records_stays(site: Site) -> None:
    mdc.download(ID)
    assert {file.name for file in files()} - {f"{ID}.lock"} == {ARCHIVE, f"{ID}.json", f"{SLUG}.json"}


def test_an_emptied_cache_is_filled_again_for_a_prepared_run(site: Site, words: list[str], private_cache: Path) -> None:
    config = load([*words, f"data.source=mdc:{ID}"])
    prepare(config)
    shutil.rmtree(private_cache)
    prepare(config)
    clips = read_jsonl(config.run / "data" / "test.jsonl")
    assert all(Path(clip["path"]).is_file() for clip in clips) and site.requests.count("archive") == 2


def test_an_evaluation_set_may_be_one_of_its_data_sets(site: Site, words: list[str], release: Path) -> None:
    site.content = pack_english(release.parent / "english")
    site.details |= {"sizeBytes": len(site.content), "checksum": hashlib.sha256(site.content).hexdigest()}
    overrides = [*words, f"eval.sets=[{{source: 'mdc:{SLUG}', language: en}}]"]
    prepare(load(words))
    other = sets_of(load(overrides))[1]
    assert (other.name, other.language, len(other.clips)) == (f"{SLUG}-en", "en", 4)


def pack_english(folder: Path) -> bytes:
    rows = {
        split: [
            {"client_id": f"en-{split}-{at}", "path": f"en_{split}_{at}.mp3", "sentence": f"This is {at} of {split}."}
            for at in range(4)
        ]
        for split in ("train", "dev", "test")
    }
    write_release(folder / RELEASE, "en", rows)
    return pack(folder / RELEASE, folder / "en.tar.gz").read_bytes()


def test_a_set_without_a_key_is_refused_before_training(
    site: Site, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MDC_API_KEY")
    config = load([*words, f"eval.sets=[{{source: 'mdc:{SLUG}'}}]"])
    with pytest.raises(ConfigError, match="MDC_API_KEY: not set"):
        check_eval_sets(config.eval, config.data, config.model)
    assert site.requests == []


def test_a_plan_downloads_nothing_and_needs_no_key(
    site: Site, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MDC_API_KEY")
    _, origin = durations(load([*words, f"data.source=mdc:{SLUG}"]))
    assert origin.startswith("typical") and site.requests == []


# --- resumed ----------------------------------------------------------------------------------------------------------


def resumed_at(site: Site) -> int:
    """Returns the byte at which the second of two downloads began."""
    first, second = site.ranges
    assert first is None and second is not None
    return int(second.removeprefix("bytes=").removesuffix("-"))


def test_a_download_that_broke_off_resumes(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    site.cut_at = len(site.content) // 2
    message = refusal(ExternalError)
    assert "broke off (the connection was cut); its first part is kept: run the same command again" in message
    capsys.readouterr()
    assert mdc.download(SLUG).read_bytes() == site.content
    start = resumed_at(site)
    assert start == len(site.content) // 2 // PIECE * PIECE
    assert f"resuming from {start / 1e6:.1f} MB" in capsys.readouterr().err


@pytest.mark.slow
def test_ctrl_c_stops_a_download_and_it_resumes_next_time(site: Site) -> None:
    stopped = threading.Event()

    def interrupt() -> None:
        while not any(file.stat().st_size >= PIECE for file in files()):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
        stopped.wait(20)

    site.cut_at, site.on_cut = len(site.content) // 2, interrupt
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background may ignore it
    with pytest.raises(KeyboardInterrupt):
        mdc.download(SLUG)
    signal.signal(signal.SIGINT, usual)
    stopped.set()
    assert complete() == []
    assert mdc.download(SLUG).read_bytes() == site.content
    assert 0 < resumed_at(site) <= len(site.content) // 2


def test_a_download_interrupted_after_its_last_byte_is_verified_and_not_repeated(site: Site) -> None:
    partial = Path(os.environ["ASR_LORA_CACHE"]) / "downloads" / "mdc" / ID / "partial"
    partial.mkdir(parents=True)
    (partial / f"{ARCHIVE}.part").write_bytes(site.content)
    (partial / f"{ARCHIVE}.checksum").write_text(site.details["checksum"])
    assert mdc.download(SLUG).read_bytes() == site.content
    assert site.ranges == []


def test_a_data_set_that_changed_meanwhile_is_downloaded_again(site: Site) -> None:
    site.cut_at = len(site.content) // 2
    refusal(ExternalError)
    site.content += b"more"
    site.details |= {"sizeBytes": len(site.content), "checksum": hashlib.sha256(site.content).hexdigest()}
    assert mdc.download(SLUG).read_bytes() == site.content
    assert site.ranges == [None, None]


def test_two_processes_at_once_download_it_once(site: Site) -> None:
    site.slow = 0.5
    with ThreadPoolExecutor(2) as pool:
        assert len(set(pool.map(mdc.download, (SLUG, ID)))) == 1
    assert site.ranges == [None]


# --- verified ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "sha256:"])
def test_other_content_than_stated_is_refused_and_deleted(site: Site, prefix: str) -> None:
    right = site.content
    site.details["checksum"] = f"{prefix}{site.details['checksum']}"
    site.content = right[:-1] + bytes([right[-1] ^ 1])
    message = refusal(ExternalError)
    assert f"{ARCHIVE} arrived damaged, SHA-256 {hashlib.sha256(site.content).hexdigest()} and not" in message
    assert {file.suffix for file in files()} <= {".lock"}
    site.content = right
    assert mdc.download(SLUG).read_bytes() == right and site.ranges == [None, None]


@pytest.mark.parametrize("state", ["shorter than stated", "all of it, when the rest was requested"])
def test_another_size_than_stated_is_refused_and_deleted(site: Site, state: str) -> None:
    if state.startswith("shorter"):
        site.details["sizeBytes"] += 10
    else:
        site.takes_ranges, site.cut_at = False, 2 * PIECE
        refusal(ExternalError)
    assert re.search(r"arrived damaged, [\d,]+ bytes and not [\d,]+; it was deleted", refusal(ExternalError))
    assert {file.suffix for file in files()} <= {".lock"}


def test_a_missing_checksum_is_logged(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    site.details["checksum"] = None
    assert mdc.download(SLUG).read_bytes() == site.content
    assert "states no checksum for it; its size is as stated" in capsys.readouterr().err


# --- refused ----------------------------------------------------------------------------------------------------------


def test_a_missing_key_is_reported_with_the_page_that_makes_one(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MDC_API_KEY")
    message = refusal(ConfigError)
    assert message.startswith("MDC_API_KEY: not set") and "mozilladatacollective.com/profile/credentials" in message
    assert site.requests == []


def test_a_key_with_a_line_break_is_reported_and_not_shown(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MDC_API_KEY", f"{KEY}\n")
    assert refusal(ConfigError).startswith("MDC_API_KEY: a key holds no spaces, line breaks")


def test_401_is_reported_as_the_key(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MDC_API_KEY", "another")
    message = refusal(ConfigError)
    assert message.startswith("MDC_API_KEY: Mozilla Data Collective does not accept this key") and "401" in message


def test_403_is_reported_as_the_terms_with_their_page(site: Site) -> None:
    site.fails("session", 403, {"error": "You must agree\nto the terms"})
    message = refusal(ConfigError)
    assert message == (
        f"mdc:{SLUG}: its terms are not accepted, or you are not approved (HTTP 403: You must agree to the terms); "
        f"sign in, accept them on https://mdc.test/datasets/{ID}, and run the same command again"
    )


def test_404_is_reported_as_the_id_with_where_ids_are(site: Site) -> None:
    message = refusal(ConfigError, "mcv-nl-v99")
    assert message.startswith("mdc:mcv-nl-v99: Mozilla Data Collective has no such data set (HTTP 404: Dataset not")
    assert "mozilladatacollective.com/datasets/<id>" in message


@pytest.mark.parametrize("route", ["details", "session", "archive"])
@pytest.mark.parametrize(
    ("after", "message"),
    [
        ("90", r"run the same command again after \d{4}-\d\d-\d\d \d\d:\d\d$"),
        ("a date", r"run the same command again after \d{4}-\d\d-\d\d \d\d:\d\d$"),
        ("", r"run the same command again later \(no time was given\)$"),
        ("soon", r"run the same command again later \(no time was given\)$"),
    ],
)
def test_429_is_reported_as_the_limit_with_when_to_try_again(site: Site, route: str, after: str, message: str) -> None:
    after = formatdate(time.time() + 90, usegmt=True) if after == "a date" else after
    site.fails(route, 429, {"error": "Daily download limit reached"}, **({"Retry_After": after} if after else {}))
    assert re.search(message, refusal(ExternalError))


@pytest.mark.parametrize(
    ("route", "status", "message"),
    [
        ("session", 402, "has to be paid for (HTTP 402"),
        ("details", 410, "was taken down (HTTP 410"),
        ("details", 400, "has no such data set (HTTP 400"),
        ("session", 503, "Mozilla Data Collective failed (HTTP 503); try again later"),
        ("archive", 403, "the download broke off (HTTP 403); its first part is kept"),
        ("archive", 500, "the download broke off (HTTP 500); its first part is kept"),
    ],
)
def test_other_refusals_are_one_line_too(site: Site, route: str, status: int, message: str) -> None:
    site.fails(route, status)
    assert message in refusal(UserError)


@pytest.mark.parametrize("route", ["details", "session"])
@pytest.mark.parametrize("body", [b"<html>log in to this wireless network</html>", b"{}"])
def test_an_answer_of_another_server_is_reported(site: Site, route: str, body: bytes) -> None:
    site.fails(route, 200, body)
    assert "cannot read the answer of Mozilla Data Collective" in refusal(ExternalError)


@pytest.mark.parametrize(
    "filename", ["../../evil.tar.gz", "/etc/evil.tar.gz", "..", ".evil", "", None, "a\0.tar", "a\n.tar", "a" * 300]
)
def test_a_file_name_that_leads_elsewhere_is_refused(site: Site, filename: str | None) -> None:
    site.details["filename"] = filename
    assert "names no file to download" in refusal(ExternalError)


def test_a_refused_connection_is_reported_as_the_network(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MDC_API_URL", "http://127.0.0.1:1/api")
    assert "cannot reach Mozilla Data Collective (Connection refused); check the network" in refusal(ExternalError)


def test_a_disk_too_small_is_reported_before_anything_is_downloaded(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mdc.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    message = refusal(ExternalError)
    assert re.search(r"needs [\d.]+ [MK]B more, and \S+ has 1.0 KB free; make room there", message)
    assert site.requests == ["details"]


def test_a_disk_that_fills_up_is_reported(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> Path:
        from datacollective.errors import DownloadError  # noqa: PLC0415

        raise DownloadError(0, 0, 1, "x") from OSError(28, "No space left on device")

    monkeypatch.setattr("datacollective.download_dataset", full)
    assert "No space left on device; free some space there" in refusal(ExternalError)


def test_a_cache_that_cannot_be_written_is_reported(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("ASR_LORA_CACHE", str(tmp_path / "file"))
    message = refusal(ExternalError)
    assert message.startswith("cannot write") and "ASR_LORA_CACHE" in message


@pytest.mark.parametrize("name", ["", "..", "a/b", "../a", "a..b", ".a", "-a", "a b", "a?b", "a#b", "a%2e", "é", "a\n"])
def test_an_invalid_id_or_slug_is_refused_before_any_request(site: Site, name: str) -> None:
    with pytest.raises(ConfigError, match="must be a data set's id or slug"):
        mdc.download(name)
    assert site.requests == [] and files() == []


def test_the_address_of_a_page_is_refused_with_its_name(site: Site) -> None:
    message = refusal(ConfigError, f"https://mozilladatacollective.com/datasets/{ID}")
    assert message.endswith(f"did you mean mdc:{ID}?")


def test_a_missing_sdk_is_one_line_with_the_way_out(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datacollective", None)
    assert "needs the package datacollective" in refusal(ExternalError)


READ = """
import json, os, sys
from asr_lora.corpus import mdc
from asr_lora.runtime.errors import ConfigError
assert not {"datacollective", "dotenv"} & set(sys.modules)
for given in json.loads(sys.argv[1]):
    if os.fork():
        assert os.wait()[1] == 0
        continue
    os.environ.update(given)
    before = dict(os.environ)
    try:
        mdc.check("mcv-nl-v25.0")
        print("taken")
    except ConfigError as error:
        print(error)
    assert "datacollective" in sys.modules
    print({name for name in {**before, **os.environ} if before.get(name) != os.environ.get(name)}, flush=True)
    os._exit(0)
"""


def test_a_dotenv_file_in_the_working_folder_is_not_read(tmp_path: Path) -> None:
    lines = ["MDC_API_KEY=theirs", "MDC_API_URL=http://127.0.0.1:1/api", "HF_ENDPOINT=http://127.0.0.1:1", "OTHER=1"]
    (tmp_path / "work" / "deep").mkdir(parents=True)
    for folder in (tmp_path / "work", tmp_path / "work" / "deep"):
        (folder / ".env").write_text("\n".join(lines))
    keys, switches = ({}, {"MDC_API_KEY": "mine"}), ({}, {"PYTHON_DOTENV_DISABLED": "0"})
    given = [key | switch for key in keys for switch in switches]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    for name in ("MDC_API_KEY", "PYTHON_DOTENV_DISABLED"):
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-c", READ, json.dumps(given)], cwd=tmp_path / "work" / "deep", env=environment,
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2 * len(given)
    for each, message, changed in zip(given, lines[::2], lines[1::2], strict=True):
        assert message == "taken" if "MDC_API_KEY" in each else message.startswith("MDC_API_KEY: not set"), each
        assert changed == "set()", each
