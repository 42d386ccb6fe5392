"""An application of its own for each test, on SQLite, and on asyncio alone."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from pathlib import Path
from typing import Any

import anyio
import psycopg
import pytest
from sqlalchemy.engine import Engine
from sqlalchemy.event import listen, remove

from conftest import ASYNCIO_ONLY
from rescope.workflow.durable import Durable, _app, _takeover


@pytest.fixture(params=ASYNCIO_ONLY[:1])
def anyio_backend(request: pytest.FixtureRequest) -> object:
    """The engine is at home on asyncio; what differs with uvloop has a test of its own."""
    return request.param


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    """Have the engine, and us, ask more often than is good for a database; and no test waits for a disk."""
    monkeypatch.setattr("dbos._core._PREEMPTIBLE_POLL_INTERVAL_SEC", 0.05, raising=False)
    monkeypatch.setattr(_takeover, "_PICKED_UP_WITHIN", 0.05)
    monkeypatch.setattr(_app, "_ASK_AGAIN", 0.02)
    listen(Engine, "connect", _need_no_disk)
    yield
    remove(Engine, "connect", _need_no_disk)


def _need_no_disk(connection: Any, _: object) -> None:
    if not isinstance(connection, psycopg.Connection):
        connection.execute("PRAGMA synchronous = OFF")


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/jobs.db"


@pytest.fixture
def app(url: str) -> Durable:
    return Durable(url=url, name="shop", recover_every=3600)


async def until(holds: Callable[[], Awaitable[bool] | bool]) -> None:
    """Poll for up to 20 seconds until a condition holds."""
    with anyio.fail_after(20):
        while True:
            answer = holds()
            if answer if isinstance(answer, bool) else await answer:
                return
            await anyio.sleep(0.02)
