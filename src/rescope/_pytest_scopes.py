"""The scopes of tests: set up, used and closed in whatever tasks the runner has for that.

anyio's runner has one task for a fixture and its test, pytest-asyncio has three. A manager that ties itself to its
task, as a task group does, can be exited in none but the one that entered it. So `enter` gives an async manager a task
of its own here, as `host` does. What the test would miss by that, it is given: where what it entered fails in the
background, it is cancelled, and fails with that.
"""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from rescope._backends import backend
from rescope._entered import check_manager
from rescope._flight import three
from rescope._host import Hosted
from rescope._scope import Scope
from rescope.exceptions import HostDiedError, ResourceCleanupError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from anyio import CancelScope

    from rescope._closing import Closing
    from rescope._unwind import Unwinding
    from rescope.events import ScopeEvent

T = TypeVar("T")


class ScopeFactory:
    """Makes scopes that are closed after the test, the last made first. The fixture `scope_factory` gives one."""

    def __init__(self) -> None:
        from anyio.lowlevel import current_token

        self._home = current_token()
        self._raised: BaseException | None = None
        """What the test raised, or what kept it from running."""
        self._scopes: list[Scope] = []
        self._test: CancelScope | None = None
        self._death: BaseException | None = None

    def __call__(
        self,
        name: str | None = None,
        *,
        grace: float | None = None,
        concurrent: bool = False,
        on_event: Callable[[ScopeEvent], object] | None = None,
    ) -> Scope:
        """Make one, with the options of `Scope`."""
        scope = FixtureScope(name, grace=grace, concurrent=concurrent, on_event=on_event)
        scope._factory = self
        self._scopes.append(scope)
        return scope

    def _guarded(self, test: Callable[..., Awaitable[object]]) -> Callable[..., Awaitable[None]]:
        """Make the test end, and fail, when a manager that was entered fails in the background."""

        @wraps(test)
        async def guarded(*args: Any, **kwargs: Any) -> None:
            __tracebackhide__ = True
            from anyio import CancelScope

            if self._death is None:
                with CancelScope() as self._test:
                    await test(*args, **kwargs)
                self._test = None
            if self._death is not None:
                raise self._death

        return guarded

    def _died(self, error: BaseException) -> None:
        self._death = self._death or error
        if self._test is not None:
            self._test.cancel()

    async def _close(self) -> None:
        """Close them all, as failed where the test raised something; raise all that failed to close."""
        errors: list[Exception] = []
        interrupts: list[BaseException] = []
        for scope in reversed(self._scopes):
            if scope.state == "closed":  # whoever closed it was told what failed
                continue
            try:
                await scope.__aexit__(*three(self._raised))
            except BaseException as exc:
                if not isinstance(exc, Exception):
                    interrupts.append(exc)
                elif not isinstance(exc, ResourceCleanupError):
                    errors.append(exc)
            if scope.cleanup_error is not None:
                scope.cleanup_error.__cause__ = None  # it is told already
                errors.append(scope.cleanup_error)
        self._raised = self._death = None
        if interrupts:
            raise interrupts[0]
        if len(errors) == 1:
            raise errors[0].with_traceback(None)
        if errors:
            msg = "several scopes of the test failed to close"
            raise ExceptionGroup(msg, errors)


FACTORY = pytest.StashKey[ScopeFactory]()
"""The factory of a test, which is to know how that ends."""


class FixtureScope(Scope):
    """A scope that hosts the async managers that are entered in it."""

    __slots__ = ()

    _factory: ScopeFactory

    async def enter(self, cm: Any, /, *, name: str | None = None) -> Any:
        """Enter a sync manager in the calling task, an async one in a task of its own."""
        if not hasattr(type(cm), "__aenter__"):
            return await super().enter(cm, name=name)
        self._refuse_closed()
        check_manager(cm, hosted=True)
        guest: Guest[Any] = Guest(cm, name, self)
        guest.on_death = self._factory._died
        await self._host([guest])
        return guest.value

    async def _host(self, handles: list[Hosted[Any]]) -> None:
        from anyio.lowlevel import current_token

        if current_token() != self._factory._home:
            msg = (
                f"{self._label()} is on the event loop of its test, and this runs on another one. Give the fixture "
                "the loop scope of the test: `asyncio_default_fixture_loop_scope`, or `loop_scope=...`"
            )
            raise RuntimeError(msg)
        await super()._host(handles)

    def _another(self, name: str | None, *, grace: float | None, concurrent: bool) -> FixtureScope:
        another = FixtureScope(name, grace=grace, concurrent=concurrent)
        another._factory = self._factory
        return another


class Guest(Hosted[T]):
    """The handle of an async manager that was entered in the scope of a test."""

    __slots__ = ("on_death",)

    on_death: Callable[[BaseException], None]

    def _tell_death(self, error: BaseException | None) -> None:
        super()._tell_death(error)
        if error is not None and not isinstance(error, backend().Cancelled):
            self.on_death(error)

    def _begin(self, unwinding: Unwinding, closing: Closing) -> Awaitable[None] | None:
        if not self._job.done:
            return super()._begin(unwinding, closing)
        death = self._death()
        quiet = type(death) is HostDiedError and death.__cause__ is None  # as when a task group is cancelled by itself
        if not quiet and death is not unwinding.seen():
            unwinding.failed(self, death, closing.elapsed())
        return None
