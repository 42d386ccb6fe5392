"""The application, and its functions."""

from __future__ import annotations

import asyncio
import re
from contextlib import asynccontextmanager
from contextvars import Context
from inspect import Parameter, iscoroutinefunction, signature
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, TypeVarTuple, cast, final
from uuid import uuid4

from dbos import DBOS, SetWorkflowID

from rescope import Scope
from rescope.workflow._names import key_in, section
from rescope.workflow.durable import _engine as engine
from rescope.workflow.durable._attempts import Policy, Work, children_of_this_attempt, started_here
from rescope.workflow.durable._children import ENDED
from rescope.workflow.durable._handle import DurableClosedError, Handle, KeyReusedError, seconds
from rescope.workflow.durable._packing import pack, same, unpack
from rescope.workflow.durable._takeover import TakeOver

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
    from types import TracebackType
    from typing import Self

    from dbos import WorkflowStatus

__all__ = ["Durable", "DurableFunction"]

Args = TypeVarTuple("Args")
R = TypeVar("R")

_ASK_AGAIN: Final = 0.1  # seconds, for the result of work that runs in another process
_TO_ANSWER: Final = 1.0  # seconds, for the database to say what is there
_ASKING: Final = 0.005  # seconds, for each of those who wait at once: so there are 200 questions a second at most


@final
class DurableFunction(Generic[*Args, R]):
    """A function of an application. `name` is its name in three parts; `fn` is the function as it was written."""

    __slots__ = ("_app", "_policy", "fn", "name")

    def __init__(self, app: Durable, policy: Policy, fn: Callable[[Scope, *Args], Awaitable[R]]) -> None:
        self._app = app
        self._policy = policy
        self.fn: Final = fn
        self.name: Final[str] = policy.name

    async def start(self, *args: *Args, key: str | None = None) -> Handle[R]:
        """Start it with these arguments, and give a handle at once: when this returns, no crash can stop it.

        The same `key` (a string of up to 4096 bytes) gives the same work again, in any process, after any restart: it
        is started once. Without a key, each call starts another; but what a durable function starts belongs to it, and
        an attempt that is made again finds what was started before, by function and arguments, unless that has failed
        in an earlier attempt. So arguments should not hold the time or a random number, where no key is given.

        Each attempt gets its own copy of the arguments, which must be such as pickle takes. A cancellation while this
        waits does not stop the start.

        Raises `TypeError` for arguments that don't fit the function or can't be pickled, before anything is written;
        `ValueError` for a key that can't be one; `KeyReusedError` where the key was given with other arguments before;
        `DurableClosedError` where the application is not open, or is closed meanwhile: then it may have been started,
        and a key makes it safe to start it again.
        """
        signature(self.fn).bind(None, *args)
        copies = unpack(pack(args, f"the arguments of {self.name}"))
        top = f"{self._app._prefix}{self.name}"
        known = None if key is None else key_in(top, key)
        children = children_of_this_attempt() if key is None else None
        return await self._app._apart(self._start(copies, known, children, top))

    async def _start(self, args: Any, known: str | None, children: Any, top: str) -> Handle[R]:
        if known is not None:
            here = known
        elif children is not None:
            here = await children.id_for(self.name, args)
        else:
            here = f"{top}~{uuid4()}"
        started_here.set(True)  # in the context of this task, and of what is started
        with SetWorkflowID(here):
            live = await DBOS.start_workflow_async(self._app._workflows[self.name], *args)
        if known is not None:
            status = await self._app._status(known)
            if status is not None and status.input is not None and not same(status.input["args"], args):
                raise KeyReusedError(known)
        return Handle(self._app, here, live)

    def __repr__(self) -> str:
        return f"<DurableFunction {self.name}>"


