"""What was noticed and has to be told: a file of the exporter's own (SQLite), so that telling costs the API server nothing.

It has the objects as they were told last, how far each kind was watched, the changes that wait, how far each sink is,
and the dead letters. What is noticed goes in with how far was watched, in one transaction: an exporter that is killed
anywhere goes on from where both say the same. Its connection is used from one thread at a time.
"""

from __future__ import annotations

import fcntl
import json
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import IO, Any

from kumulus.api.base import PLATFORM_NAMESPACE
from kumulus_services.events.envelope import Change
from kumulus_services.events.transitions import PRESENT, Told

FORMAT = 2
DEAD_MOST = 10_000
"""Dead letters that are kept of a sink; the oldest go."""
BIT = 200
"""Changes that are dropped in one transaction."""
_Place = tuple[int, str | None, str | None]
"""Of a change: its number, the namespace of its object, the sink whose own it is."""

_TABLES = """
CREATE TABLE IF NOT EXISTS positions (kind TEXT PRIMARY KEY, version TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS entities (
  uid TEXT PRIMARY KEY, kind TEXT NOT NULL, namespace TEXT, name TEXT NOT NULL, version TEXT NOT NULL,
  labels TEXT NOT NULL, object TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS entities_of_kind ON entities (kind, uid, version);
CREATE TABLE IF NOT EXISTS changes (
  seq INTEGER PRIMARY KEY AUTOINCREMENT, uid TEXT NOT NULL, kind TEXT NOT NULL, namespace TEXT, name TEXT NOT NULL,
  version TEXT NOT NULL, at TEXT NOT NULL, told TEXT NOT NULL, labels TEXT NOT NULL, object TEXT NOT NULL,
  queued REAL NOT NULL, sink TEXT);
CREATE INDEX IF NOT EXISTS changes_of_object ON changes (uid, seq);
DROP INDEX IF EXISTS changes_in_namespace;
CREATE INDEX IF NOT EXISTS changes_of_namespace ON changes (namespace, seq, sink);
CREATE INDEX IF NOT EXISTS changes_for_sink ON changes (sink, seq);
CREATE TABLE IF NOT EXISTS usage (namespace TEXT PRIMARY KEY, changes INTEGER NOT NULL, bytes INTEGER NOT NULL);
CREATE TRIGGER IF NOT EXISTS changes_come AFTER INSERT ON changes BEGIN
  INSERT INTO usage VALUES (ifnull(NEW.namespace, ''), 1, length(CAST(NEW.object AS BLOB)) + 512)
    ON CONFLICT (namespace) DO UPDATE SET changes = changes + 1, bytes = bytes + excluded.bytes;
END;
CREATE TRIGGER IF NOT EXISTS changes_go AFTER DELETE ON changes BEGIN
  UPDATE usage SET changes = changes - 1, bytes = bytes - length(CAST(OLD.object AS BLOB)) - 512
    WHERE namespace = ifnull(OLD.namespace, '');
  DELETE FROM usage WHERE namespace = ifnull(OLD.namespace, '') AND changes = 0;
END;
CREATE TABLE IF NOT EXISTS sinks (
  uid TEXT PRIMARY KEY, namespace TEXT, cursor INTEGER NOT NULL, delivered INTEGER NOT NULL DEFAULT 0, lost INTEGER NOT NULL DEFAULT 0,
  redelivered TEXT);
CREATE TABLE IF NOT EXISTS dead (
  id INTEGER PRIMARY KEY AUTOINCREMENT, sink TEXT NOT NULL, at TEXT NOT NULL, reason TEXT NOT NULL, change TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS dead_of_sink ON dead (sink, id);
"""
_USAGE = """
SELECT ifnull(namespace, ''), count(*), sum(length(CAST(object AS BLOB)) + 512) FROM changes GROUP BY ifnull(namespace, '')
"""
_LATER = " AND sink IS NULL AND EXISTS (SELECT 1 FROM changes WHERE uid = old.uid AND seq > old.seq AND +sink IS NULL)"
"""Of a row `old`: it is an intermediate state."""
_COLUMNS = "uid, kind, namespace, name, version, at, told, labels, object, queued"


@dataclass(frozen=True, slots=True)
class Limits:
    """What the journal keeps at most."""

    changes: int
    namespace_bytes: int
    """Of a tenant's namespace."""
    seconds: float


