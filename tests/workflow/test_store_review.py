"""What a review of the stores has found: phrases of the port, read as those who break things read them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from threading import Event

import anyio
import pytest
from anyio import to_thread

from conftest import ASYNCIO_ONLY
from rescope.workflow import SqliteStore, StoreClosedError

asyncio_only = pytest.mark.parametrize("anyio_backend", ASYNCIO_ONLY, indirect=True)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a database is."""
    return tmp_path / "store.db"


async def until(holds: Callable[[], bool]) -> None:
    """Wait for what another thread does."""
    with anyio.fail_after(10):
        while not holds():  # noqa: ASYNC110
            await anyio.sleep(0.001)


# SqliteStore: closing, where `task.cancel()` cuts off the waiting


@asyncio_only
@pytest.mark.parametrize("turns", range(1, 9))
async def test_a_file_is_closed_though_its_close_is_cut_off(path: Path, turns: int) -> None:
    """Wherever a `task.cancel()` meets it, the connection does not stay open, and the close is cancelled."""
    store = SqliteStore(path)
    await store.put("key", 1)
    closing = asyncio.create_task(store.aclose())
    for _ in range(turns):
        await asyncio.sleep(0)
    cut_off = closing.cancel()
    if cut_off:
        with pytest.raises(asyncio.CancelledError):
            await closing
    await until(lambda: not path.with_name("store.db-wal").exists())  # the last to close takes the log away

    assert store._connection is None


@asyncio_only
async def test_a_file_is_closed_though_its_close_waited_for_another_call(path: Path) -> None:
    """Who closes waits for what is under way; where that is cut off, it is closed all the same when that is done."""
    began, go_on = Event(), Event()

    def clock() -> float:
        began.set()
        assert go_on.wait(10)
        return 1000.0

    store = SqliteStore(path, clock=clock)
    putting = asyncio.create_task(store.put("key", 1))
    await to_thread.run_sync(began.wait)
    closing = asyncio.create_task(store.aclose())
    await anyio.wait_all_tasks_blocked()
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    go_on.set()

    assert await putting == 1
    await until(lambda: store._connection is None)


@asyncio_only
@pytest.mark.parametrize("turns", range(1, 12))
async def test_a_file_is_closed_though_its_opening_is_cut_off(path: Path, turns: int) -> None:
    """Who was not let in does not exit, so nobody else would close it."""
    store = SqliteStore(path)

    async def use() -> None:
        async with store:
            await anyio.sleep_forever()

    using = asyncio.create_task(use())
    for _ in range(turns):
        await asyncio.sleep(0)
    using.cancel()
    with pytest.raises(asyncio.CancelledError):
        await using
    await until(lambda: store._connection is None and not store._lock.locked())

    with pytest.raises(StoreClosedError):
        await store.get("key")
