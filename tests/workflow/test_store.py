"""The port of all stores, and the contract: what it asks of a store, and that it catches those that don't keep it."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio.lowlevel
import pytest

import rescope.workflow
from rescope.testing import StoreContractError, _store_cut, _store_race, store_contract
from rescope.workflow import (
    BatchStore,
    Entry,
    MemoryStore,
    SqliteStore,
    Store,
    StoreClosedError,
    StoreError,
    VersionConflictError,
)
from rescope.workflow.store import (
    Scan,
    check_if_version,
    check_key,
    check_prefix,
    check_ttl,
    decode,
    encode,
    prefix_end,
)
from running import every_backend
from workflow import broken_stores
from workflow.broken_stores import Clock, Connection, Good, OverNetwork

PLAIN = [check for check in store_contract.checks if check.needs is None]
BETWEEN_PROCESSES = [check for check in store_contract.checks if check.needs == "processes"]
CUT = [check for check in store_contract.checks if check.needs == "cut"]
BY_NAME = {check.name: check for check in store_contract.checks}


class Opener:
    """Opens the same store each time."""

    def __init__(self, kind: type[Any] = Good) -> None:
        self.clock = Clock()
        self.inner = MemoryStore(clock=self.clock)
        self.store = kind(self.inner)

    @asynccontextmanager
    async def __call__(self) -> AsyncIterator[Any]:
        yield self.store


# Entries and errors


def test_an_entry_does_not_show_its_value() -> None:
    """A value may hold a password."""
    assert "hunter2" not in repr(Entry("key", "hunter2", 1))


def test_an_entry_is_frozen_and_slotted() -> None:
    """What a reader holds doesn't change."""
    entry = Entry("key", 1, 1)
    with pytest.raises(AttributeError):
        entry.version = 2  # type: ignore[misc]

    assert not hasattr(entry, "__dict__")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (VersionConflictError("key", 0, 7), "'key': expected no entry, found version 7: get it and decide again"),
        (VersionConflictError("key", 7, 0), "'key': expected version 7, found none: get it and decide again"),
    ],
)
def test_a_conflict_says_what_was_expected_and_found(error: VersionConflictError, message: str) -> None:
    """The key and the versions are all that it shows."""
    assert str(error) == message


def test_errors_can_be_pickled() -> None:
    """They may come from another process, and keep what they know."""
    conflict = pickle.loads(pickle.dumps(VersionConflictError("key", 1, 2)))  # noqa: S301
    error = pickle.loads(pickle.dumps(StoreError("busy", may_retry=True)))  # noqa: S301

    assert (conflict.key, conflict.expected, conflict.found) == ("key", 1, 2)
    assert (str(error), error.may_retry) == ("busy", True)


def test_a_closed_store_is_an_error_of_the_store_that_may_not_be_retried() -> None:
    """Who handles what a store fails with handles that too."""
    error = StoreClosedError("closed")

    assert isinstance(error, StoreError)
    assert not error.may_retry


# Checking and writing


@pytest.mark.parametrize("key", ["a", "é" * 256, "\ud7ff", "\ue000", "\U0010ffff", " ", "\xa0"])
def test_keys_are_any_text_of_512_bytes(key: str) -> None:
    """What is no control character and no lone surrogate is fine."""
    assert check_key(key) is None


@pytest.mark.parametrize(
    ("key", "error", "message"),
    [
        (b"a", TypeError, "a key must be a string, not a bytes"),
        ("", ValueError, "a key must not be empty"),
        ("a\tb", ValueError, r"a key must not hold control characters or lone surrogates, as '\t' at 1"),
        ("\udfff", ValueError, r"a key must not hold control characters or lone surrogates, as '\udfff' at 0"),
        ("é" * 257, ValueError, "a key must be at most 512 bytes in UTF-8, not 514"),
    ],
)
def test_a_bad_key_is_told_what_is_wrong_with_it(key: Any, error: type[Exception], message: str) -> None:
    """The error names the mend."""
    with pytest.raises(error) as caught:
        check_key(key)

    assert str(caught.value) == message


def test_a_prefix_may_be_empty_and_is_else_as_a_key() -> None:
    """All keys begin with the empty one."""
    with pytest.raises(ValueError, match="a prefix must not hold control characters"):
        check_prefix("\n")

    assert check_prefix("") is None


