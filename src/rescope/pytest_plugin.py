"""Fixtures for tests that open things, and a watch on what they leave open."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--rescope-leaks`."""
    parser.getgroup("rescope").addoption("--rescope-leaks", choices=["error", "warn", "off"], default="error")
