"""Fixtures for tests that open things, and a watch on what they leave open.

pytest finds this plugin by itself. The fixture `scope` is a `Scope` that is closed after the test; `scope_factory`
makes more of them. With `--rescope-leaks=error`, the default, a test that leaves something open fails, with the line
that registered it; `warn` only says so, and `off` looks at nothing. `rescope_leaks` in the settings of pytest is the
default for all tests, and `@pytest.mark.rescope_leaks("off")` is for one.
"""

from __future__ import annotations

from inspect import iscoroutinefunction
from typing import TYPE_CHECKING

import pytest

from rescope._pytest_leaks import MODES, LeakWatch
from rescope._pytest_scopes import FACTORY, ScopeFactory

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Generator

    from rescope._scope import Scope

__all__ = ["ScopeFactory"]

_GRACE = 30
"""Seconds. A close that hangs must not keep the run from going on."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--rescope-leaks`, and `rescope_leaks` for the settings."""
    parser.addini("rescope_leaks", "what a test does that leaves a resource open: error, warn or off", default="error")
    parser.getgroup("rescope").addoption(
        "--rescope-leaks", choices=MODES, help="what a test does that leaves a resource open (default: error)"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Begin to watch, and offer the fixtures for pytest-asyncio where that is there."""
    config.addinivalue_line("markers", "rescope_leaks(mode): 'error', 'warn' or 'off', for what this test leaves open")
    mode = config.getoption("rescope_leaks") or config.getini("rescope_leaks")
    if mode not in MODES:
        msg = f"rescope_leaks is one of {', '.join(map(repr, MODES))}, not {mode!r}"
        raise pytest.UsageError(msg)
    if config.pluginmanager.has_plugin("asyncio"):
        from rescope import _pytest_on_asyncio

        config.pluginmanager.register(_pytest_on_asyncio)
    if mode != "off":
        watch = LeakWatch(mode, config.invocation_params.dir)
        config.pluginmanager.register(watch)
        watch.start()


@pytest.fixture
def scope(request: pytest.FixtureRequest, scope_factory: ScopeFactory) -> Scope:
    """Give a scope that is named after the test, and closed after it.

    `enter` gives an async manager a task of its own, as `host` does, so that it may hold a task group. Where such
    a manager fails in the background, the test is cancelled, and fails with that. What fails to close is an error of
    the test. The scope closes as failed where the test raised something. It has 30 seconds of `grace`.
    """
    return scope_factory(request.node.name, grace=_GRACE)


@pytest.fixture
def scope_factory(request: pytest.FixtureRequest) -> ScopeFactory:
    """Give what makes scopes that are closed after the test, the last made first, each like the fixture `scope`.

    `scope_factory(name=None, *, grace=None, concurrent=False, on_event=None)` takes the options of `Scope`.
    """
    factory: ScopeFactory = request.getfixturevalue(_home(request))
    return factory


def _home(request: pytest.FixtureRequest) -> str:
    """Find the fixture that lives where the test does."""
    marker = request.node.get_closest_marker("asyncio")
    if marker is None and "anyio_backend" in request.fixturenames:
        return "_rescope_on_anyio"
    if not request.config.pluginmanager.has_plugin("asyncio"):
        msg = (
            f"{request.node.name} asks for a scope of rescope, but nothing runs async fixtures for it.\n"
            "- With anyio: make it an `async def` and mark it `@pytest.mark.anyio`, or set `anyio_mode = auto`. "
            "A plain function asks for the fixture `anyio_backend` too.\n"
            "- Or install pytest-asyncio."
        )
        pytest.fail(msg, pytrace=False)
    options = {} if marker is None else marker.kwargs
    default = request.config.getini("asyncio_default_test_loop_scope")
    return f"_rescope_on_{options.get('loop_scope') or options.get('scope') or default}_loop"


@pytest.fixture
async def _rescope_on_anyio(request: pytest.FixtureRequest) -> AsyncIterator[ScopeFactory]:
    factory = request.node.stash[FACTORY] = ScopeFactory()
    yield factory
    await factory._close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, object, object]:
    """Let the scopes know of a fixture that failed."""
    __tracebackhide__ = True
    try:
        return (yield)
    except BaseException as exc:
        if FACTORY in item.stash:
            item.stash[FACTORY]._raised = exc
        raise


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Let the scopes know when the test fails, and the test when something fails that it entered in them."""
    __tracebackhide__ = True
    factory = item.stash.get(FACTORY, None)
    if factory is None or not isinstance(item, pytest.Function):
        return (yield)
    test = item.obj
    if iscoroutinefunction(test):
        item.obj = factory._guarded(test)
    try:
        return (yield)
    except BaseException as exc:
        factory._raised = exc
        raise
    finally:
        item.obj = test