@pytest.mark.parametrize("ttl", [None, 1, 0.001, 1e10])
def test_a_time_to_live_is_a_number_of_seconds(ttl: float | None) -> None:
    """None is for ever."""
    assert check_ttl(ttl) is None


@pytest.mark.parametrize("ttl", [0, -1, float("nan"), float("inf"), 1e11, 10**400])
def test_a_time_to_live_that_can_not_be_is_refused(ttl: float) -> None:
    """What does not expire has none."""
    with pytest.raises(ValueError, match="leave it out for what stays") as caught:
        check_ttl(ttl)

    assert str(caught.value).startswith("`ttl` must be more than 0 and at most 1e+10 s, not ")


@pytest.mark.parametrize("wrong", [True, "1"])
def test_numbers_are_no_bools_and_no_text(wrong: Any) -> None:
    """A flag in the wrong place is seen."""
    with pytest.raises(TypeError, match="`ttl` must be a number of seconds, or None, not a"):
        check_ttl(wrong)
    with pytest.raises(TypeError, match="`if_version` must be the version of an entry, not a"):
        check_if_version(wrong)

    assert check_if_version(None) is None


def test_an_expected_version_is_one_that_can_be() -> None:
    """To delete what is not there makes no sense."""
    with pytest.raises(ValueError, match="at least 1, not 0"):
        check_if_version(0, least=1)

    assert check_if_version(0) is None


def test_values_are_written_in_ascii() -> None:
    """Any store can hold that, also what is no good UTF-8."""
    assert encode("key", ["é", "\ud800", (1, 2)]) == r'["\u00e9","\ud800",[1,2]]'


def test_what_is_no_json_is_told_by_type_alone() -> None:
    """The error names the key, and shows no value."""
    with pytest.raises(TypeError) as caught:
        encode("key", {"password": {"hunter2"}})

    assert str(caught.value) == "the value for 'key' is not JSON: Object of type set is not JSON serializable"
    assert caught.value.__cause__ is None


def test_what_is_nested_too_deep_to_be_read_is_told() -> None:
    """Python's versions differ in how deep they can go."""
    with pytest.raises(StoreError) as caught:
        decode("key", "[" * 200_000)

    assert str(caught.value) == "what the store holds under 'key' is nested too deep for this Python to read"


@pytest.mark.parametrize("text", ["hunter2", b"\xff"])
def test_what_the_store_holds_that_is_no_json_is_told(text: str | bytes) -> None:
    """Somebody else has written under that key."""
    with pytest.raises(StoreError) as caught:
        decode("key", text)

    assert str(caught.value) == "what the store holds under 'key' is not JSON: something other than rescope wrote it"


@pytest.mark.parametrize(
    ("prefix", "end"),
    [("", None), ("a", "b"), ("ab", "ac"), ("\ud7ff", "\ue000"), ("a\U0010ffff", "b"), ("\U0010ffff", None)],
)
def test_the_end_of_a_prefix_is_the_first_text_after_it(prefix: str, end: str | None) -> None:
    """It is a text too, without surrogates."""
    assert prefix_end(prefix) == end


async def test_a_scan_asks_for_pages_as_they_are_needed() -> None:
    """Each page begins after the last key that was given; an empty one is the end, and stays it."""
    asked: list[str] = []
    pages = [[Entry("a", 1, 1), Entry("b", 1, 2)], [Entry("c", 1, 3)], []]

    async def page(after: str) -> list[Entry]:
        asked.append(after)
        return pages[len(asked) - 1]

    scan = Scan(page)

    assert [entry.key async for entry in scan] == ["a", "b", "c"]
    assert [entry.key async for entry in scan] == []
    assert asked == ["", "b", "c"]


def test_stores_are_told_by_what_they_can() -> None:
    """The protocols can be asked for when the program runs."""
    assert isinstance(MemoryStore(), BatchStore)
    assert isinstance(Good(MemoryStore()), Store)
    assert not isinstance(Good(MemoryStore()), BatchStore)


# The package


def test_importing_the_package_needs_no_extra() -> None:
    """Clients of databases are imported by who uses them."""
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['asyncpg', 'redis', 'opentelemetry'])); import rescope.workflow;"
        "print([name for name in ('anyio', 'trio') if name in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)  # noqa: S603

    assert (run.stdout, run.stderr) == ("[]\n", "")


