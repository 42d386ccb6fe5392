"""Every async test runs on asyncio, on asyncio with uvloop, and on trio, as far as they are installed."""

from __future__ import annotations

import importlib.util
import inspect
from typing import Any

import pytest

BACKENDS = [pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio")]
if importlib.util.find_spec("uvloop"):
    BACKENDS.append(pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"))
if importlib.util.find_spec("trio"):
    BACKENDS.append(pytest.param(("trio", {}), id="trio"))

ASYNCIO_ONLY = BACKENDS[:-1] if importlib.util.find_spec("trio") else BACKENDS


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
