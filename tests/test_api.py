"""What users build on: its names and signatures change on purpose only."""

from __future__ import annotations

import pytest

from public_api import IMPLIED, WRITTEN, describe, parse, public_modules


@pytest.mark.parametrize("title", [*public_modules(), IMPLIED])
def test_what_is_public_is_what_is_written_down(title: str) -> None:
    """A change to it is seen; where it is meant, `python -m tests.public_api` writes it down."""
    written = parse(WRITTEN.read_text(encoding="utf-8"))

    assert describe()[title] == written.get(title)


def test_nothing_is_written_down_that_is_gone() -> None:
    """A public module that disappears is seen too."""
    written = parse(WRITTEN.read_text(encoding="utf-8"))

    assert set(written) == {*public_modules(), IMPLIED}