def test_every_public_name_is_there() -> None:
    """Also those that are imported late."""
    found = [name for name in rescope.workflow.__all__ if hasattr(rescope.workflow, name)]

    assert found == rescope.workflow.__all__


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    """As in any module."""
    with pytest.raises(AttributeError, match=r"module 'rescope.workflow' has no attribute 'Stroe'"):
        rescope.workflow.Stroe  # noqa: B018

    assert not hasattr(rescope.workflow, "stroe")


# The contract


async def test_the_contract_holds_for_a_store_that_keeps_it() -> None:
    """It gives the number of checks that were made, and takes a store without `put_many` too."""
    opener = Opener()

    assert await store_contract(opener, advance=opener.clock.advance) == len(PLAIN)


async def test_the_contract_leaves_nothing_behind() -> None:
    """It may run on a store that is in use."""
    opener = Opener()
    await opener.inner.put("mine", 1)
    await store_contract(opener, advance=opener.clock.advance)

    assert [entry.key async for entry in opener.inner.scan("")] == ["mine"]


async def test_a_clock_may_be_advanced_by_an_async_function() -> None:
    """That of a server, say."""
    opener = Opener()

    async def advance(seconds: float) -> None:
        await anyio.lowlevel.checkpoint()
        opener.clock.advance(seconds)

    await BY_NAME["each put sets the time anew"](opener, advance=advance)

    assert opener.clock.now > 1000


BROKEN = {
    "Forgets": "get gives what was put, and None where nothing was",
    "StripsNulls": "values come back as JSON has them",
    "SharesValues": "what comes back is a copy of the reader's own",
    "TakesAnything": "what is no JSON is refused, and nothing is written",
    "RefusesTooLate": "what is no JSON is refused, and nothing is written",
    "ShowsValues": "what is no JSON is refused, and nothing is written",
    "TakesAnyKey": "bad keys are refused by every method",
    "TakesAnyTime": "bad options are refused, and nothing is written",
    "FoldsCase": "keys are told apart by every character",
    "CountsEachKey": "versions only grow",
    "IgnoresIfVersion": "if_version writes only over that version",
    "AlwaysDeletes": "delete tells whether there was an entry",
    "NeverExpires": "an entry whose time has come is not there",
    "TellsMilliseconds": "expires_at is in epoch seconds, by one clock",
    "TellsWholeSeconds": "expires_at is in epoch seconds, by one clock",
    "KeepsTheTime": "each put sets the time anew",
    "Sorts": "a scan gives the keys with that prefix, in the order of code points",
    "ScansByPattern": "a scan gives the keys with that prefix, in the order of code points",
    "ScansByOffset": "a scan of many gives each once, whatever changes meanwhile",
    "PutsOneByOne": "put_many, where there is one, writes all or none",
    "LooksThenWrites": "of tasks that race, one wins",
    "LooksThenDeletes": "of tasks that race, one wins",
    "WritesByHalves": "a put that is cancelled is done as a whole or not at all",
    "DeletesWhatBeginsWithIt": "keys are told apart by every character",
    "ForgetsTheTimeOfASwap": "an entry whose time has come is not there",
    "RenewsWhatIsRead": "each put sets the time anew",
    "HasOneCursor": "a scan of many gives each once, whatever changes meanwhile",
    "PutsManyAndKeepsTheTime": "put_many, where there is one, writes all or none",
    "DeletesWhatCameAfter": "of tasks that race, one wins",
    "PutsManyInTurn": "a put that is cancelled is done as a whole or not at all",
}


@pytest.mark.parametrize(("kind", "name"), BROKEN.items())
async def test_the_contract_catches_a_store_that_breaks_it(kind: str, name: str) -> None:
    """The check that is named after the promise fails, in words and not by accident."""
    opener = Opener(getattr(broken_stores, kind))
    with pytest.raises(AssertionError) as caught:
        await BY_NAME[name](opener, advance=opener.clock.advance)

    assert type(caught.value) is AssertionError
    assert "hunter2" not in str(caught.value)


def test_every_check_catches_a_broken_store() -> None:
    """One that never fails would prove nothing; two of them have tests of their own."""
    own = {"all who open the store see the same data", "a stale writer never wins"}

    assert {check.name for check in PLAIN} - set(BROKEN.values()) == own


async def test_the_contract_catches_a_store_whose_openers_share_nothing() -> None:
    """A store is what several share."""

    @asynccontextmanager
    async def open_store() -> AsyncIterator[MemoryStore]:
        yield MemoryStore()

    with pytest.raises(AssertionError, match="what one has put another does not see"):
        await BY_NAME["all who open the store see the same data"](open_store)