@final
class Durable:
    """An application of durable functions, which is open while it is entered.

    `url` is `sqlite:///jobs.db`, a path below the working directory, `sqlite:////var/lib/jobs.db`, one from the root,
    or `postgresql://user@host/database`, for many machines. `name` keeps applications apart that share a database. All
    processes that open one at a time work together; they should know the same functions. Every `recover_every` seconds,
    one takes over what another left that died.

    On entering, it takes over such work too. On leaving, attempts that run are cancelled, and their scopes unwound; the
    work stays pending, and goes on when the application is opened again, by any process. A process has one that is open
    at a time. Its event loop should be the one of all that the functions do.

    Raises `TypeError` or `ValueError` for bad arguments. On entering, `RuntimeError` on trio, where another one is
    open, and where SQLite is too old for the engine.
    """

    _open: Durable | None = None

    def __init__(self, *, url: str, name: str, recover_every: float = 10.0) -> None:
        self._url = engine.check_url(url)
        self._prefix = section("durable", name)
        self._recover_every = seconds(recover_every, "recover_every")
        self.name: Final = name
        self._functions: dict[str, Policy] = {}
        self._workflows: dict[str, Callable[..., Coroutine[Any, Any, Any]]] = {}
        self._life: Any = None
        self._work: Work | None = None
        self._apart_tasks: set[asyncio.Task[Any]] = set()

    def __repr__(self) -> str:
        return f"<Durable {self.name!r}>"

    def function(
        self,
        *,
        namespace: str,
        attempts: int = 3,
        backoff: float = 1.0,
        max_backoff: float = 3600.0,
        timeout: float | None = None,
    ) -> Callable[[Callable[[Scope, *Args], Awaitable[R]]], DurableFunction[*Args, R]]:
        """Make an async function durable, whose first parameter is the scope of the attempt.

        Its name is that of the namespace, as `"orders.payment"`, and its own: `orders.payment.charge`. What was started
        is kept under it, so a function that is renamed leaves its work behind.

        `attempts`: how often it is tried in all, as long as it raises. A crash, and the end of the application, don't
        count; but an attempt that was cut short a hundred times in a row, each time within an hour of the last, may be
        what ends the process, so it is the last one, and `result` raises a `RuntimeError`. A returned `Err` is a result
        like any other. Where only the cleanup failed, what was to be done is done: the `ResourceCleanupError` is the
        end of it, with the value in `original_result`.
        `backoff`: seconds before the second attempt; then twice as long each time, up to `max_backoff`.
        `timeout`: seconds for the body of each attempt. When they are over, it is cancelled, the scope unwound, and the
        attempt has failed with `TimeoutError`. Closers have timeouts of their own.

        Raises `TypeError` or `ValueError` for bad arguments and for a name that is taken.
        """
        _check_namespace(namespace)
        _check_attempts(attempts)
        first, largest = seconds(backoff, "backoff", zero=True), seconds(max_backoff, "max_backoff", zero=True)
        limit = None if timeout is None else seconds(timeout, "timeout")

        def decorate(fn: Callable[[Scope, *Args], Awaitable[R]]) -> DurableFunction[*Args, R]:
            _check_function(fn)
            policy = Policy(f"{namespace}.{fn.__name__}", fn, attempts, first, largest, limit)
            self._add(policy)
            return DurableFunction(self, policy, fn)

        return decorate

    def handle(self, id: str) -> Handle[Any]:  # noqa: A002
        """Give the handle of work by its id, as another process may have told it. `TypeError` for what is no string."""
        if not isinstance(id, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            msg = f"`id` must be a string, as that of a handle, not a {type(id).__qualname__}"
            raise TypeError(msg)
        return Handle(self, id)

    async def __aenter__(self) -> Self:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            msg = "durable functions run on asyncio only, as DBOS does"
            raise RuntimeError(msg) from None
        if Durable._open is not None:
            msg = f"{Durable._open!r} is open in this process already, and there can be one only: leave that one first"
            raise RuntimeError(msg)
        self._life = self._opened()
        await self._life.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._life.__aexit__(kind, exc, trace)

    # Opening and closing

    @asynccontextmanager
    async def _opened(self) -> AsyncGenerator[None]:
        Durable._open = self
        try:
            async with Scope(f"durable {self.name}") as scope:
                executor = f"executor-{uuid4()}"
                locks = await scope.acquire(
                    lambda: asyncio.to_thread(engine.locked, self._url, executor),
                    lambda locks: asyncio.to_thread(locks.close),
                    shield=True,
                )
                application = engine.application_name(self.name)
                work = self._launch(scope, application, executor)
                take_over = TakeOver(application, self._functions.keys(), locks, executor, work.running)
                await take_over.begin()
                watch = asyncio.create_task(take_over.go_on(self._recover_every), context=Context())
                scope.defer(_cancelled, watch)
                yield
        finally:
            self._work = Durable._open = None

    def _launch(self, scope: Scope, application: str, executor: str) -> Work:
        self._work = work = Work()
        for policy in self._functions.values():
            self._register(policy)
        scope.defer(self._workflows.clear)
        engine.launch(self._url, application, executor)
        scope.defer(engine.stop)
        scope.defer(self._stop)
        return work

    async def _stop(self) -> None:
        work, self._work = cast("Work", self._work), None
        for task in self._apart_tasks:
            task.cancel()
        await work.stop()

    def _add(self, policy: Policy) -> None:
        if policy.name in self._functions:
            msg = f"{policy.name} is registered already: give one of the two another name or namespace"
            raise ValueError(msg)
        self._functions[policy.name] = policy
        self._register(policy)

    def _register(self, policy: Policy) -> None:
        if self._work is not None:
            workflow = cast("Callable[..., Coroutine[Any, Any, Any]]", self._work.workflow(policy))
            register = DBOS.workflow(name=policy.name, max_recovery_attempts=None)
            self._workflows[policy.name] = register(workflow)

    # Asking the engine

    @property
    def _ask_again(self) -> float:
        return max(_ASK_AGAIN, _ASKING * len(self._apart_tasks))

    async def _status(self, id: str) -> WorkflowStatus | None:  # noqa: A002
        return await DBOS.get_workflow_status_async(id)

    async def _apart(self, asking: Coroutine[Any, Any, R]) -> R:
        """Ask the engine outside of the workflow and step that we may be in, and to the end, also if cancelled."""
        task = self._spawn(asking)
        await asyncio.wait({task})
        return self._came(task)

    async def _within(self, timeout: float | None, asking: Coroutine[Any, Any, R], id: str) -> R:  # noqa: A002
        task = self._spawn(asking)
        try:
            done, _ = await asyncio.wait({task}, timeout=timeout)
            if not done and await self._has_ended(id):  # what is there is given, however short the time
                done, _ = await asyncio.wait({task}, timeout=_TO_ANSWER)
        finally:
            task.cancel()
        if not done:
            msg = f"{id} is not at its end after {timeout:g} s, and goes on"
            raise TimeoutError(msg)
        return self._came(task)

    async def _has_ended(self, id: str) -> bool:  # noqa: A002
        look = self._spawn(self._status(id))
        done, _ = await asyncio.wait({look}, timeout=_TO_ANSWER)
        if not done:
            look.cancel()
            return False
        status = self._came(look)
        return status is None or status.status in ENDED

    def _spawn(self, asking: Coroutine[Any, Any, R]) -> asyncio.Task[R]:
        if self._work is None:
            asking.close()
            msg = f"{self!r} is not open: do this inside of its `async with`"
            raise DurableClosedError(msg)
        task = asyncio.create_task(asking, context=Context())
        self._apart_tasks.add(task)
        task.add_done_callback(self._apart_tasks.discard)
        task.add_done_callback(_looked_at)
        return task

    def _came(self, task: asyncio.Task[R]) -> R:
        if task.cancelled():
            msg = f"{self!r} was closed meanwhile, or the task cancelled: the work goes on when it is opened again"
            raise DurableClosedError(msg)
        return task.result()


def _looked_at(task: asyncio.Task[Any]) -> None:
    """Keep asyncio from reporting what nobody waits for any more."""
    if not task.cancelled():
        task.exception()


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task})


