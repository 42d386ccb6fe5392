"""How the names and keys of users become keys of a store."""

from __future__ import annotations

import pytest

from rescope.workflow._names import check_user_key, key_in, section
from rescope.workflow.store import check_key


@pytest.mark.parametrize(
    ("key", "error", "message"),
    [
        ("", ValueError, "must not be empty"),
        (b"a", TypeError, "must be a string, not a bytes"),
        ("two\nlines", ValueError, r"control characters or high surrogates, as '\\n' at 3"),
        ("nul\0", ValueError, "control characters"),
        ("half \ud83d", ValueError, "high surrogates"),
        ("x" * 4097, ValueError, "at most 4096 bytes in UTF-8, not 4097"),
        ("\N{SNOWMAN}" * 1366, ValueError, "not 4098"),
    ],
)
def test_what_is_no_key_is_refused(key: object, error: type[Exception], message: str) -> None:
    """The error says what is wrong, and calls it what the user does."""
    with pytest.raises(error, match=f"the id {message}" if "must" in message else message):
        check_user_key(key, "the id")


def test_all_others_get_a_key_of_their_own_that_fits() -> None:
    """Whatever the name, no two keys of users are one in the store, and all are keys for a store."""
    names = ["a", "a/", "a/=b", "1:a", "x" * 200]
    users = ["b", "=b", "~b", "x" * 400, "x" * 4095 + "y", "x" * 4096, "\udcff.csv", "\udcfe.csv"]
    keys = [key_in(section(piece, name), key) for piece in ("p", "q") for name in names for key in users]
    for key in keys:
        check_key(key)
    assert len(set(keys)) == 2 * len(names) * len(users)
