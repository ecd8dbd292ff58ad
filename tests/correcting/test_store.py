"""The file of corrections: what was acknowledged is kept, nobody overwrites another person, two get two clips."""

import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from asr_lora.correcting.items import Item
from asr_lora.correcting.order import in_order
from asr_lora.correcting.store import ACCEPTED, DROPPED, EDITED, StaleError, Store
from asr_lora.runtime.errors import ConfigError, ExternalError

FOLLOWS = {"source": "/radio"}


def items(count: int) -> list[Item]:
    """Of which the last is the one in most disagreement."""
    return [Item("/talk.wav", float(at), at + 0.5, 0.5, f"text {at}", "a", (float(at), 0.0)) for at in range(count)]


def store_of(folder: Path, count: int = 5, lease: float = 60.0) -> Store:
    store = Store(folder / "corrections.sqlite", lease)
    store.open(in_order(items(count), 0.0, 0), FOLLOWS)
    return store


def test_a_decision_is_accepted_edited_or_dropped_and_says_who_and_when(tmp_path: Path) -> None:
    store, began = store_of(tmp_path), time.time()
    for text in ("text 4", "another text", None):
        item = store.next("anna")
        assert item is not None and item["revision"] == 0
        assert store.save(item["id"], 0, text, "Anna", "anna") == 1
    decided = store.decided()
    assert [each["kind"] for each in decided] == [DROPPED, EDITED, ACCEPTED]  # in the order of the recording
    assert [each["corrected"] for each in decided] == [None, "another text", "text 4"]
    assert all(each["who"] == "Anna" and began <= each["at"] <= time.time() for each in decided)
    assert all(0 <= each["seconds"] < 5 for each in decided)


def test_two_people_get_two_clips_until_a_lease_has_expired(tmp_path: Path) -> None:
    store = store_of(tmp_path, lease=0.3)
    first, second = store.next("anna"), store.next("bert")
    assert first is not None and second is not None and (first["text"], second["text"]) == ("text 4", "text 3")
    again = store.next("anna")
    assert again is not None and again["id"] == first["id"]  # after a reload
    time.sleep(0.4)
    taken = store.next("bert")
    assert taken is not None and taken["id"] == first["id"]
    store.hold(first["id"], "anna")
    other = store.next("anna")
    assert other is not None and other["id"] != first["id"]  # it is Bert's now


