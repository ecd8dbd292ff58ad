"""Fuzzing: every broken input ends in a result or one clear error, soon, and writes nothing elsewhere.

`make test` runs CASES of them, always the same ones; `make fuzz` at least 20,000 new ones each time, and prints their
seed (FUZZ_SEED=... repeats them). A test calls `campaign` with a strategy and a function that handles a case.
"""

import base64
import ctypes
import os
import random
import signal
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from asr_lora.runtime.errors import ConfigError, ExternalError

Case = TypeVar("Case")

FEW = 420  # cases of all targets together
CASES = int(os.environ.get("FUZZ_CASES", FEW))
MANY = CASES > FEW
SEED = int(os.environ.get("FUZZ_SEED", random.SystemRandom().randrange(2**32) if MANY else 0))
SHARES = {  # of all cases, by the cost of a case and the number of ways to break it
    "overrides": 0.03, "tables": 0.16, "listings": 0.06, "segments": 0.05, "archives": 0.17, "trees": 0.06,
    "packed": 0.06, "audio": 0.19, "manifests": 0.13, "hypotheses": 0.02, "adapters": 0.07,
}  # fmt: skip
AT_ONCE = 250  # cases of a round: hypothesis keeps all of a round in memory, which is no growth of ours
MOST_SECONDS = 10.0  # of the processor, a case
MOST_GROWTH = 64e6  # bytes resident, from the end of the first tenth of a campaign to its end
LONGEST = 2_000  # characters of an error: a line, even where it quotes a value


@dataclass(frozen=True)
class Campaign:
    """The result of a target's cases."""

    target: str
    cases: int
    refused: int  # cases that ended in an error
    seconds: float
    growth: float  # bytes resident


DONE: list[Campaign] = []  # printed at the end of the session, see conftest.py


class TooLongError(BaseException):
    """Raised when a case hangs. Not an Exception, so that no handler takes it for the case's own."""


