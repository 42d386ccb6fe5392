"""What durable functions give, as type checkers see it."""

from __future__ import annotations

from typing import Any, Literal, assert_type

from rescope import Err, Ok, Result, Scope
from rescope.workflow.durable import (
    Durable,
    DurableCancelledError,
    DurableFunction,
    Handle,
    KeyReusedError,
    Progress,
    RemoteError,
    gather,
)

app = Durable(url="sqlite:///jobs.db", name="shop", recover_every=5)


@app.function(namespace="orders.mail")
async def sweep(scope: Scope) -> None: ...


@app.function(namespace="orders.payment", attempts=3, backoff=1.0, max_backoff=3600, timeout=60)
async def charge(scope: Scope, order: str) -> int:
    return scope.add(len(order), print)


@app.function(namespace="orders.payment", timeout=None)
async def refund(scope: Scope, order: str, cents: int) -> Result[int, LookupError]:
    return Ok(cents) if order else Err(LookupError())


@app.function(namespace="orders.step")
async def ship(scope: Scope, order: str, boxes: int = 1) -> list[str]:
    return [order] * boxes


async def functions() -> None:
    """A function keeps the types of its arguments and of what it returns; its scope isn't one of them."""
    assert_type(sweep, DurableFunction[None])
    assert_type(charge, DurableFunction[str, int])
    assert_type(refund, DurableFunction[str, int, Result[int, LookupError]])
    assert_type(ship, DurableFunction[str, int, list[str]])
    assert_type(charge.name, str)


async def starting() -> None:
    """`start` takes these arguments and a key, and gives a handle of what comes out."""
    assert_type(await sweep.start(), Handle[None])
    assert_type(await charge.start("order-7", key="order-7"), Handle[int])
    assert_type(await refund.start("order-7", 4980, key=None), Handle[Result[int, LookupError]])
    assert_type(await ship.start("order-7", 2), Handle[list[str]])


async def refused() -> None:
    """What doesn't fit is an error before it runs. A default can't be left out, as types can't say so yet."""
    await charge.start()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await charge.start(7)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await charge.start("order-7", key=7)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await charge.start(order="order-7")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await ship.start("order-7")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


async def waiting(handle: Handle[int]) -> None:
    """A handle gives what the function returned, and how it stands."""
    assert_type(await handle.result(), int)
    assert_type(await handle.result(timeout=5), int)
    assert_type(await handle.status(), Literal["running", "done", "failed", "cancelled"])
    assert_type(await handle.progress(), Progress)
    assert_type((await handle.progress()).running, int)
    assert_type(handle.id, str)
    assert_type(app.handle("id"), Handle[Any])
    assert_type(await (await refund.start("order-7", 1)).result(), Ok[int] | Err[LookupError])


async def gathering(one: Handle[int], other: Handle[int], mail: Handle[None]) -> None:
    """The results of handles of one type are of that type; those of several are of either."""
    results = await gather(one, other, on_progress=divmod)
    assert_type(results, list[Ok[int] | Err[Exception]])
    assert_type([result.value for result in results if isinstance(result, Ok)], list[int])
    either: list[Ok[int | None] | Err[Exception]] = await gather(one, mail)
    whatever: Handle[int | None] = one
    assert_type(await gather(whatever, mail), list[Ok[int | None] | Err[Exception]])
    assert either


async def opened() -> None:
    """Entering gives the application."""
    async with app as entered:
        assert_type(entered, Durable)


def errors(cancelled: DurableCancelledError, reused: KeyReusedError, remote: RemoteError) -> None:
    """They say what they are about."""
    assert_type(cancelled.id, str)
    assert_type(reused.id, str)
    assert_type(remote.kind, str)
    assert_type(remote.message, str)


async def scopeless() -> None: ...


def plain(scope: Scope) -> None: ...


app.function(namespace="a.b")(scopeless)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
app.function(namespace="a.b")(plain)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
app.function(attempts=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
Durable("sqlite:///jobs.db", "shop")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
