"""The contract of `rescope.workflow.Store`, for a store of your own: all checks at once, or each as a test."""

from __future__ import annotations

import inspect
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, final

from rescope.testing import _store_checks, _store_cut, _store_many, _store_race, _store_time
from rescope.testing._store_bench import Bench
from rescope.workflow.store import Store

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from rescope.testing._store_bench import Opener


class StoreContractError(AssertionError):
    """A store does not keep the contract. `failures` has what each check that failed has raised, by its name."""

    def __init__(self, failures: dict[str, Exception], attempted: int) -> None:
        super().__init__(failures, attempted)
        self.failures = failures
        self.attempted = attempted

    def __str__(self) -> str:
        lines = [f"\n- {name}: {_reason(exc)}" for name, exc in self.failures.items()]
        return f"the store fails {len(lines)} of {self.attempted} checks of the contract:{''.join(lines)}"


@final
@dataclass(frozen=True, slots=True)
class StoreCheck:
    """One check of the contract: `await check(open_store)`, with the hooks of `store_contract`.

    `name` says what must hold. `needs` is the hook without which it can't be run: `"processes"`, `"cut"`, or `None`.
    """

    name: str
    run: Callable[[Bench], Awaitable[None]]
    needs: Literal["processes", "cut"] | None = None

    def __str__(self) -> str:
        return self.name

    async def __call__(
        self,
        open_store: Opener | Store,
        /,
        *,
        advance: Callable[[float], object] | None = None,
        processes: int = 0,
        cut: Callable[[], object] | None = None,
        timeout: float = 60.0,
    ) -> None:
        """Run it. Raises `AssertionError`, or what the store raised; `TimeoutError` after `timeout` seconds."""
        from anyio import fail_after

        bench = _bench(open_store, advance, processes, cut)
        if self.needs is not None and not getattr(bench, self.needs):
            msg = f"the check {self.name!r} needs `{self.needs}`"
            raise ValueError(msg)
        with fail_after(timeout):
            try:
                await self.run(bench)
            except ExceptionGroup as group:  # of tasks that race, the first tells enough
                raise _first(group) from group
            finally:
                await bench.clean()


@final
class StoreContract:
    """What a store promises, as checks that anyone can run on a store of their own: see `store_contract`."""

    __slots__ = ()

    @property
    def checks(self) -> tuple[StoreCheck, ...]:
        """Every check, so that each can be a test of its own.

        `@pytest.mark.parametrize("check", store_contract.checks, ids=str)` makes them tests; leave out those whose
        `needs` you can't give.
        """
        return _ALL

    async def __call__(
        self,
        open_store: Opener | Store,
        /,
        *,
        advance: Callable[[float], object] | None = None,
        processes: int = 0,
        cut: Callable[[], object] | None = None,
        timeout: float = 60.0,
    ) -> int:
        """Run all checks, one after the other, and give their number.

        `open_store()` gives a store, or an async context manager of one, over the same data each time; several are
        open at once. It may be async. A store itself is taken as it is, neither opened nor closed. The checks use keys
        of their own, and delete them. What more there is, is used where it is given:

        - `advance(seconds)`, sync or async, advances the store's clock. Without it, the checks of expiry wait;
        - `processes`: how many to start for races between them, as fresh interpreters. `open_store` must then be
          something `pickle` can take there: a function of a module, or a `functools.partial` of one;
        - `cut()`, sync or async, cuts the connections of the stores that are open, and lets new ones be made;
        - `timeout`, in seconds, bounds each check.

        Raises `StoreContractError`, an `AssertionError` that names each check that fails and why.
        """
        bench = _bench(open_store, advance, processes, cut)
        due = [check for check in _ALL if check.needs is None or getattr(bench, check.needs)]
        failures: dict[str, Exception] = {}
        for check in due:
            try:
                await check(open_store, advance=advance, processes=processes, cut=cut, timeout=timeout)
            except Exception as exc:
                failures[check.name] = exc
        if failures:
            raise StoreContractError(failures, len(due))
        return len(due)

    def __repr__(self) -> str:
        return "<store_contract>"


_ALL = (
    *(StoreCheck(name, run) for name, run in _store_checks.checks.items()),
    *(StoreCheck(name, run) for name, run in _store_time.checks.items()),
    *(StoreCheck(name, run) for name, run in _store_many.checks.items()),
    *(StoreCheck(name, run, "processes") for name, run in _store_race.checks.items()),
    *(StoreCheck(name, run, "cut") for name, run in _store_cut.checks.items()),
)

store_contract: StoreContract = StoreContract()
"""The contract of `rescope.workflow.Store`: `await store_contract(open_store)` runs it on a store of your own."""


def _bench(
    open_store: Opener | Store,
    advance: Callable[[float], object] | None,
    processes: int,
    cut: Callable[[], object] | None,
) -> Bench:
    return Bench(_opener(open_store), _async(advance), processes, _async(cut))


def _opener(given: object) -> Any:
    if callable(given):
        return given
    if isinstance(given, Store):
        return partial(nullcontext, given)
    msg = f"`open_store` must be a function that gives a store, or a store, not a {type(given).__qualname__}"
    raise TypeError(msg)


def _async(hook: Callable[..., object] | None) -> Callable[..., Awaitable[None]] | None:
    if hook is None:
        return None

    async def called(*args: object) -> None:
        done = hook(*args)
        if inspect.isawaitable(done):
            await done

    return called


def _first(exc: Exception) -> Exception:
    return _first(exc.exceptions[0]) if isinstance(exc, ExceptionGroup) else exc


def _reason(exc: Exception) -> str:
    return str(exc) if type(exc) is AssertionError else f"{type(exc).__name__}: {exc}"