def share(target: str) -> int:
    return max(1, -(-CASES * round(SHARES[target] * 100) // 100))


def campaign(target: str, folder: Path, cases: st.SearchStrategy[Case], do: Callable[[Case, Path], object]) -> None:
    """Runs the target's share of cases, each in a new folder below `folder`, and checks the invariant."""
    wanted, tally, began = share(target), {"cases": 0, "refused": 0}, time.perf_counter()
    warm: float | None = None
    for part in range(-(-wanted // AT_ONCE)):

        @seed(SEED + part)
        @settings(
            report_multiple_bugs=True,
            max_examples=min(AT_ONCE, wanted - part * AT_ONCE),
            database=None,
            deadline=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
            print_blob=False,
        )
        @given(cases)
        def each(case: Case) -> None:
            tally["cases"] += 1
            tally["refused"] += _holds(lambda home: do(case, home), folder, tally["cases"])

        each()
        if warm is None and tally["cases"] >= wanted / 10:
            warm = _resident()
    growth = _resident() - (warm or 0.0)
    DONE.append(Campaign(target, tally["cases"], tally["refused"], time.perf_counter() - began, growth))
    if MANY:
        assert growth < MOST_GROWTH, f"{target}: {growth / 1e6:.0f} MB more in memory after {tally['cases']} cases"


def summary() -> list[str]:
    """Returns the results of the session's campaigns, a line each."""
    lines = [
        f"{each.target:<12}{each.cases:>7,} cases, {each.refused:>6,} refused in one line, {each.seconds:6.1f} s, "
        f"{each.growth / 1e6:+.1f} MB"
        for each in DONE
    ]
    return [*lines, f"{sum(each.cases for each in DONE):,} broken inputs, FUZZ_SEED={SEED}"] if DONE else []


def _holds(do: Callable[[Path], object], folder: Path, number: int) -> bool:
    """Runs one case in a separate folder; returns whether it was refused."""
    home = folder / "cases" / str(number) / "deep" / "down"  # a case that climbs out lands beside them
    home.mkdir(parents=True)
    before = _listing(folder, home)
    refused = False
    try:
        with _in_time():
            do(home)
    except (ConfigError, ExternalError) as error:
        refused = True
        _is_clear(str(error))
    assert _listing(folder, home) == before, f"written outside: {_listing(folder, home) ^ before}"
    _remove(folder / "cases")
    return refused


def _is_clear(message: str) -> None:
    """Checks that the message is one line that begins with the name of a setting or file."""
    assert message.isprintable() or "\n" not in message, message
    assert len(message.splitlines()) == 1 and len(message) <= LONGEST, message[:LONGEST]
    name, colon, rule = message.partition(": ")
    assert colon and name.strip() and rule.strip(), message
    message.encode()  # else it could not be printed


def _listing(folder: Path, home: Path) -> set[str]:
    """Lists all files and folders below `folder`, without those below `home`."""
    found = set()
    for parent, folders, files in os.walk(folder):
        if Path(parent) == home:
            folders.clear()
            continue
        found |= {os.path.join(parent, name) for name in [*folders, *files]}  # noqa: PTH118 (thousands of them)
    return found


def _remove(folder: Path) -> None:
    for parent, folders, files in os.walk(folder, topdown=False):
        for name in files:
            Path(parent, name).unlink()
        for name in folders:
            path = Path(parent, name)
            path.unlink() if path.is_symlink() else path.rmdir()


@contextmanager
def _in_time() -> Iterator[None]:
    """Limits a case in CPU seconds, which a busy machine does not lengthen.

    One that sleeps is ended by pytest-timeout.
    """

    def ring(*_: Any) -> None:
        raise TooLongError(f"more than {MOST_SECONDS:g} s")

    before = signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)
    try:
        yield
    except TooLongError as error:
        raise AssertionError(f"a case takes {error}") from error
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _resident() -> float:
    """Returns resident bytes, after free memory was returned to the system."""
    ctypes.CDLL(None).malloc_trim(0)
    return float(psutil.Process().memory_info().rss)


# ---- mutations ----


class Packed(bytes):
    """Bytes that a failing case prints compressed: `unpacked` of the printed text is the file."""

    def __repr__(self) -> str:
        return f"unpacked({base64.b85encode(zlib.compress(self)).decode()!r})"


def unpacked(shown: str) -> bytes:
    return zlib.decompress(base64.b85decode(shown))


SPOT = st.one_of(st.integers(0, 63), st.integers(0, 2**16))  # a place, modulo the length: headers most of all
PIECES = [
    b"", b"\0", b"\n", b"\r\n", b"\t", b"\"", b"\\", b"{", b"[" * 3000, b"\xff\xfe", b"\xed\xa0\x80", b"\xef\xbb\xbf",
    b"NaN", b"-1", b"1e999", b"9" * 5000, b"null", b"\xff" * 8, b"\0" * 512, b"../../../../x", b"\xe2\x80\xa8",
]  # fmt: skip
EDITS = st.lists(
    st.one_of(
        st.tuples(st.just("flip"), SPOT, st.integers(0, 7)),
        st.tuples(st.just("set"), SPOT, st.integers(0, 255)),
        st.tuples(st.just("cut"), SPOT, SPOT),
        st.tuples(st.just("end"), SPOT, st.just(0)),
        st.tuples(st.just("copy"), SPOT, SPOT),
        st.tuples(st.just("put"), SPOT, st.sampled_from(PIECES)),
    ),
    min_size=1,
    max_size=6,
)


def edited(content: bytes, edits: list[tuple[str, int, Any]]) -> bytes:
    """Returns the bytes with some flipped, cut out, repeated elsewhere, or inserted."""
    made = bytearray(content)
    for kind, at, how in edits:
        spot = at % (len(made) + 1)
        if kind == "flip" and spot < len(made):
            made[spot] ^= 1 << how
        elif kind == "set" and spot < len(made):
            made[spot] = how
        elif kind == "cut":
            del made[spot : spot + how % 4096]
        elif kind == "end":
            del made[spot:]
        elif kind == "copy":
            other = how % (len(made) + 1)
            made[spot:spot] = made[other : other + 256]
        elif kind == "put":
            made[spot:spot] = how
    return bytes(made)


WORDS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["", " ", "\0", "null", "NaN", "-0", "../x", "/etc/passwd", "\u2028", "é" * 300, "<b>", "${x}", "~"]
    ),
)
NUMBERS = st.sampled_from(
    [0, -1, 1, 0.0, -0.0, 1e-320, 1e308, float("nan"), float("inf"), 2**31, 2**63, 2**64, 10**400, True, 30.1, 0.4]
)  # fmt: skip
VALUES = st.one_of(  # all that JSON can hold
    st.none(), NUMBERS, WORDS, st.just("\ud800"), st.just([]), st.just({}), st.lists(NUMBERS, max_size=3),
    st.dictionaries(st.sampled_from(["id", "path", "x"]), NUMBERS, max_size=2),
)  # fmt: skip
CHANGES = st.lists(
    st.tuples(st.sampled_from(["put", "drop", "swap", "whole"]), SPOT, SPOT, VALUES), min_size=1, max_size=4
)


def changed(value: dict[str, Any], changes: list[tuple[str, int, int, Any]]) -> Any:
    """Returns a JSON object with changed, absent or exchanged fields; rarely another value."""
    made = dict(value)
    for kind, one, two, new in changes:
        names = list(made)
        if not names:
            break
        first, second = names[one % len(names)], names[two % len(names)]
        if kind == "put":
            made[first] = new
        elif kind == "drop":
            del made[first]
        elif kind == "swap":
            made[first], made[second] = made[second], made[first]
        elif one % 4 == 0:
            return new
    return made
