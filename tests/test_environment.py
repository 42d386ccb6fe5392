"""Where it runs: what importing costs, without optional packages, in development mode, and on which backend."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

import pytest

from rescope import Ok, Result, Scope

if TYPE_CHECKING:
    from collections.abc import Iterator

needs_trio = pytest.mark.skipif(not importlib.util.find_spec("trio"), reason="trio is not installed")
needs_uvloop = pytest.mark.skipif(not importlib.util.find_spec("uvloop"), reason="uvloop is not installed")


def run(code: str, *options: str, **environ: str) -> tuple[int, str, str]:
    """Run a program of its own; give its exit code, and what it wrote to both outputs."""
    command = [sys.executable, *options, "-c", textwrap.dedent(code)]
    done = subprocess.run(  # noqa: S603 (the programs stand below)
        command, capture_output=True, text=True, timeout=60, check=False, env={**os.environ, **environ}
    )
    return done.returncode, done.stdout.strip(), done.stderr.strip()


SCOPE_WITH_EVERYTHING = """
    import contextlib
    import logging
    import anyio
    from rescope import Scope, with_scope, create_resource

    logging.getLogger("asyncio").setLevel("ERROR")  # a step of 0.1 s is told in debug mode: here, of a busy machine
    log = []

    async def close(name):
        await anyio.lowlevel.checkpoint()
        log.append(name)

    @contextlib.asynccontextmanager
    async def manager(name):
        async with anyio.create_task_group():
            yield name
        log.append(name)

    async def body(scope):
        scope.defer(log.append, "sync")
        scope.defer(close, "async")
        await scope.enter(manager("entered"))
        await scope.host(manager("hosted"))
        await scope.acquire(lambda: "acquired", close)
        await scope.acquire(anyio.lowlevel.checkpoint, lambda _: close("shielded"), shield=True)
        scope.child(grace=5).defer(close, "child")
        scope.add("forced", anyio.sleep_forever, timeout=0.01)
        scope.add(await create_resource(lambda: "created", close))

    async def main():
        with anyio.CancelScope() as cancelled:
            try:
                await with_scope(body)
            except ExceptionGroup as error:
                log.append(len(error.exceptions))
            async with Scope(concurrent=True) as scope:
                scope.defer(close, "concurrent")
                scope.defer(close, "concurrent")
                cancelled.cancel()
                await anyio.sleep_forever()
"""

EXPECTED = [
    "created",
    "child",
    "shielded",
    "acquired",
    "hosted",
    "entered",
    "async",
    "sync",
    1,
    "concurrent",
    "concurrent",
]

BLOCK = """
    import sys

    class Block:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] in {names}:
                raise ModuleNotFoundError(name)

    sys.meta_path.insert(0, Block())
"""


def runs(backend: str, **options: bool) -> str:
    """Write the end of a program that runs the scope with everything on that backend."""
    return f"    anyio.run(main, backend={backend!r}, backend_options={options!r})\n    print(log)\n"


# Importing


@pytest.mark.parametrize("module", ["asyncio", "trio", "uvloop", "logging"])
def test_importing_imports_no_backend(module: str) -> None:
    """`import rescope` imports neither asyncio nor trio, nor what only a failure needs."""
    assert run(f"import sys, rescope; print({module!r} in sys.modules)") == (0, "False", "")


def test_importing_pulls_in_anyio_and_typing_extensions_alone() -> None:
    """Of what isn't in the standard library only these two may be imported."""
    code = """
        import sys
        before = set(sys.modules)
        import rescope
        names = {name.split(".")[0] for name in set(sys.modules) - before}
        print(sorted(names - set(sys.stdlib_module_names) - {"rescope", "anyio", "typing_extensions"}))
    """
    assert run(code) == (0, "[]", "")


def test_importing_starts_nothing() -> None:
    """No thread is started, and no event loop is made."""
    assert run("import threading, rescope; print(threading.active_count())") == (0, "1", "")


