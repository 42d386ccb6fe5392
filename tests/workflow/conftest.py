"""Real servers for the stores: one of each for all tests, ended by the process that started them."""

from __future__ import annotations

from collections.abc import Generator

import pytest
from examples.servers import postgres, valkey


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