@dataclass(frozen=True, slots=True)
class Entity:
    """An object as it was told last."""

    uid: str
    kind: str
    namespace: str | None
    name: str
    version: str
    labels: Mapping[str, str]
    object: str


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a sink is."""

    cursor: int
    """All changes up to this one are done with."""
    delivered: int
    lost: int
    redelivered: str | None


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """Events that were given up."""

    at: str
    reason: str
    change: Change


class InUse(Exception):
    """Another process has this journal."""


class Journal:
    """One journal. Made when it is not there."""

    def __init__(self, directory: Path) -> None:
        """Raises `InUse`, `OSError` or `sqlite3.Error`."""
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock: IO[str] = (directory / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise InUse(f"{directory}: another process has it") from error
        self._db = sqlite3.connect(directory / "journal.sqlite", isolation_level=None, check_same_thread=False)
        # A killed process loses nothing so; a power cut the last moments, of which the API server still knows.
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.executescript(_TABLES)
        if self._db.execute("PRAGMA user_version").fetchone()[0] < FORMAT:
            with self.transaction():
                self._db.execute("DELETE FROM usage")
                self._db.execute(f"INSERT INTO usage {_USAGE}")
        self._db.execute(f"PRAGMA user_version={FORMAT}")

    def close(self) -> None:
        """Close it; others may have it then."""
        self._db.close()
        self._lock.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    # What was noticed

    def position(self, kind: str) -> str | None:
        """Up to which version the kind was watched; None for not at all."""
        row = self._db.execute("SELECT version FROM positions WHERE kind = ?", (kind,)).fetchone()
        return str(row[0]) if row else None

    def move(self, kind: str, version: str) -> None:
        """The kind was watched up to that version."""
        self._db.execute("INSERT OR REPLACE INTO positions VALUES (?, ?)", (kind, version))

    def entity(self, uid: str) -> Entity | None:
        """The object as it was told last."""
        row = self._db.execute(
            "SELECT uid, kind, namespace, name, version, labels, object FROM entities WHERE uid = ?", (uid,)
        ).fetchone()
        if row is None:
            return None
        uid, kind, namespace, name, version, labels, item = row
        return Entity(uid, kind, namespace, name, version, json.loads(labels), item)

    def versions(self, kind: str) -> dict[str, str]:
        """The versions of all objects of the kind that were told, by uid."""
        return dict(self._db.execute("SELECT uid, version FROM entities WHERE kind = ?", (kind,)))

    def put(self, entity: Entity) -> None:
        """The object is told like this."""
        self._db.execute(
            "INSERT OR REPLACE INTO entities VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                entity.uid,
                entity.kind,
                entity.namespace,
                entity.name,
                entity.version,
                json.dumps(entity.labels),
                entity.object,
            ),
        )

    def forget(self, uid: str) -> None:
        """The object is gone."""
        self._db.execute("DELETE FROM entities WHERE uid = ?", (uid,))

    def add(self, change: Change, sink: str | None = None) -> None:
        """A change to be told, to all or to one sink. Its `seq` is the journal's to say."""
        told = json.dumps([[one.verb, one.field, one.before, one.after] for one in change.told])
        self._db.execute(
            f"INSERT INTO changes ({_COLUMNS}, sink) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",  # noqa: S608 - a constant
            (
                change.uid,
                change.kind,
                change.namespace,
                change.name,
                change.version,
                change.at,
                told,
                json.dumps(change.labels),
                change.object,
                time.time(),
                sink,
            ),
        )

    # Who is told

    def last(self) -> int:
        """The last change; 0 when there never was one."""
        row = self._db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'changes'").fetchone()
        return int(row[0]) if row else 0

    def standing(self, sink: str) -> Standing | None:
        """How far a sink is; None for one that is not known."""
        row = self._db.execute(
            "SELECT cursor, delivered, lost, redelivered FROM sinks WHERE uid = ?", (sink,)
        ).fetchone()
        return Standing(*row) if row else None

    def begin(
        self,
        sink: str,
        namespace: str | None,
        *,
        delivered: int = 0,
        lost: int = 0,
        redelivered: str | None = None,
    ) -> None:
        """A sink begins with what comes next; with `namespace` it gets only what is there."""
        self._db.execute(
            "INSERT OR IGNORE INTO sinks VALUES (?, ?, ?, ?, ?, ?)",
            (sink, namespace, self.last(), delivered, lost, redelivered),
        )

    def replay(self, sink: str, at: str, namespace: str | None) -> None:
        """One change for that sink for each object that there is, in `namespace` or anywhere."""
        self._db.execute(
            f"INSERT INTO changes ({_COLUMNS}, sink) SELECT uid, kind, namespace, name, version, ?, ?, labels, object, ?, ?"  # noqa: S608
            " FROM entities WHERE ? IS NULL OR namespace = ? ORDER BY kind, namespace, name",
            (at, json.dumps([[PRESENT, "", None, None]]), time.time(), sink, namespace, namespace),
        )

    def end(self, keep: Iterable[str]) -> None:
        """Only these sinks are there."""
        kept = set(keep)
        for (uid,) in self._db.execute("SELECT uid FROM sinks").fetchall():
            if uid not in kept:
                for table, column in (("sinks", "uid"), ("dead", "sink"), ("changes", "sink")):
                    self._db.execute(f"DELETE FROM {table} WHERE {column} = ?", (uid,))  # noqa: S608 - constants

    def after(self, seq: int, sink: str, namespace: str | None, limit: int) -> list[Change]:
        """The next changes after `seq`, for that sink; with `namespace` only those of objects there."""
        place = "" if namespace is None else " AND namespace = ?"
        # Not by the index of sinks (+): that would read all that waits, and sort it.
        rows = self._db.execute(
            f"SELECT seq, {_COLUMNS} FROM changes WHERE seq > ?{place} AND (+sink IS NULL OR +sink = ?)"  # noqa: S608
            " ORDER BY seq LIMIT ?",
            (seq, *(() if namespace is None else (namespace,)), sink, limit),
        )
        return [_change(row) for row in rows]

    def pending(self, seq: int, sink: str, namespace: str | None) -> int:
        """How many changes come after `seq`, as with `after`."""
        # Of indexes alone: the rows have the objects in them, and are read for nothing else.
        if namespace is None:
            query = (
                "SELECT (SELECT count(*) FROM changes WHERE sink IS NULL AND seq > ?)"
                " + (SELECT count(*) FROM changes WHERE sink = ? AND seq > ?)"
            )
            row = self._db.execute(query, (seq, sink, seq)).fetchone()
        else:
            query = "SELECT count(*) FROM changes WHERE namespace = ? AND seq > ? AND (+sink IS NULL OR +sink = ?)"
            row = self._db.execute(query, (namespace, seq, sink)).fetchone()
        return int(row[0])

    def advance(self, sink: str, cursor: int, delivered: int) -> None:
        """The sink is done with all up to `cursor`, and has taken so many events more."""
        self._db.execute(
            "UPDATE sinks SET cursor = max(cursor, ?), delivered = delivered + ? WHERE uid = ?",
            (cursor, delivered, sink),
        )

    # What was given up

    def bury(self, sink: str, change: Change, reason: str, at: str) -> None:
        """Keep what that sink does not take. The oldest go when there are too many, and are counted as lost."""
        text = json.dumps(asdict(change))
        self._db.execute("INSERT INTO dead (sink, at, reason, change) VALUES (?, ?, ?, ?)", (sink, at, reason, text))
        if (more := self.dead_letters(sink) - DEAD_MOST) > 0:
            self._db.execute(
                "DELETE FROM dead WHERE id IN (SELECT id FROM dead WHERE sink = ? ORDER BY id LIMIT ?)", (sink, more)
            )
            self._db.execute("UPDATE sinks SET lost = lost + ? WHERE uid = ?", (more, sink))

    def dead_letters(self, sink: str) -> int:
        """How many dead letters there are of a sink."""
        return int(self._db.execute("SELECT count(*) FROM dead WHERE sink = ?", (sink,)).fetchone()[0])

    def letters(self, sink: str, limit: int = DEAD_MOST) -> list[DeadLetter]:
        """The dead letters of a sink, the oldest first."""
        rows = self._db.execute("SELECT at, reason, change FROM dead WHERE sink = ? ORDER BY id LIMIT ?", (sink, limit))
        return [DeadLetter(at, reason, _parsed(json.loads(text))) for at, reason, text in rows]

    def last_letter(self, sink: str) -> int:
        """The latest dead letter of a sink, by its number; 0 for none."""
        return int(self._db.execute("SELECT ifnull(max(id), 0) FROM dead WHERE sink = ?", (sink,)).fetchone()[0])

    def redeliver(self, sink: str, *, upto: int, limit: int) -> int:
        """Have the oldest of the sink's dead letters, `limit` of those up to number `upto`, sent once more, after what waits;
        how many. Repeated until it is 0, which many at once would hold up everything for."""
        with self.transaction():
            rows = self._db.execute(
                "SELECT id, change FROM dead WHERE sink = ? AND id <= ? ORDER BY id LIMIT ?", (sink, upto, limit)
            ).fetchall()
            for _, text in rows:
                self.add(_parsed(json.loads(text)), sink)
            self._db.executemany("DELETE FROM dead WHERE id = ?", ((number,) for number, _ in rows))
        return len(rows)

    def redelivered(self, sink: str, request: str) -> None:
        """The sink's dead letters were sent once more, as `request` wanted."""
        with self.transaction():
            self._db.execute("UPDATE sinks SET redelivered = ? WHERE uid = ?", (request, sink))

    # Its size

    def prune(self, limits: Limits, now: float) -> Iterator[int]:
        """Drop what everybody has; what is older than it may be, whoever waits for it; of a namespace with too many bytes
        the oldest, intermediate states first; and while there are too many changes in all, intermediate states of the
        namespaces that have most of them. A bit at a time, so that others have their turn: how many a sink did not have."""
        yield from self._drop_done()
        yield from self._drop(lambda seq: self._older(seq, now - limits.seconds), lambda: True)
        homes = self._db.execute("SELECT namespace FROM usage WHERE bytes > ?", (limits.namespace_bytes,)).fetchall()
        for (home,) in homes:
            if home not in ("", PLATFORM_NAMESPACE):
                for which in (_LATER, ""):
                    yield from self._drop(
                        partial(self._of, home, which), partial(self._greedy, home, limits.namespace_bytes)
                    )
        for (home,) in self._db.execute("SELECT namespace FROM usage ORDER BY changes DESC").fetchall():
            yield from self._drop(partial(self._of, home, _LATER), lambda: self.size() > limits.changes)

    def _drop(self, find: Callable[[int], list[_Place]], goes_on: Callable[[], bool]) -> Iterator[int]:
        """Drop what `find` has after a place, as long as `goes_on`; a bit at a time."""
        seq = 0
        while goes_on() and (gone := find(seq)):
            seq = gone[-1][0]
            with self.transaction():
                self._db.executemany("DELETE FROM changes WHERE seq = ?", ((place[0],) for place in gone))
                for uid, home, cursor in self._db.execute("SELECT uid, namespace, cursor FROM sinks").fetchall():
                    missed = sum(
                        at > cursor and home in (None, namespace) and sink in (None, uid)
                        for at, namespace, sink in gone
                    )
                    if missed:
                        self._db.execute("UPDATE sinks SET lost = lost + ? WHERE uid = ?", (missed, uid))
            yield len(gone)

    def _older(self, seq: int, than: float) -> list[_Place]:
        rows = self._db.execute(
            "SELECT seq, namespace, sink, queued FROM changes WHERE seq > ? ORDER BY seq LIMIT ?", (seq, BIT)
        )
        return [row[:3] for row in takewhile(lambda row: row[3] < than, rows.fetchall())]

    def _of(self, home: str, which: str, seq: int) -> list[_Place]:
        place = "namespace = ?" if home else "namespace IS NULL AND ? = ''"
        return self._db.execute(
            f"SELECT seq, namespace, sink FROM changes AS old WHERE {place} AND seq > ?{which} ORDER BY seq LIMIT ?",  # noqa: S608
            (home, seq, BIT),
        ).fetchall()

    def _greedy(self, home: str, most: int) -> bool:
        row = self._db.execute("SELECT bytes FROM usage WHERE namespace = ?", (home,)).fetchone()
        return row is not None and int(row[0]) > most

    def _drop_done(self) -> Iterator[int]:
        """Drop what everybody has, a bit at a time. What a sink waits for in its namespace keeps nothing of others."""
        everywhere, floors = self.last(), {}
        for namespace, cursor in self._db.execute("SELECT namespace, min(cursor) FROM sinks GROUP BY namespace"):
            if namespace is None:
                everywhere = cursor
            else:
                floors[namespace] = cursor
        for namespace, cursor in floors.items():
            yield from self._drop_where("namespace = ? AND seq <= ?", (namespace, min(cursor, everywhere)))
        marks = ", ".join("?" * len(floors))
        others = f"seq <= ? AND (namespace IS NULL OR namespace NOT IN ({marks}))"
        yield from self._drop_where(others, (everywhere, *floors))

    def _drop_where(self, where: str, values: Sequence[str | int]) -> Iterator[int]:
        """Drop what every sink has already; a bit at a time."""
        # From where the bit before ended: what stays is not looked through again for each.
        seq, dropped = 0, BIT
        while dropped == BIT:
            with self.transaction():
                gone = self._db.execute(
                    f"SELECT seq FROM changes WHERE {where} AND seq > ? ORDER BY seq LIMIT ?",  # noqa: S608 - constants
                    (*values, seq, BIT),
                ).fetchall()
                self._db.executemany("DELETE FROM changes WHERE seq = ?", gone)
            dropped, seq = len(gone), gone[-1][0] if gone else seq
            yield 0

    def size(self) -> int:
        """How many changes are kept."""
        return int(self._db.execute("SELECT ifnull(sum(changes), 0) FROM usage").fetchone()[0])


def _change(row: Sequence[Any]) -> Change:
    seq, uid, kind, namespace, name, version, at, told, labels, item, queued = row
    words = tuple(Told(*one) for one in json.loads(told))
    return Change(seq, uid, kind, namespace, name, version, at, words, item, json.loads(labels), queued)


def _parsed(raw: Mapping[str, Any]) -> Change:
    return Change(**{**raw, "told": tuple(Told(**one) for one in raw["told"])})