@pytest.mark.parametrize("options", [(), ("-O",), ("-OO",), ("-X", "dev", "-W", "error")], ids=" ".join)
def test_every_public_name_can_be_imported(options: tuple[str, ...]) -> None:
    """With and without asserts and docstrings."""
    code = "import rescope; print([name for name in rescope.__all__ if not hasattr(rescope, name)])"

    assert run(code, *options) == (0, "[]", "")


@pytest.mark.parametrize("options", [("-O",), ("-OO",)], ids=" ".join)
def test_it_runs_without_asserts_and_docstrings(options: tuple[str, ...]) -> None:
    """Nothing depends on them."""
    assert run(SCOPE_WITH_EVERYTHING + runs("asyncio"), *options) == (0, str(EXPECTED), "")


def test_it_runs_on_asyncio_where_trio_and_uvloop_are_not_installed() -> None:
    """Neither is needed."""
    code = BLOCK.format(names={"trio", "uvloop"}) + SCOPE_WITH_EVERYTHING + runs("asyncio")

    assert run(code) == (0, str(EXPECTED), "")


@needs_trio
def test_it_runs_on_trio_where_uvloop_is_not_installed() -> None:
    """Nor is uvloop for trio."""
    code = BLOCK.format(names={"uvloop"}) + SCOPE_WITH_EVERYTHING + runs("trio")

    assert run(code) == (0, str(EXPECTED), "")


# Development modes


@pytest.mark.parametrize(
    ("backend", "options"),
    [
        pytest.param("asyncio", {}, id="asyncio"),
        pytest.param("asyncio", {"use_uvloop": True}, id="uvloop", marks=needs_uvloop),
        pytest.param("trio", {}, id="trio", marks=needs_trio),
    ],
)
def test_it_runs_in_development_mode_with_warnings_as_errors(backend: str, options: dict[str, bool]) -> None:
    """`python -X dev -W error`: nothing is warned of, and nothing is left unawaited or unretrieved."""
    code = SCOPE_WITH_EVERYTHING + runs(backend, **options) + "    import gc\n    gc.collect()\n"

    assert run(code, "-X", "dev", "-W", "error") == (0, str(EXPECTED), "")


@pytest.mark.parametrize(
    "options",
    [pytest.param({}, id="asyncio"), pytest.param({"use_uvloop": True}, id="uvloop", marks=needs_uvloop)],
)
def test_it_runs_in_asyncio_debug_mode(options: dict[str, bool]) -> None:
    """`PYTHONASYNCIODEBUG=1`: no complaint."""
    code = SCOPE_WITH_EVERYTHING + runs("asyncio", **options, debug=True)

    assert run(code, "-W", "error", PYTHONASYNCIODEBUG="1") == (0, str(EXPECTED), "")


def test_it_runs_on_plain_asyncio() -> None:
    """With `asyncio.run`, which anyio knows nothing of."""
    code = SCOPE_WITH_EVERYTHING + "    import asyncio\n    asyncio.run(main())\n    print(log)\n"

    assert run(code, "-X", "dev", "-W", "error") == (0, str(EXPECTED), "")


def test_it_runs_with_eager_tasks() -> None:
    """Where the loop starts every task eagerly (3.12 and later), nothing changes."""
    code = (
        SCOPE_WITH_EVERYTHING
        + """
    import asyncio

    async def eager():
        factory = getattr(asyncio, "eager_task_factory", None)
        asyncio.get_running_loop().set_task_factory(factory)
        await asyncio.create_task(main())

    asyncio.run(eager())
    print(log)
"""
    )
    assert run(code) == (0, str(EXPECTED), "")


@needs_trio
def test_one_process_may_use_both_backends_in_turn() -> None:
    """The backend is decided where a scope is used, not once."""
    code = SCOPE_WITH_EVERYTHING + runs("asyncio") + "    log.clear()\n" + runs("trio")

    assert run(code) == (0, f"{EXPECTED}\n{EXPECTED}", "")


# Dropping an open scope


