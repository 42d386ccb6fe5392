"""Runs a random program on a real scope, and writes down what happens, as `tests/labels.py` tells it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel

from labels import (
    CANCELLED,
    Fault,
    Secret,
    ending,
    label,
    living_tasks,
    logs_into,
    own_cancellation,
    told_result,
)
from managers import Sync, hosted, managed
from plain_list import Model
from rescope import Err, Ok, Resource, ResourceCleanupError, Scope, create_resource, scoped, with_scope
from rescope.events import ScopeEvent
from strategies import Child, Early, HostAll, Hosted, Item, Managed, Plain, Program, refuses

variable: ContextVar[str] = ContextVar("variable")


@dataclass
class Place:
    """Where things are registered; a `move` changes the scope."""

    scope: Scope


@dataclass
class Report:
    """All that was seen of one run."""

    journal: list[tuple[Any, ...]] = field(default_factory=list)
    """`("begin", name, what a manager or callback saw)`, `("end", name)`, `("cut", name)`, `("told", name, label)`."""
    closing: bool = False
    """Whether the body has come to its end."""
    held: list[str] = field(default_factory=list)
    came: tuple[str, Any] = ("", None)
    """`"returned"` or `"raised"`, and what."""
    later: Any = None
    """What the next checkpoint raised."""
    cancelling: int = 0
    outcome: Any = None
    cleanup: ResourceCleanupError | None = None
    raised: BaseException | None = None
    left: list[Any] = field(default_factory=list)
    """State and size of the scopes, and the handles that are not closed."""
    variable: str = ""
    """What is in the context afterwards."""
    tasks: int = 0
    """How many run that did not run before."""
    events: list[ScopeEvent] = field(default_factory=list)
    logs: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    """Everything that could show a value."""
    slips: dict[str, Any] = field(default_factory=dict)
    """What the misuses that were tried raised."""
    where: dict[str, tuple[bool, str]] = field(default_factory=dict)
    """Of each closer whether it ran in the closing task, and what it found in the context."""


class Runner:
    """One run of a program."""

    def __init__(self, program: Program, *, apart: bool = False) -> None:
        self.program = program
        self.apart = apart
        self.report = Report()
        self.handles: dict[str, Resource[Any]] = {}
        self.scopes: list[Scope] = []
        self.detached: list[str] = []
        self.deaths: dict[str, anyio.CancelScope] = {}
        self.root: Place
        self.task: Any = None
        self.cancel_scope = anyio.CancelScope()

    # The closers

    def log(self, *entry: Any) -> None:
        self.report.journal.append(entry)

    def begin(self, item: Plain, args: tuple[Any, ...]) -> None:
        seen = args[0].owner if args and isinstance(args[0], Secret) else told_result(args[0]) if args else None
        self.log("begin", item.name, seen)
        here = anyio.get_current_task().id == self.task
        self.report.where[item.name] = (here, variable.get("unset"))
        variable.set(item.name)

    def end(self, item: Plain, own: BaseException | None) -> Any:
        self.log("end", item.name)
        if own is not None:
            raise own
        return ending(item.name, item.end)

    def closer(self, place: Place, item: Plain, own: BaseException | None) -> Callable[..., Any]:
        """Make the closer."""

        def sync(*args: Any) -> Any:
            self.begin(item, args)
            if item.does == "defer":
                place.scope.defer(self.more(item))
            elif item.does == "cancel":
                self.cancel()
            return self.end(item, own)

        async def later(*args: Any) -> Any:
            self.begin(item, args)
            await self.do(place, item)
            for _ in range(item.steps):
                await anyio.lowlevel.checkpoint()
            return self.end(item, own)

        def lazy(*args: Any) -> Any:
            return later(*args)

        fn: Callable[..., Any] = {"sync": sync, "async": later, "lazy": lazy}[item.style]
        fn.__qualname__ = item.name
        return fn

    def more(self, item: Plain) -> Callable[[], None]:
        """Make what an item registers while it closes."""

        def more() -> None:
            self.log("begin", f"{item.name}+", None)
            self.log("end", f"{item.name}+")

        more.__qualname__ = f"{item.name}+"
        return more

    async def do(self, place: Place, item: Plain) -> None:  # noqa: C901
        """Do what a closer does besides."""
        scope, more = place.scope, self.more(item)
        match item.does:
            case "defer":
                scope.defer(more)
            case "acquire":
                await scope.acquire(anyio.lowlevel.checkpoint, lambda _: more(), name=f"{item.name}+")
            case "host":
                await scope.host(hosted(self, Hosted(f"{item.name}+")))
            case "child":
                scope.child().defer(more)
            case "enter":
                self.log("told", item.name, await self.attempt(scope.enter, Sync(self, Managed(f"{item.name}+"))))
            case "close":
                self.log("told", item.name, await self.attempt(self.handles[item.target].aclose))
            case "aclose":
                await scope.aclose()
            case "aclose root":
                await self.root.scope.aclose()
            case "aclose task":
                async with anyio.create_task_group() as tg:
                    tg.start_soon(scope.aclose)
            case "cancel":
                await self.cancel_and_wait()

    def cancel(self) -> None:
        """Cancel the closing task."""
        if self.program.cancel == "scope":
            self.cancel_scope.cancel()
        else:
            self.native().cancel("the one")

    async def cancel_and_wait(self) -> None:
        for _ in range(self.program.times):
            self.cancel()
            await anyio.lowlevel.checkpoint()
        for _ in range(3):
            await anyio.lowlevel.checkpoint()

    def native(self) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = next(task for task in asyncio.all_tasks() if id(task) == self.task)
        return task

    async def attempt(self, close: Callable[..., Any], *args: Any) -> Any:
        """Close, and say what was raised."""
        try:
            await close(*args)
        except BaseException as exc:  # a closer's own, as nothing else cancels here
            return label(exc)
        return None

    # The body

    async def do_all(self, place: Place, items: tuple[Item, ...]) -> None:
        for item in items:
            await self.do_one(place, item)

    async def do_one(self, place: Place, item: Item) -> None:
        scope = place.scope
        match item:
            case Plain() | Managed() | Hosted() if refuses(item):
                self.log("told", item.name, await self.attempt(self.refused, scope, item))
            case Plain():
                own = await own_cancellation() if item.end == "cancelled" else None
                self.keep(item.name, await self.register(scope, item, self.closer(place, item, own)))
            case Managed():
                await scope.enter(managed(self, item), name=item.name)
                self.keep(item.name, scope.resources[-1])
            case Hosted():
                await scope.host(hosted(self, item))
                self.keep(item.name, scope.resources[-1])
            case HostAll():
                await scope.host_all(*(hosted(self, host) for host in item.hosts))
                for host, handle in zip(item.hosts, scope.resources[-len(item.hosts) :], strict=True):
                    self.keep(host.name, handle)
            case Child():
                child = scope.child(item.name, grace=item.grace, concurrent=item.concurrent)
                self.scopes.append(child)
                self.keep(item.name, scope.resources[-1])
                await self.do_all(Place(child), item.items)
            case Early():
                self.log("told", item.target, await self.early(scope, item.how, self.handles[item.target]))

    async def refused(self, scope: Scope, item: Plain | Managed | Hosted) -> None:
        """Try to register what can't be acquired or entered."""
        match item:
            case Plain():
                acquire: Callable[[], Any] = partial(ending, item.name, "raise")
                await scope.acquire(acquire, print, shield=item.style == "async")
            case Managed():
                await scope.enter(managed(self, item), name=item.name)
            case Hosted():
                await scope.host(hosted(self, item))

    def keep(self, name: str, handle: Resource[Any]) -> None:
        self.handles[name] = handle

    async def register(self, scope: Scope, item: Plain, close: Callable[..., Any]) -> Resource[Any]:  # noqa: C901, PLR0912
        """Register a closer in the way it asks for."""
        name, value = item.name, Secret(item.name)
        match item.how:
            case "defer":
                return scope.defer(close)
            case "defer args":
                return scope.defer(close, value)
            case "on_error":
                return scope.on_error(close, value)
            case "on_success":
                return scope.on_success(close)
            case "on_exit":
                return scope.on_exit(close)
            case "add":
                scope.add(value, close, name=name)
            case "add limited":
                scope.add(value, close, name=name, timeout=1000, force=Fault)
            case "add resource":
                scope.add(Resource(value, close, name=name))
            case "create":
                scope.add(await create_resource(lambda: value, close, name=name))
            case "own close":
                value.close = close  # type: ignore[attr-defined]
                scope.add(value, name=name)
            case "own aclose":
                value.aclose, value.close = close, Fault  # type: ignore[attr-defined]
                scope.add(value, name=name)
            case "acquire":
                await scope.acquire(lambda: value, close, name=name)
            case _:

                async def acquire() -> Secret:
                    await anyio.lowlevel.checkpoint()
                    return value

                await scope.acquire(acquire, close, name=name, shield="shield" in item.how)
        return scope.resources[-1]

    async def early(self, scope: Scope, how: str, handle: Resource[Any]) -> Any:
        """Do something to one that may be held, and say what was raised."""
        match how:
            case "release":
                return await self.attempt(scope.release, handle)
            case "value":
                return await self.attempt(scope.release, handle if handle.value is None else handle.value)
            case "aclose":
                return await self.attempt(handle.aclose)
            case "die" if handle.name in self.deaths:
                self.deaths[handle.name].cancel()
                await anyio.wait_all_tasks_blocked()
                return None
            case "detach" | "readd":
                try:
                    scope.detach(handle)
                except KeyError:
                    return "KeyError"
                if how == "readd":
                    scope.add(handle)
                else:
                    self.detached.append(next(name for name, one in self.handles.items() if one is handle))
        return None

    async def body(self, scope: Scope) -> Any:
        """Do what the program says, and end as it says."""
        self.scopes.append(scope)
        self.root = Place(scope)
        program = self.program
        if program.move is None:
            await self.do_all(self.root, program.items)
            return await self.body_end()
        await self.do_all(self.root, program.items[: program.move])
        moved = self.root.scope = scope.move()
        self.scopes.append(moved)
        if program.form == "with":
            async with moved:
                await self.do_all(self.root, program.items[program.move :])
                await self.body_end()
            return None
        try:
            await self.do_all(self.root, program.items[program.move :])
            await self.body_end()
        finally:
            await moved.aclose()

    async def body_end(self) -> Any:
        self.report.closing = True
        self.report.held = [handle.name for handle in self.root.scope.resources]
        variable.set("body")
        end = self.program.end
        if end == "cancel":
            for _ in range(self.program.times):
                self.cancel()
            await anyio.lowlevel.checkpoint()
        if end in ("ok", "err"):
            return Ok("body") if end == "ok" else Err("body")
        if end != "return":
            ending("body", end)
        return "body"

    async def in_form(self) -> Any:
        """Run the body in the form of scope that the program asks for."""
        program = self.program
        options: dict[str, Any] = {"grace": program.grace, "concurrent": program.concurrent}
        if program.told:
            options["on_event"] = self.report.events.append
        if program.form == "with_scope":
            return await with_scope(self.body, name="root", **options)
        if program.form == "scoped":

            @scoped(name="root", **options)
            async def run(scope: Scope, /) -> object:
                return await self.body(scope)

            return await run()
        scope = Scope("root", **options)
        if program.form == "aclose":
            try:
                await self.in_task(self.body, scope)
            finally:
                await self.in_task(scope.aclose)
        elif self.apart:
            await self.in_task(scope.__aenter__)
            try:
                await self.in_task(self.body, scope)
            except BaseException as exc:
                if not await self.in_task(scope.__aexit__, type(exc), exc, exc.__traceback__):
                    raise
            else:
                await self.in_task(scope.__aexit__, None, None, None)
        else:
            async with scope:
                await self.body(scope)
        return None

    async def in_task(self, fn: Callable[..., Any], *args: Any) -> Any:
        """Call it here, or in a task of its own, where that is asked for."""
        if not self.apart:
            return await fn(*args)
        raised: list[BaseException] = []
        given: list[Any] = []

        async def run() -> None:
            self.task = anyio.get_current_task().id
            try:
                given.append(await fn(*args))
            except BaseException as exc:
                raised.append(exc)

        async with anyio.create_task_group() as tg:
            tg.start_soon(run)
        if raised:
            raise raised[0]
        return given[0]

    # The world around it

    async def main(self) -> None:
        report = self.report
        self.task = anyio.get_current_task().id
        with self.cancel_scope:
            try:
                report.came = ("returned", told_result(await self.in_form()))
            except BaseException as exc:
                report.came, report.raised = ("raised", label(exc)), exc
            try:
                await anyio.lowlevel.checkpoint()
            except anyio.get_cancelled_exc_class():
                report.later = CANCELLED
                if self.program.cancel == "scope":
                    raise
        report.variable = variable.get("unset")
        if self.program.cancel == "task":
            report.cancelling = self.native().cancelling()
        self.look()
        for name in self.detached:
            self.log("told", name, await self.attempt(self.handles[name].aclose))

    async def run(self) -> Report:
        """Run it all, and look around."""
        before = living_tasks()
        with logs_into(self.report.logs):
            if self.program.cancel == "task":
                task = asyncio.create_task(self.main())
                await asyncio.wait([task])
                task.result()
            else:
                await self.main()
        self.report.tasks = living_tasks() - before
        self.texts()
        return self.report

    def look(self) -> None:
        report, scope = self.report, self.root.scope
        report.cleanup = scope.cleanup_error
        report.outcome = None if scope.outcome is None else told_result(scope.outcome)
        report.left = [
            {(one.state, one.size) for one in self.scopes},
            {name: handle.state for name, handle in self.handles.items() if handle.state != "closed"},
        ]

    def texts(self) -> None:
        """Gather everything that could show a value."""
        report, texts = self.report, self.report.texts
        texts += report.logs
        texts += [repr(one) for one in (*self.scopes, *self.handles.values())]
        texts += [text for event in report.events for text in (*event.path, event.resource or "")]
        errors = [self.scopes[0].cleanup_error, *(one.cleanup_error for one in self.scopes), report.raised]
        for error in errors:
            texts += getattr(error, "__notes__", [])
            if isinstance(error, ResourceCleanupError):
                texts.append(str(error))
                texts += [failure.name for failure in error.failures]
                texts += [str(one) for one in error.exceptions if type(one).__module__ == "rescope.exceptions"]


def ran(program: Program, backend: tuple[str, dict[str, Any]], *, apart: bool = False) -> tuple[Model, Report]:
    """Run a program on the lists and on a scope."""
    name, options = backend
    program = program.on("trio" if apart else name)

    async def run() -> Report:
        return await Runner(program, apart=apart).run()

    return Model(program), anyio.run(run, backend=name, backend_options=options)