def test_a_save_of_an_older_revision_is_refused_and_shows_what_was_saved(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    item = store.next("anna")
    assert item is not None
    store.save(item["id"], 0, "Bert's text", "Bert", "bert")
    for late in ("Anna's text", None):
        with pytest.raises(StaleError) as refused:
            store.save(item["id"], item["revision"], late, "Anna", "anna")
    now = refused.value.item
    assert (now["corrected"], now["who"], now["revision"]) == ("Bert's text", "Bert", 1)
    assert store.save(item["id"], now["revision"], "Anna's text", "Anna", "anna") == 2  # knowingly
    with sqlite3.connect(store.file) as db:  # both are kept
        rows = db.execute("SELECT revision, text, who FROM decisions ORDER BY revision").fetchall()
    db.close()
    assert rows == [(1, "Bert's text", "Bert"), (2, "Anna's text", "Anna")]


def test_undo_takes_back_ones_own_decisions_one_after_another_and_keeps_the_text(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    ids = []
    for text in ("one", None):
        item = store.next("anna")
        assert item is not None
        ids.append(item["id"])
        store.save(item["id"], 0, text, "Anna", "anna")
    assert store.undo("Bert", "bert") is None
    back = store.undo("Anna", "anna")
    assert back is not None and (back["id"], back["kind"], back["draft"]) == (ids[1], None, None)
    back = store.undo("Anna", "anna")
    assert back is not None and (back["id"], back["draft"], back["revision"]) == (ids[0], "one", 2)
    assert store.undo("Anna", "anna") is None and store.decided() == []
    store.save(ids[0], 2, "two", "Anna", "anna")
    store.save(ids[0], 3, "three", "Bert", "bert")
    assert store.undo("Anna", "anna") is None  # Bert's holds


def test_a_draft_is_its_clients_own_and_a_skipped_clip_comes_back_behind_the_others(tmp_path: Path) -> None:
    store = store_of(tmp_path, count=3, lease=0.01)
    item = store.next("anna")
    assert item is not None
    store.draft(item["id"], "anna", "half a te")
    time.sleep(0.05)
    bert, anna = store.next("bert"), store.next("anna")
    assert bert is not None and bert["draft"] is None and anna is not None
    time.sleep(0.05)
    found = store.next("anna")
    assert found is not None and (found["id"], found["draft"]) == (item["id"], "half a te")
    order = []
    for _ in range(4):
        shown = store.next("anna")
        assert shown is not None
        order.append(shown["text"])
        store.skip(shown["id"], "anna")
        time.sleep(0.02)
    assert order == ["text 2", "text 1", "text 0", "text 2"]


def test_added_clips_are_taken_in_and_decided_ones_stay(tmp_path: Path) -> None:
    store = store_of(tmp_path, count=2)
    item = store.next("anna")
    assert item is not None
    store.save(item["id"], 0, "saved", "Anna", "anna")
    store.open(in_order(items(4), 0.0, 0)[:2], FOLLOWS)  # two new ones; both old ones are no longer in the source
    assert store.size()[0] == 3 and [each["corrected"] for each in store.decided()] == ["saved"]
    shown = store.next("bert")
    assert shown is not None and shown["text"] == "text 3"


def _save_all(file: Path, client: str, saved: "multiprocessing.Queue[tuple[int, str]]") -> None:
    store = Store(file, 60.0)
    while (item := store.next(client)) is not None:
        store.save(item["id"], item["revision"], f"by {client}", client, client)
        saved.put((item["id"], client))
    saved.put((0, client))


def test_processes_that_save_at_once_decide_each_clip_once(tmp_path: Path) -> None:
    store, clients = store_of(tmp_path, count=40), ("anna", "bert", "carl")
    spawn = multiprocessing.get_context("spawn")
    saved: multiprocessing.Queue[tuple[int, str]] = spawn.Queue()
    workers = [spawn.Process(target=_save_all, args=(store.file, client, saved)) for client in clients]
    for worker in workers:
        worker.start()
    acknowledged, ended = [], 0
    while ended < len(clients):
        entry = saved.get(timeout=120)
        ended += not entry[0]
        acknowledged += [entry] if entry[0] else []
    for worker in workers:
        worker.join()
    assert sorted(item for item, _ in acknowledged) == list(range(1, 41))
    assert {(each["id"], each["corrected"].removeprefix("by ")) for each in store.decided()} == set(acknowledged)


def test_of_threads_that_save_the_same_revision_one_is_let_through(tmp_path: Path) -> None:
    store, outcomes = store_of(tmp_path), []

    def save(name: str) -> None:
        try:
            outcomes.append((store.save(1, 0, name, name, name), name))
        except StaleError as stale:
            outcomes.append((0, stale.item["who"]))

    threads = [threading.Thread(target=save, args=(f"person{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = (name for revision, name in outcomes if revision == 1)
    assert len(outcomes) == 8 and {name for _, name in outcomes} == {winner}
    assert [each["corrected"] for each in store.decided()] == [winner]


SAVER = """
import sys
from pathlib import Path
from asr_lora.correcting.store import Store
store, revision = Store(Path(sys.argv[1]), 60.0), int(sys.argv[2])
while True:
    revision = store.save(1, revision, f"text of {revision + 1}", "Anna", "anna")
    print(revision, flush=True)
"""


def test_what_was_acknowledged_before_a_kill_is_there_afterwards(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    for _ in range(3):
        before = max([each["revision"] for each in store.decided()], default=0)
        command = [sys.executable, "-c", SAVER, str(store.file), str(before)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        seen = [process.stdout.readline() for _ in range(20)]
        os.kill(process.pid, signal.SIGKILL)  # at any point of the next saves
        seen += process.stdout.read().splitlines(keepends=True)
        process.stdout.close()
        process.wait()
        last = max(int(line) for line in seen if line.endswith("\n"))
        (item,) = store.decided()
        assert last <= item["revision"] <= last + 1 and item["corrected"] == f"text of {item['revision']}"
        with sqlite3.connect(store.file) as db:
            assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            kept = [row[0] for row in db.execute("SELECT text FROM decisions ORDER BY revision")]
        db.close()
        assert kept == [f"text of {revision}" for revision in range(1, item["revision"] + 1)]


@pytest.mark.parametrize("content", [b"no database at all" * 100, b"SQLite format 3\0" + bytes(200)])
def test_a_damaged_file_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "corrections.sqlite").write_bytes(content)
    with pytest.raises(ExternalError, match=r"correct\.out: .*corrections\.sqlite cannot be read or written"):
        store_of(tmp_path)


def test_files_of_others_and_other_settings_are_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "corrections.sqlite") as db:
        db.execute("CREATE TABLE holidays (day TEXT)")
    db.close()
    with pytest.raises(ConfigError, match="was not made by this version of correct"):
        store_of(tmp_path)
    (tmp_path / "own").mkdir()
    store = store_of(tmp_path / "own")
    with pytest.raises(ConfigError, match="was made with source=/radio, not /tv"):
        store.open([], {"source": "/tv"})
    store.file.unlink()
    with pytest.raises(ExternalError, match="unable to open"):  # and is not made anew, empty
        store.save(1, 0, "text", "Anna", "anna")
    assert not store.file.exists()
