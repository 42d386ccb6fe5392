"""Every async test runs on asyncio, on asyncio with uvloop, and on trio, as far as they are installed."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

BACKENDS = [pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio")]
if importlib.util.find_spec("uvloop"):
    BACKENDS.append(pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"))
if importlib.util.find_spec("trio"):
    BACKENDS.append(pytest.param(("trio", {}), id="trio"))

ASYNCIO_ONLY = BACKENDS[:-1] if importlib.util.find_spec("trio") else BACKENDS


@pytest.fixture(params=BACKENDS)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """The backend that a test runs on."""
    return request.param
