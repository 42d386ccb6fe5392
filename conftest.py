"""Runs every Python snippet of the README and the docs, page by page, from top to bottom; what all tests need."""

from __future__ import annotations

import gc
import signal

import pytest
from hypothesis import given
from hypothesis.strategies import none
from sybil import Sybil
from sybil.parsers.myst import PythonCodeBlockParser, SkipParser

pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(), SkipParser()], patterns=["README.md", "docs/*.md", "docs/*/*.md"]
).pytest()

# A shell lets what it starts in the background ignore interrupts; some tests send themselves one.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """Let Hypothesis find out who refers to its generators: once they are frozen, it would not."""
    given(none())(lambda _: None)()


@pytest.fixture(scope="module", autouse=True)
def _freeze() -> None:
    """Keep what is there already, as all the other tests, out of the collections of garbage: some tests do many."""
    gc.collect()
    gc.freeze()
