"""The corrections in an SQLite file: items, every decision, drafts, and who works at what.

What a call has written is on the disk when it returns, whatever ends the process or the machine then: each is a
transaction that SQLite syncs (synchronous=EXTRA, the folder too). Decisions are only added. One that was made of an
older revision of its item is refused, so nobody overwrites what another person has saved meanwhile. `client` is a
browser, `who` the name of a person.
"""

import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from asr_lora.correcting.order import Placed
from asr_lora.runtime.errors import ConfigError, ExternalError

VERSION = 2  # of the tables
APPLICATION = 0x41534C43  # marks the file as ours
WAIT = 30.0  # s for a lock that another process holds
LONGEST_WORK = 300.0  # s that one decision can have taken; beyond it nobody sat there
ACCEPTED, EDITED, DROPPED, UNDONE = "accepted", "edited", "dropped", "undone"
TABLES = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE items (
  id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, place INTEGER, random INTEGER NOT NULL,
  path TEXT NOT NULL, start REAL, "end" REAL, duration REAL NOT NULL, speaker TEXT NOT NULL, text TEXT NOT NULL,
  second TEXT NOT NULL, why TEXT NOT NULL, split TEXT NOT NULL,
  clip TEXT NOT NULL,
  revision INTEGER NOT NULL DEFAULT 0, kind TEXT, corrected TEXT, who TEXT, at REAL
);
CREATE INDEX by_place ON items (place) WHERE kind IS NULL;
CREATE TABLE decisions (
  id INTEGER PRIMARY KEY, item INTEGER NOT NULL, revision INTEGER NOT NULL, kind TEXT NOT NULL, text TEXT,
  who TEXT NOT NULL, client TEXT NOT NULL, at REAL NOT NULL, seconds REAL, UNIQUE (item, revision)
);
CREATE TABLE drafts (item INTEGER, client TEXT, text TEXT NOT NULL, at REAL NOT NULL, PRIMARY KEY (item, client));
CREATE TABLE leases (item INTEGER PRIMARY KEY, client TEXT NOT NULL, since REAL NOT NULL, until REAL NOT NULL);
CREATE TABLE skips (item INTEGER, client TEXT, times INTEGER NOT NULL, PRIMARY KEY (item, client));
"""
# The next item of a client: one that it holds, has a draft of, or is free; skipped ones again behind all others.
NEXT = """
SELECT items.id FROM items
LEFT JOIN leases ON leases.item = items.id AND leases.until > :now
LEFT JOIN drafts ON drafts.item = items.id AND drafts.client = :client
LEFT JOIN skips ON skips.item = items.id AND skips.client = :client
WHERE items.kind IS NULL AND items.place IS NOT NULL AND (leases.client IS NULL OR leases.client = :client)
ORDER BY coalesce(skips.times, 0), leases.client IS NULL, drafts.client IS NULL, items.place LIMIT 1
"""
# The last decision of a client that still holds.
LAST = """
SELECT decisions.* FROM decisions JOIN items ON items.id = decisions.item AND items.revision = decisions.revision
WHERE decisions.client = ? AND decisions.kind != 'undone' ORDER BY decisions.id DESC LIMIT 1
"""


class StaleError(Exception):
    """A save of an older revision; `item` is how it is now, with `kind`, `corrected`, `who` and `at` of the other."""

    def __init__(self, item: dict[str, Any]) -> None:
        super().__init__(f"item {item['id']} is at revision {item['revision']}")
        self.item = item


class Store:
    """The file of corrections of one source. Methods may be called by several threads and processes at once.

    `lease` is how many seconds an item is kept for the client that works at it. All methods raise ExternalError where
    the file cannot be read or written.
    """

    def __init__(self, file: Path, lease: float) -> None:
        self.file, self.lease = file, lease

    def open(self, placed: Sequence[Placed], follows_from: dict[str, str]) -> None:
        """Makes the file where it is absent, and takes in items that it lacks.

        Undecided items get the order and texts of `placed`, decided ones stay; those of an earlier source are no
        longer shown. Raises ConfigError for a file of another program, a later version, or other `follows_from`.
        """
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self._writing(mode="rwc") as db:
            self._check(db, follows_from)
            db.execute("UPDATE items SET place = NULL")
            db.executemany(
                """INSERT INTO items (
                  key, place, random, path, start, "end", duration, speaker, text, second, why, split, clip
                ) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET place = excluded.place,
                text = iif(kind IS NULL, excluded.text, text), second = excluded.second, why = excluded.why,
                clip = excluded.clip""",
                [
                    (each.key, place, random, each.path, each.start, each.end, each.duration, each.speaker, each.text,
                     each.second, each.why, each.split, each.clip)
                    for place, (each, random) in enumerate(placed, start=1)
                ],
            )  # fmt: skip

    def _check(self, db: sqlite3.Connection, follows_from: dict[str, str]) -> None:
        """Makes the tables of a new file. Raises ConfigError for one that cannot be used."""
        own, version = (db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version"))
        if not db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
            for statement in filter(str.strip, TABLES.split(";")):
                db.execute(statement)
            db.execute(f"PRAGMA application_id = {APPLICATION}")
            db.execute(f"PRAGMA user_version = {VERSION}")
            db.executemany("INSERT INTO facts VALUES (?, ?)", follows_from.items())
            return
        if (own, version) != (APPLICATION, VERSION):
            raise ConfigError(f"correct.out: {self.file} was not made by this version of correct; name another folder")
        before = dict(map(tuple, db.execute("SELECT name, value FROM facts")))
        for name, now in follows_from.items():
            if before.get(name) != now:
                raise ConfigError(
                    f"correct.out: {self.file} was made with {name}={before.get(name)}, not {now}; keep that, or name "
                    "another folder (correct.out=...)"
                )

    def next(self, client: str) -> dict[str, Any] | None:
        """Returns the next item for a client, kept for it from now on, with its `draft` or None; None without any."""
        with self._writing() as db:
            found = db.execute(NEXT, {"client": client, "now": time.time()}).fetchone()
            return None if found is None else self._take(db, found["id"], client)

    def hold(self, item: int, client: str) -> dict[str, Any]:
        """Keeps an item for a client for another while, unless another client has it; returns how it is now."""
        with self._writing() as db:
            return self._take(db, item, client)

    def draft(self, item: int, client: str, text: str) -> None:
        """Keeps a text that is not saved yet, for this client alone."""
        with self._writing() as db:
            self._item(db, item)
            db.execute("INSERT OR REPLACE INTO drafts VALUES (?, ?, ?, ?)", (item, client, text, time.time()))
            self._take(db, item, client)

    def save(self, item: int, revision: int, text: str | None, who: str, client: str) -> int:
        """Decides an item: a text that is accepted or edited, None to drop it. Returns its new revision.

        Raises StaleError where it was decided since `revision` was shown.
        """
        with self._writing() as db:
            now = self._item(db, item)
            if now["revision"] != revision:
                raise StaleError(now)
            kind = DROPPED if text is None else ACCEPTED if text == now["text"] else EDITED
            return self._decide(db, item, kind, text, who, client)

    def skip(self, item: int, client: str) -> None:
        """Leaves an item for others; this client gets it again behind all that it skipped less often."""
        with self._writing() as db:
            self._item(db, item)
            db.execute("INSERT INTO skips VALUES (?, ?, 1) ON CONFLICT DO UPDATE SET times = times + 1", (item, client))
            db.execute("DELETE FROM leases WHERE item = ? AND client = ?", (item, client))

    def undo(self, who: str, client: str) -> dict[str, Any] | None:
        """Takes back a client's last decision that no other followed; returns the item with its text as the draft.

        None where there is no such decision.
        """
        with self._writing() as db:
            if (last := db.execute(LAST, (client,)).fetchone()) is None:
                return None
            self._decide(db, last["item"], UNDONE, None, who, client)
            if last["text"] is not None:
                kept = (last["item"], client, last["text"], time.time())
                db.execute("INSERT OR REPLACE INTO drafts VALUES (?, ?, ?, ?)", kept)
            return self._take(db, last["item"], client)

    def decided(self) -> list[dict[str, Any]]:
        """Returns all decided items by recording and time; `seconds` is what the decision took, None where unknown."""
        with self._connected() as db:
            return [dict(row) for row in db.execute(
                """SELECT items.*, decisions.seconds FROM items JOIN decisions
                ON decisions.item = items.id AND decisions.revision = items.revision
                WHERE items.kind IS NOT NULL ORDER BY path, start, items.id"""
            )]  # fmt: skip

    def size(self) -> tuple[int, int]:
        """Returns how many items there are, and the number of the last decision, which every one raises."""
        with self._connected() as db:
            shown = "SELECT count(*) FROM items WHERE place IS NOT NULL OR kind IS NOT NULL"
            return tuple(db.execute(f"SELECT ({shown}), (SELECT coalesce(max(id), 0) FROM decisions)").fetchone())

    def _decide(
        self, db: sqlite3.Connection, item: int, kind: str, text: str | None, who: str, client: str
    ) -> int:  # fmt: skip
        now = time.time()
        revision = int(self._item(db, item)["revision"]) + 1
        lease = db.execute("SELECT since FROM leases WHERE item = ? AND client = ?", (item, client)).fetchone()
        took = None if lease is None else min(max(0.0, now - lease["since"]), LONGEST_WORK)
        db.execute(
            "INSERT INTO decisions VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?)",
            (item, revision, kind, text, who, client, now, took),
        )
        shown = (None, None, None, None) if kind == UNDONE else (kind, text, who, now)
        db.execute(
            "UPDATE items SET revision = ?, kind = ?, corrected = ?, who = ?, at = ? WHERE id = ?",
            (revision, *shown, item),
        )
        for table in ("drafts", "leases"):
            db.execute(f"DELETE FROM {table} WHERE item = ? AND client = ?", (item, client))
        return revision

    def _take(self, db: sqlite3.Connection, item: int, client: str) -> dict[str, Any]:
        """Gives the lease of an item to a client unless another has it; returns the item with the client's draft."""
        found, now = self._item(db, item), time.time()
        if found["kind"] is None:
            db.execute(
                """INSERT INTO leases VALUES (:item, :client, :now, :until) ON CONFLICT (item) DO UPDATE SET
                since = iif(client = :client AND until > :now, since, :now), client = :client, until = :until
                WHERE client = :client OR until <= :now""",
                {"item": item, "client": client, "now": now, "until": now + self.lease},
            )
        draft = db.execute("SELECT text FROM drafts WHERE item = ? AND client = ?", (item, client)).fetchone()
        return found | {"draft": draft and draft["text"]}

    def _item(self, db: sqlite3.Connection, item: int) -> dict[str, Any]:
        found = db.execute("SELECT * FROM items WHERE id = ?", (item,)).fetchone()
        if found is None:
            raise ConfigError(f"item: {item} is none of {self.file}; reload the page")
        return dict(found)

    @contextmanager
    def _writing(self, mode: str = "rw") -> Iterator[sqlite3.Connection]:
        """Opens a transaction that no other writer interrupts: committed, and on the disk, when the block succeeds."""
        with self._connected(mode) as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            finally:
                if db.in_transaction:
                    db.execute("ROLLBACK")

    @contextmanager
    def _connected(self, mode: str = "rw") -> Iterator[sqlite3.Connection]:
        """Opens the file; a `mode` without c never makes it: one that was removed is not replaced by an empty one."""
        try:
            address = f"file:{quote(str(self.file.absolute()))}?mode={mode}"
            with closing(sqlite3.connect(address, timeout=WAIT, isolation_level=None, uri=True)) as db:
                db.row_factory = sqlite3.Row
                db.execute("PRAGMA synchronous = EXTRA")
                db.execute("PRAGMA trusted_schema = OFF")  # the file may come from elsewhere
                yield db
        except sqlite3.Error as error:
            raise ExternalError(
                f"correct.out: {self.file} cannot be read or written ({error}); put it back, or free its disk or lock"
            ) from error