def _check_namespace(namespace: object) -> None:
    if not isinstance(namespace, str) or not re.fullmatch(r"[A-Za-z_][\w-]*\.[A-Za-z_][\w-]*", namespace):
        msg = "`namespace` must be two names with a dot between, as 'orders.payment'"
        raise ValueError(msg)


def _check_attempts(attempts: object) -> None:
    if isinstance(attempts, bool) or not isinstance(attempts, int) or attempts < 1:
        msg = "`attempts` must be a whole number from 1"
        raise ValueError(msg)


def _check_function(fn: object) -> None:
    if not iscoroutinefunction(fn) or not hasattr(fn, "__name__"):
        msg = f"a durable function must be an `async def` function, not a {type(fn).__qualname__}"
        raise TypeError(msg)
    takes = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    parameters = list(signature(fn).parameters.values())
    if not parameters or parameters[0].kind not in takes:
        msg = f"{fn.__qualname__} takes no scope: make it its first parameter"
        raise TypeError(msg)
    needed = [
        each.name for each in parameters if each.kind is Parameter.KEYWORD_ONLY and each.default is Parameter.empty
    ]
    if needed:
        msg = f"{fn.__qualname__} needs `{needed[0]}` by its name, and `start` gives arguments by their position only"
        raise TypeError(msg)
