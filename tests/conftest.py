"""Every async test runs on asyncio, on asyncio with uvloop, and on trio, as far as they are installed.

Servers are real: one of each for all tests, ended by the process that started it.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Generator
from typing import Any

import pytest
from examples.servers import postgres, valkey

BACKENDS = [pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio")]
if importlib.util.find_spec("uvloop"):
    BACKENDS.append(pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"))
if importlib.util.find_spec("trio"):
    BACKENDS.append(pytest.param(("trio", {}), id="trio"))

ASYNCIO_ONLY = BACKENDS[:-1] if importlib.util.find_spec("trio") else BACKENDS
TRIO_ONLY = BACKENDS[len(ASYNCIO_ONLY) :]


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makeitem(name: str, obj: object) -> None:
    """Mark every async test, as anyio's `anyio_mode = "auto"` does, which the oldest anyio doesn't have."""
    test = getattr(getattr(obj, "hypothesis", None), "inner_test", obj)
    if inspect.iscoroutinefunction(test) and name.startswith("test_"):
        pytest.mark.anyio(obj)


@pytest.fixture(params=BACKENDS)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """The backend that a test runs on."""
    return request.param


@pytest.fixture(scope="session")
def postgres_url() -> Generator[str]:
    """The URL of a PostgreSQL server."""
    with postgres() as url:
        yield url


@pytest.fixture(scope="session")
def redis_url() -> Generator[str]:
    """The URL of a Valkey server."""
    with valkey() as url:
        yield url