@pytest.mark.parametrize("backend", ["asyncio", pytest.param("trio", marks=needs_trio)])
def test_dropping_an_open_scope_warns_at_once_with_names(backend: str) -> None:
    """A `ResourceWarning` with the names of what was held, before anything else happens."""
    code = f"""
        import gc, anyio
        from rescope import Scope
        gc.disable()

        async def main():
            scope = Scope("orders")
            scope.add(object(), lambda: None, name="database")
            scope.child("export").defer(lambda: None)
            del scope
            print("dropped", flush=True)

        anyio.run(main, backend={backend!r})
    """
    exit_code, out, err = run(code, "-W", "always", "-X", "dev")

    parts = ["ResourceWarning", "'orders'", "database", "export"]
    assert (exit_code, out, [part for part in parts if part not in err]) == (0, "dropped", [])


def test_an_open_scope_at_the_end_of_the_process_is_told() -> None:
    """One that is held by a module until the end warns too, and breaks nothing."""
    code = """
        import anyio
        from rescope import Scope
        scope = Scope("orders")
        scope.add(object(), lambda: None, name="database")
    """
    exit_code, _, err = run(code, "-W", "always")

    assert (exit_code, "orders" in err, "Traceback" in err) == (0, True, False)


# Which backend


@needs_trio
def test_trio_in_guest_mode_on_asyncio_is_trio() -> None:
    """A running asyncio loop proves nothing: a scope in a trio task runs on trio, one in an asyncio task on asyncio."""
    code = """
        import asyncio
        import trio
        from rescope import Scope

        log = []

        async def close_on_trio():
            await trio.lowlevel.checkpoint()
            log.append("trio")

        async def close_on_asyncio():
            await asyncio.sleep(0)
            log.append("asyncio")

        async def guest():
            async with Scope() as scope:
                scope.defer(close_on_trio)
            with trio.CancelScope() as cancelled:
                async with Scope() as scope:
                    scope.defer(close_on_trio)
                    cancelled.cancel()

        async def host():
            loop = asyncio.get_running_loop()
            done = loop.create_future()
            trio.lowlevel.start_guest_run(
                guest,
                run_sync_soon_threadsafe=loop.call_soon_threadsafe,
                done_callback=done.set_result,
            )
            async with Scope() as scope:
                scope.defer(close_on_asyncio)
            (await done).unwrap()
            async with Scope() as scope:
                scope.defer(close_on_asyncio)

        asyncio.run(host())
        print(sorted(log))
    """
    assert run(code) == (0, "['asyncio', 'asyncio', 'trio', 'trio']", "")


@needs_trio
def test_on_trio_asyncio_is_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody imported asyncio, the task is trio's, and managers are entered and closers run all the same."""
    import trio

    import rescope._backends as backends

    log: list[str] = []

    @contextlib.contextmanager
    def manager() -> Iterator[None]:
        yield
        log.append("exited")

    async def close() -> None:
        await trio.lowlevel.checkpoint()
        log.append("closed")

    async def main() -> None:
        monkeypatch.delitem(sys.modules, "asyncio")
        monkeypatch.setattr(backends._Loaded, "asyncio", None)
        scope = Scope()
        await scope.enter(manager())
        scope.defer(close)
        await scope.aclose()

    trio.run(main)

    assert log == ["closed", "exited"]


def test_without_a_running_task_the_error_says_what_to_do() -> None:
    """A coroutine driven by nobody: the async closer's scope explains itself."""
    code = """
        from rescope import Scope

        async def close():
            pass

        scope = Scope(grace=1)
        scope.defer(close)
        try:
            scope.aclose().send(None)
        except RuntimeError as error:
            print("asyncio or trio" in str(error))
        scope.detach(scope.resources[0])
    """
    assert run(code)[:2] == (0, "True")


def test_a_result_can_be_made_with_its_type() -> None:
    """`Ok[int](1)` works on every Python, though the class is frozen, slotted and generic."""
    result: Result[int, str] = Ok[int](1)

    assert result == Ok(1)
