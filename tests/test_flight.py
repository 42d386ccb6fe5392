"""What is in flight: how one exception is known to be made of another, and how contexts are mended."""

from __future__ import annotations

from rescope._flight import carries, chain, cut_context, without


def test_carries_sees_through_groups_and_causes_and_repetitions() -> None:
    """One that stands in a group twice, by itself and as a cause, is found, and a stranger is not."""
    old, other = ValueError(), OSError()
    other.__cause__ = old
    group = ExceptionGroup("", [other, old, ExceptionGroup("", [other])])

    assert (carries(group, old), carries(group, KeyError())) == (True, False)


def test_without_leaves_what_is_new() -> None:
    """What is made of the old goes, and the rest stays."""
    old, new = ValueError(), OSError()

    assert without(old, old) is None
    assert without(new, old) is new
    assert without(ExceptionGroup("", [old]), old) is None
    rest = without(ExceptionGroup("", [old, new]), old)
    assert isinstance(rest, ExceptionGroup)
    assert rest.exceptions == (new,)


def test_cut_context_ends_the_chain_where_the_suppressed_one_stands() -> None:
    """What was handled around the body takes its place."""
    new, between, suppressed, outer = OSError(), KeyError(), ValueError(), TypeError()
    new.__context__, between.__context__ = between, suppressed
    cut_context(new, suppressed, outer)

    assert (new.__context__, between.__context__) == (between, outer)


def test_cut_context_leaves_a_chain_alone_that_knows_nothing_of_it() -> None:
    """With an end, or with a circle that somebody made."""
    new, other = OSError(), KeyError()
    new.__context__ = other
    cut_context(new, ValueError(), None)
    other.__context__ = new
    cut_context(new, ValueError(), None)

    assert (new.__context__, other.__context__) == (other, new)


def test_chain_makes_no_circle() -> None:
    """An exception that stands in the context's own chain is not chained to it."""
    first, second = OSError(), KeyError()
    second.__context__ = first
    chain(first, second)

    assert first.__context__ is None