async def test_the_contract_catches_a_store_that_keeps_what_it_has_read() -> None:
    """What somebody else has put since is not seen."""
    inner = MemoryStore()

    @asynccontextmanager
    async def open_store() -> AsyncIterator[Good]:
        yield broken_stores.KeepsWhatItHasRead(inner)

    with pytest.raises(AssertionError, match=r"^the conflict tells"):
        await BY_NAME["all who open the store see the same data"](open_store)


async def test_the_contract_catches_a_store_in_which_a_stale_writer_wins() -> None:
    """Versions that begin anew are met again."""
    opener = Opener(broken_stores.CountsEachKey)

    with pytest.raises(AssertionError, match="a put with if_version=1 is done where the version is 1"):
        await BY_NAME["a stale writer never wins"](opener)


async def test_the_contract_names_each_check_that_fails() -> None:
    """One error for all, and what each has raised."""
    opener = Opener(broken_stores.Sorts)
    with pytest.raises(StoreContractError) as caught:
        await store_contract(opener, advance=opener.clock.advance)
    failures = caught.value.failures

    assert list(failures) == [BROKEN["Sorts"]]
    assert str(caught.value) == (
        f"the store fails 1 of {len(PLAIN)} checks of the contract:"
        f"\n- {BROKEN['Sorts']}: a scan is not in the order of code points"
    )


async def test_a_store_that_hangs_fails_in_time() -> None:
    """Each check is bounded, and the failure tells that it was time."""
    opener = Opener(broken_stores.Hangs)
    with pytest.raises(StoreContractError, match=r"fails .*\n- get gives what was put.*: TimeoutError"):
        await store_contract(opener, advance=opener.clock.advance, timeout=0.01)

    assert issubclass(StoreContractError, AssertionError)


async def test_what_gives_no_store_is_told() -> None:
    """At once, or where it is opened."""
    with pytest.raises(TypeError, match="`open_store` must be a function that gives a store, or a store, not a str"):
        await store_contract("store")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="`open_store` gives no store, but a list"):
        await PLAIN[0](list)  # type: ignore[arg-type]

    assert repr(store_contract) == "<store_contract>"


@pytest.mark.parametrize("given", ["store", "function", "async function"])
async def test_what_needs_no_opening_need_not_be_opened(given: str) -> None:
    """A store that owns nothing, as one in memory or on a pool of yours, is taken as it is."""
    store = MemoryStore()

    async def open_store() -> MemoryStore:
        await anyio.lowlevel.checkpoint()
        return store

    await PLAIN[0]({"store": store, "function": lambda: store, "async function": open_store}[given])

    assert await store.put("key", 1) > 1


@pytest.mark.parametrize("check", [*BETWEEN_PROCESSES, *CUT], ids=str)
async def test_a_check_that_lacks_what_it_needs_is_told(check: Any) -> None:
    """It does not pass for one that was made."""
    with pytest.raises(ValueError, match=rf"the check .* needs `{check.needs}`"):
        await check(Opener())

    assert str(check) == check.name


# Between processes


async def test_the_contract_catches_a_store_that_loses_updates_between_processes(tmp_path: Path) -> None:
    """To look and then write is no compare-and-set."""
    check = BY_NAME["of processes that race, one wins"]

    with pytest.raises(AssertionError, match="lost where processes race"):
        for _ in range(5):  # a race may be won by chance
            await check(partial(broken_stores.unlocked, tmp_path / "store.db"), processes=4)


async def test_the_contract_catches_a_store_that_writes_by_halves(tmp_path: Path) -> None:
    """A process that is killed in between leaves one."""
    check = BY_NAME["a process that is killed leaves all or nothing"]

    with pytest.raises(AssertionError, match="leaves a value half-written"):
        for _ in range(5):
            await check(partial(broken_stores.by_halves, tmp_path / "store.db"), processes=1)


async def test_the_contract_catches_a_store_that_puts_many_in_turn(tmp_path: Path) -> None:
    """A process that is killed in between leaves a part of them."""
    check = BY_NAME["a process that is killed leaves all or nothing"]

    with pytest.raises(AssertionError, match="leaves a part of a put_many"):
        for _ in range(5):
            await check(partial(broken_stores.in_turn, tmp_path / "store.db"), processes=1)


