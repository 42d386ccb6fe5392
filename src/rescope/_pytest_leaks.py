"""The watch on what tests leave open.

It knows scopes weakly, and nothing of what they hold: what a test means to be collected is collected. It keeps who made
a scope. What a fixture of a module or session made is judged with the test after which that fixture is finished; what
was made on import, never; all else, when the test and its fixtures are finished. A scope inside another one is judged
with the outermost: what a test adds to the scope of its session is not lost.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections import Counter
from functools import wraps
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import pytest

from rescope._describe import handles_of
from rescope._registry import Registry
from rescope._trace import Trace, site_of

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator
    from pathlib import Path

    from rescope._resource import Resource
    from rescope._scope import Scope
    from rescope._trace import Watcher

MODES = ("error", "warn", "off")
_IMPORT = "import"


class LeakWatch:
    """A plugin that fails each test which leaves something open, or warns of it."""

    def __init__(self, mode: str, directory: Path) -> None:
        self._mode = mode
        self._directory = f"{directory}{os.sep}"
        self._maker: object = _IMPORT
        self._lasting: set[object] = {_IMPORT}
        self._made: WeakKeyDictionary[Any, object] = WeakKeyDictionary()
        self._dropped: list[str] = []
        self._told: set[Resource[Any]] = set()
        self._filters: object = warnings.filters
        self._patch = pytest.MonkeyPatch()

    def start(self) -> None:
        """Learn of what is made from now on. Nothing in the core asks for a watch on that, so that it stays quick."""
        make = Registry.__init__

        @wraps(make)
        def made(scope: Registry, *args: Any, **kwargs: Any) -> None:
            make(scope, *args, **kwargs)
            self._made[scope] = _IMPORT if _importing() else self._maker

        self._patch.setattr(Registry, "__init__", made)
        watcher: Watcher = self
        self._patch.setattr(Trace, "watcher", watcher)
        self._patch.setattr(Trace, "on", True)

    def pytest_unconfigure(self) -> None:
        """Leave the core as it was."""
        self._patch.undo()

    def dropped(self, label: str, handles: Iterable[Resource[Any]], /) -> None:
        """Keep the names of what a scope held that is gone, unless the test looks at warnings: then it was told."""
        lost = [handle for handle in handles if not _holds_more(handle)]
        if warnings.filters is self._filters:
            self._dropped += [self._line(handle, label) for handle in lost if handle not in self._told]
        self._told.difference_update(lost)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Take what is made now as made by this test. The watch tells what is dropped, so that it is told once."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "scope.* was dropped without being closed", ResourceWarning)
            self._maker = item
            try:
                return (yield)
            finally:
                self._maker = _IMPORT

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None, object, object]:
        """Note the filters of this phase: a test that looks at warnings replaces them."""
        __tracebackhide__ = True
        self._filters = warnings.filters
        result = yield
        self._check_mode(item)
        return result

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, object, object]:
        """Note the filters of this phase; those of `recwarn`, which lets the test look at warnings, stand already."""
        __tracebackhide__ = True
        self._filters = None if "recwarn" in getattr(item, "fixturenames", ()) else warnings.filters
        return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, object, object]:
        """Tell what is open when all fixtures of the test are finished."""
        __tracebackhide__ = True
        self._filters = warnings.filters
        try:
            result = yield
        except BaseException as exc:
            if message := self._message(item):
                exc.add_note(message)
            raise
        if message := self._message(item):
            self._tell(item, message)
        return result

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any]) -> Generator[None, object, object]:
        """Take what a fixture makes that outlasts the test as its own."""
        __tracebackhide__ = True
        if fixturedef.scope == "function":
            return (yield)
        maker, self._maker = self._maker, fixturedef
        self._lasting.add(fixturedef)
        try:
            return (yield)
        finally:
            self._maker = maker

    def pytest_fixture_post_finalizer(self, fixturedef: pytest.FixtureDef[Any]) -> None:
        """From now on, what it has made is no longer its own."""
        self._lasting.discard(fixturedef)

    def _mode_for(self, item: pytest.Item) -> object:
        marker = item.get_closest_marker("rescope_leaks")
        if marker is None:
            return self._mode
        given = (*marker.args, *marker.kwargs.values())
        return given[0] if len(given) == 1 else given

    def _check_mode(self, item: pytest.Item) -> None:
        if (mode := self._mode_for(item)) not in MODES:
            msg = f"@pytest.mark.rescope_leaks takes one of {', '.join(map(repr, MODES))}, not {mode!r}"
            pytest.fail(msg, pytrace=False)

    def _tell(self, item: pytest.Item, message: str) -> None:
        if self._mode_for(item) == "error":
            pytest.fail(message, pytrace=False)
        item.warn(pytest.PytestWarning(message))

    def _message(self, item: pytest.Item) -> str:
        """Say what is open that nobody else is going to close, each once, and alike lines as one."""
        dropped, self._dropped = self._dropped, []
        left = {handle: scope for lost in self._lost() for handle, scope in _leaves(lost)}
        new = [self._line(handle, scope._label()) for handle, scope in left.items() if handle not in self._told]
        self._told = set(left)
        if self._mode_for(item) == "off":
            return ""
        lines = Counter(dropped + new)
        return "\n".join(line if times == 1 else f"{line}, {times} times" for line, times in lines.items())

    def _lost(self) -> Iterator[Scope]:
        """Find the outermost scopes whose makers are finished."""
        for known in self._made.keyrefs():
            scope = known()
            if scope is not None and scope._parent() is None and self._made[scope] not in self._lasting:
                yield scope

    def _line(self, handle: Resource[Any], label: str) -> str:
        how = "still closing" if handle.state == "closing" else "left open"
        where = "a scope without a name" if label == "scope" else label
        site = site_of(handle)
        at = "" if site is None else f", registered at {site.removeprefix(self._directory)}"
        return f"{how}: {handle.name} in {where}{at}"


def _importing() -> bool:
    """Tell whether a module is being imported, by the test or by what calls it: what it makes is there to stay."""
    frame: Any = sys._getframe(2)
    while frame is not None and not str(frame.f_globals.get("__name__")).startswith("pluggy."):
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def _leaves(scope: Scope) -> Iterator[tuple[Resource[Any], Scope]]:
    for handle in handles_of(scope):
        inner = handle._inner()
        if inner is not None and inner.size:
            yield from _leaves(inner)
        else:
            yield handle, scope


def _holds_more(handle: Resource[Any]) -> bool:
    """Tell whether it is a child that has something to tell itself."""
    inner = handle._inner()
    return inner is not None and inner.size > 0