async def test_a_process_that_fails_is_told(tmp_path: Path) -> None:
    """With what it said last."""
    check = BY_NAME["of processes that race, one wins"]

    with pytest.raises(AssertionError) as caught:
        await check(partial(broken_stores.fails_elsewhere, tmp_path / "store.db", os.getpid()), processes=1)

    assert str(caught.value) == "a process fails: ConnectionError: no such host"


async def test_what_can_not_be_taken_to_a_process_is_told() -> None:
    """Something local can't."""
    with pytest.raises(TypeError, match="`open_store` can't be taken to a process"):
        await BY_NAME["a process that is killed leaves all or nothing"](lambda: Opener()(), processes=1)  # noqa: PLW0108 (it must be local)

    assert BETWEEN_PROCESSES


class Says:
    """What a process has for its standard input."""

    def __init__(self, order: object) -> None:
        self.buffer = io.BytesIO(pickle.dumps(order))


@every_backend
def test_a_process_races_until_it_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], backend: str
) -> None:
    """It tells what it has won, on the backend of who has started it."""
    open_store = partial(broken_stores.comes_late, tmp_path / "store.db")
    order = _store_race._Order(_store_race._race, open_store, "contract:", 0, 1, backend)
    monkeypatch.setattr(sys, "stdin", Says(order))
    _store_race.child()
    versions, made, taken = json.loads(capsys.readouterr().out)

    assert versions == sorted(versions)
    assert (len(versions), made, taken) == (25, list(range(25)), [3])


@pytest.mark.parametrize("kind", [broken_stores.FailsSoon, broken_stores.FailsSoonAtMany])
def test_a_process_that_is_to_be_killed_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: type[broken_stores.FailsSoon]
) -> None:
    """It tells when it has begun, once."""
    open_store = partial(broken_stores.fails_soon, 3, kind)
    order = _store_race._Order(_store_race._write_for_ever, open_store, "contract:", 0, 1, "asyncio")
    monkeypatch.setattr(sys, "stdin", Says(order))
    with pytest.raises(ConnectionError):
        _store_race.child()

    assert capsys.readouterr().out == "writing\n"


async def test_what_a_killed_process_has_put_must_be_there(tmp_path: Path) -> None:
    """A store that is in the memory of a process is none that processes share."""
    check = BY_NAME["a process that is killed leaves all or nothing"]

    with pytest.raises(AssertionError, match="an entry that was put is not there"):
        await check(partial(SqliteStore, ":memory:"), processes=1)


# Cut connections


@pytest.fixture
def connection() -> Connection:
    """A connection that can be cut."""
    return Connection()


@pytest.mark.parametrize("check", CUT, ids=str)
async def test_the_contract_holds_for_a_store_whose_connection_is_cut(check: Any, connection: Connection) -> None:
    """It fails in the right way, and is there again."""
    await check(partial(connection.open, OverNetwork), cut=connection.cut)

    assert connection.cuts == _store_cut._CUTS


async def test_connections_may_be_cut_by_an_async_function(connection: Connection) -> None:
    """The whole contract takes it too."""

    async def cut() -> None:
        await anyio.lowlevel.checkpoint()
        connection.cut()

    for check in CUT:
        await check(partial(connection.open, OverNetwork), cut=cut)

    assert connection.cuts == len(CUT) * _store_cut._CUTS


@pytest.mark.parametrize(
    ("kind", "check", "message"),
    [
        ("LetsTheClientsErrorOut", 0, "told as ConnectionResetError, and not as StoreError"),
        ("AlwaysSaysRetry", 1, "the error says that a put may be retried, but it was done"),
        ("NeverSaysRetry", 2, "a get that was cut may not be retried, though it does no harm"),
        ("NeverComesBack", 0, "the store is not there again after a cut"),
        ("AnswersTooSoon", 0, "a put that ended well is lost with the connection"),
        ("AnswersTooSoon", 1, "a put that ended well is lost with the connection"),
        ("WritesHalfOfIt", 0, "a put that was cut leaves something else than the value before or after it"),
        ("WritesHalfOfIt", 1, "a put that was cut leaves something else than the value before or after it"),
        ("GivesUpHalfway", 2, "a get that was cut gives something else than the entry"),
    ],
)
async def test_the_contract_catches_a_store_that_fails_in_the_wrong_way(
    connection: Connection, kind: str, check: int, message: str
) -> None:
    """A wrong answer about what was done is worse than none."""
    with pytest.raises(AssertionError, match=message):
        await CUT[check](partial(connection.open, getattr(broken_stores, kind)), cut=connection.cut)

    assert connection.cuts
