"""Durable functions: started once, tried until they end, each time with a fresh scope."""

from __future__ import annotations

import asyncio
import logging
import pickle
import threading
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from dbos import DBOS

from conftest import ASYNCIO_ONLY
from durable.conftest import until
from rescope import Err, Ok, ResourceCleanupError, Scope
from rescope.workflow.durable import (
    Durable,
    DurableCancelledError,
    DurableClosedError,
    Handle,
    KeyReusedError,
    Progress,
    RemoteError,
    _app,
    _attempts,
    _takeover,
    gather,
)
from rescope.workflow.durable._attempts import Policy, Work, _Run
from rescope.workflow.durable._children import Children, below
from rescope.workflow.durable._packing import same


class Unpicklable(Exception):
    """Takes two arguments and keeps one, so pickle can't make it again."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(one)


# One function


@pytest.mark.parametrize("anyio_backend", ASYNCIO_ONLY)
async def test_a_result_is_awaited_when_there_is_time(app: Durable) -> None:
    """`start` gives a handle while the work still runs; the result comes when it has ended, its scope closed."""
    log: list[str] = []
    may_end = anyio.Event()

    @app.function(namespace="orders.payment")
    async def charge(scope: Scope, order: str, cents: int) -> str:
        scope.defer(log.append, "closed")
        await may_end.wait()
        return f"{order}: {cents}"

    async with app:
        handle = await charge.start("order-7", 4980)
        running = await handle.status()
        may_end.set()

        assert running == "running"
        assert await handle.result() == "order-7: 4980"
        assert log == ["closed"]
        assert await handle.status() == "done"
        assert await app.handle(handle.id).result() == "order-7: 4980"
        assert (charge.name, handle.id.startswith("durable/4:shop/orders.payment.charge")) == (
            "orders.payment.charge",
            True,
        )
        assert repr(handle) == f"<Handle {handle.id}>"
        assert repr(charge) == "<DurableFunction orders.payment.charge>"


async def test_waiting_for_too_long_leaves_the_work_running(app: Durable) -> None:
    """A `TimeoutError` ends the waiting, as a cancellation does, and nothing else."""
    may_end = anyio.Event()

    @app.function(namespace="orders.payment")
    async def charge(scope: Scope) -> int:
        await may_end.wait()
        return 7

    async with app:
        handle = await charge.start()
        with pytest.raises(TimeoutError, match=r"is not at its end after 0\.01 s, and goes on"):
            await handle.result(timeout=0.01)
        with anyio.move_on_after(0.01):
            await handle.result()
        with pytest.raises(ValueError, match="`timeout` must be a finite number of seconds, 0 or more"):
            await handle.result(timeout=-1)
        may_end.set()

        assert await handle.result(timeout=float("inf")) == 7


async def test_what_is_there_is_given_however_short_the_time(app: Durable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work that has ended is never said to be running; a database that doesn't answer keeps nobody waiting."""

    @app.function(namespace="orders.payment")
    async def charge(scope: Scope, hang: bool) -> int:
        await (anyio.sleep_forever() if hang else anyio.lowlevel.checkpoint())
        return 7

    async def no_answer(*_: object) -> None:
        await anyio.sleep_forever()

    async with app:
        handle = await charge.start(False)  # noqa: FBT003
        await handle.result()

        assert [await handle.result(timeout=0), await app.handle(handle.id).result(timeout=0)] == [7, 7]
        with pytest.raises(LookupError):
            await app.handle("nobody").result(timeout=0)
        hanging = await charge.start(True)  # noqa: FBT003
        monkeypatch.setattr(_app, "_TO_ANSWER", 0.01)
        monkeypatch.setattr(Durable, "_status", no_answer)
        with pytest.raises(TimeoutError, match="is not at its end after 0 s"):
            await hanging.result(timeout=0)


async def test_every_attempt_gets_a_fresh_scope_unwound_before_the_next(
    app: Durable, caplog: pytest.LogCaptureFixture
) -> None:
    """What fails is tried again when all that it had opened is closed; each failed attempt is told by a WARNING."""
    log: list[str] = []
    scopes: list[Scope] = []

    @app.function(namespace="orders.payment", attempts=3, backoff=0)
    async def charge(scope: Scope) -> str:
        scopes.append(scope)
        number = len(scopes)

        async def close() -> None:
            await anyio.lowlevel.checkpoint()
            log.append(f"close {number}")

        scope.defer(close)
        scope.on_error(log.append, f"undo {number}")
        log.append(f"open {number}")
        if number < 3:
            raise ConnectionError("no route to host")
        return "charged"

    async with app:
        handle = await charge.start(key="1")

        assert await handle.result() == "charged"
    assert log == ["open 1", "undo 1", "close 1", "open 2", "undo 2", "close 2", "open 3", "close 3"]
    assert len(set(map(id, scopes))) == 3
    assert [record.getMessage() for record in caplog.records if record.name == "rescope"] == [
        f"{handle.id} failed in attempt {number} of 3: ConnectionError: no route to host" for number in (1, 2)
    ]


async def test_the_last_failure_is_raised_by_result_and_told(app: Durable, caplog: pytest.LogCaptureFixture) -> None:
    """After the last attempt its exception comes out, also for who asks later; a WARNING tells who doesn't ask."""

    @app.function(namespace="orders.payment", attempts=2, backoff=0.01)
    async def charge(scope: Scope) -> None:
        raise ConnectionError("no route to host")

    async with app:
        handle = await charge.start()
        with pytest.raises(ConnectionError, match="no route to host"):
            await handle.result()

        assert await handle.status() == "failed"
        with pytest.raises(ConnectionError, match="no route to host"):
            await app.handle(handle.id).result()
    assert "has failed for good, after 2 of 2 attempts: ConnectionError: no route to host" in caplog.text


async def test_an_attempt_that_takes_too_long_is_unwound_and_tried_again(app: Durable) -> None:
    """`timeout` cancels the body, the scope unwinds, the next attempt begins; the last one raises `TimeoutError`."""
    log: list[str] = []

    @app.function(namespace="orders.payment", attempts=2, backoff=0, timeout=0.02)
    async def charge(scope: Scope) -> None:
        log.append("open")
        scope.defer(log.append, "close")
        await anyio.sleep_forever()

    @app.function(namespace="orders.payment", attempts=1, timeout=60)
    async def refuse(scope: Scope) -> None:
        raise TimeoutError("the bank's own")

    async with app:
        with pytest.raises(TimeoutError, match=r"^it took longer than 0\.02 s$"):
            await (await charge.start()).result()
        with pytest.raises(TimeoutError, match="the bank's own"):
            await (await refuse.start()).result()
    assert log == ["open", "close"] * 2


async def test_a_body_that_has_ended_has_ended_in_time(app: Durable) -> None:
    """What it returned is the result, and what it raised its failure, though the scope takes longer to unwind."""
    log: list[str] = []

    @app.function(namespace="orders.payment", attempts=1, timeout=0.2)
    async def charge(scope: Scope, fail: bool) -> str:
        async def close() -> None:
            await anyio.sleep(0.3)
            log.append("closed")

        scope.defer(close)
        if fail:
            raise LookupError("no such customer")
        return "charged"

    async with app:
        handles = [await charge.start(fail) for fail in (False, True)]
        results = await gather(*handles)

    assert results[0] == Ok("charged")
    assert isinstance(results[1], Err)
    assert isinstance(results[1].error, LookupError)
    assert log == ["closed"] * 2


def test_pauses_double_up_to_the_largest() -> None:
    """The first pause is `backoff`, each next one twice as long, none longer than `max_backoff`."""
    policy = Policy("a.b.c", anyio.sleep, 10_000, 1.0, 60.0, None)

    assert [policy.pause(attempt) for attempt in (1, 2, 3, 6, 7, 9999)] == [1, 2, 4, 32, 60, 60]


async def test_a_returned_err_is_a_result(app: Durable) -> None:
    """It is given back, and not tried again; for the scope it counts as a failure."""
    log: list[str] = []

    @app.function(namespace="orders.payment")
    async def charge(scope: Scope) -> Ok[int] | Err[str]:
        scope.on_error(log.append, "undone")
        return Err("no such customer")

    async with app:
        assert await (await charge.start()).result() == Err("no such customer")
    assert log == ["undone"]


async def test_what_failed_only_in_its_cleanup_is_not_done_twice(app: Durable) -> None:
    """The `ResourceCleanupError` is the end of it, with the value in it; a body that failed too is tried again."""
    log: list[str] = []

    def lose() -> None:
        raise ConnectionError("the line is dead")

    @app.function(namespace="orders.payment", backoff=0)
    async def charge(scope: Scope, fail: bool) -> str:
        log.append("charge")
        scope.defer(lose)
        if fail:
            raise LookupError("no such customer")
        return "charged"

    async with app:
        with pytest.raises(ResourceCleanupError, match="the line is dead") as caught:
            await (await charge.start(False)).result()  # noqa: FBT003
        assert caught.value.original_result == Ok("charged")
        assert log == ["charge"]
        with pytest.raises(ResourceCleanupError):
            await (await charge.start(True)).result()  # noqa: FBT003
    assert log == ["charge"] * 4


# What is stored


async def test_every_attempt_gets_its_own_copy_of_the_arguments(app: Durable) -> None:
    """What an attempt, or the caller, does to them does not reach the next attempt."""
    seen: list[list[int]] = []

    @app.function(namespace="orders.payment", attempts=2, backoff=0)
    async def charge(scope: Scope, items: list[int]) -> list[int]:
        seen.append(list(items))
        items.append(2)
        if len(seen) == 1:
            raise ConnectionError
        return items

    async with app:
        items = [1]
        handle = await charge.start(items)
        items.append(9)

        assert await handle.result() == [1, 2]
    assert seen == [[1], [1]]


async def test_what_cannot_be_pickled_is_refused_at_the_call(app: Durable) -> None:
    """A `TypeError` names the function, nothing is started, and the value isn't shown."""

    @app.function(namespace="orders.payment")
    async def charge(scope: Scope, what: Any) -> None: ...

    start_anyhow: Any = charge.start
    async with app:
        for bad in (lambda: "secret", Unpicklable("secret", "two")):
            with pytest.raises(
                TypeError, match=r"^the arguments of orders\.payment\.charge can't be pickled"
            ) as caught:
                await charge.start(bad)
            assert "secret" not in str(caught.value)
        with pytest.raises(TypeError, match="too many positional arguments"):
            await start_anyhow(1, 2)
        assert await DBOS.list_workflows_async() == []


async def test_a_value_that_cannot_be_pickled_is_a_failure_that_is_not_tried_again(app: Durable) -> None:
    """What a function returns must survive a restart: else its end is a `TypeError` that says so."""
    log: list[str] = []

    @app.function(namespace="orders.payment", backoff=0)
    async def charge(scope: Scope) -> Any:
        log.append("charged")
        return lambda: None

    async with app:
        with pytest.raises(TypeError, match=r"what orders\.payment\.charge returned, a function, can't be pickled"):
            await (await charge.start()).result()
    assert log == ["charged"]


async def test_an_exception_that_cannot_be_pickled_comes_as_a_remote_error(app: Durable) -> None:
    """With its type and message, and the attempts go on as with any other."""
    log: list[str] = []

    @app.function(namespace="orders.payment", attempts=2, backoff=0)
    async def charge(scope: Scope) -> None:
        log.append("tried")
        raise Unpicklable("no route", "to host")

    async with app:
        with pytest.raises(RemoteError, match=r"^Unpicklable: no route$") as caught:
            await (await charge.start()).result()
    assert caught.value.kind == "Unpicklable"
    assert str(pickle.loads(pickle.dumps(caught.value))) == "Unpicklable: no route"  # noqa: S301
    assert log == ["tried"] * 2


async def test_everybody_who_waits_gets_a_copy(app: Durable) -> None:
    """What one of them does to the result reaches no other, also where the work ran in this process."""

    @app.function(namespace="orders.payment")
    async def charge(scope: Scope) -> list[int]:
        return [1]

    async with app:
        handle = await charge.start()
        (await handle.result()).append(2)

        assert [await handle.result(), await app.handle(handle.id).result()] == [[1], [1]]


def test_errors_survive_a_restart() -> None:
    """Those of our own are the same when they were pickled and read again."""
    for error in (DurableCancelledError("7"), KeyReusedError("7"), RemoteError("KeyError", "no key")):
        again = pickle.loads(pickle.dumps(error))  # noqa: S301
        assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


# Keys


async def test_the_same_key_gives_the_same_work(app: Durable, url: str) -> None:
    """Started twice at once, after its end, and when all was closed and opened again: it runs once."""
    log: list[str] = []

    @app.function(namespace="orders.payment")
    async def charge(scope: Scope, order: str) -> str:
        log.append(order)
        return f"{order} charged"

    async with app:
        first, second = await asyncio.gather(charge.start("a", key="k"), charge.start("a", key="k"))
        results = [await first.result(), await second.result()]
    async with app:
        third = await charge.start("a", key="k")
        results.append(await third.result())

    assert results == ["a charged"] * 3
    assert first.id == second.id == third.id == "durable/4:shop/orders.payment.charge=k"
    assert log == ["a"]


async def test_a_start_that_is_cancelled_is_a_start(app: Durable) -> None:
    """Who was cancelled while starting can't know how far it got; so it always gets to its end."""
    log: list[str] = []

    @app.function(namespace="orders.payment")
    async def charge(scope: Scope) -> None:
        log.append("charged")

    async with app:
        task = asyncio.create_task(charge.start())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})

        assert task.cancelled()
        await until(lambda: log == ["charged"])


async def test_a_key_with_other_arguments_is_refused(app: Durable) -> None:
    """It is told by an error that names the work, and what was started with the key is as it was."""

    @app.function(namespace="orders.payment")
    async def charge(scope: Scope, cents: Any) -> Any:
        return cents

    async with app:
        handle = await charge.start(100, key="order-7")
        with pytest.raises(KeyReusedError, match=r"charge=order-7 was given with other arguments before") as caught:
            await charge.start(200, key="order-7")

        assert caught.value.id == handle.id
        assert await handle.result() == 100
        with pytest.raises(ValueError, match="must not be empty"):
            await charge.start(1, key="")


async def test_keys_belong_to_a_function_of_an_application(app: Durable, url: str) -> None:
    """The same key for another function, or in an application of another name, is another work."""
    other = Durable(url=url, name="Shop/2")

    @app.function(namespace="orders.payment")
    async def charge(scope: Scope) -> str:
        return "charged"

    @app.function(namespace="orders.payment")
    async def refund(scope: Scope) -> str:
        return "refunded"

    async def charge_elsewhere(scope: Scope) -> str:
        return "charged elsewhere"

    charge_elsewhere.__name__ = "charge"
    elsewhere = other.function(namespace="orders.payment")(charge_elsewhere)
    results = []
    async with app:
        results += [await (await function.start(key="7")).result() for function in (charge, refund)]
    async with other:
        results.append(await (await elsewhere.start(key="7")).result())

    assert results == ["charged", "refunded", "charged elsewhere"]


async def test_arguments_that_cannot_be_compared_are_compared_as_they_are_stored(app: Durable) -> None:
    """As with arrays, which compare by element."""

    @app.function(namespace="orders.payment")
    async def charge(scope: Scope, what: Any) -> None: ...

    async with app:
        await charge.start(Array([1, 2]), key="k")
        again = await charge.start(Array([1, 2]), key="k")
        with pytest.raises(KeyReusedError):
            await charge.start(Array([1, 3]), key="k")

        assert again.id.endswith("=k")


def test_what_is_equal_is_the_same_wherever_it_is_kept() -> None:
    """Two equal strings in a value count the same as one that is there twice; a value that holds itself is compared."""
    one, other = str(b"ab", "ascii"), str(b"ab", "ascii")
    ring, ring_2 = Plain(0), Plain(0)
    ring.values, ring_2.values = [ring], [ring_2]

    assert same(Plain(one, one), Plain(one, other))
    assert same(ring, ring_2)
    assert not same(ring, Plain(ring))
    assert not same(Plain(1), Plain(2))


class Plain:
    """Says nothing about when two of it are equal."""

    def __init__(self, *values: object) -> None:
        self.values: Any = values


async def reached(handle: Handle[Any], progress: Progress) -> bool:
    return await handle.progress() == progress


class Array(list[int]):
    """Refuses to be compared."""

    __hash__ = None

    def __eq__(self, other: object) -> bool:
        raise ValueError("the truth value of an array is ambiguous")


# Functions that start others


async def test_an_attempt_that_is_made_again_finds_what_the_last_one_had_done(app: Durable) -> None:
    """What ended well is not run again, what failed is; two calls with the same arguments stay two."""
    log: list[str] = []

    @app.function(namespace="orders.step", attempts=1)
    async def step(scope: Scope, name: str) -> str:
        log.append(name)
        if name == "ship" and log.count("ship") == 1:
            raise ConnectionError("no route to host")
        return f"{name} {len(log)}"

    @app.function(namespace="orders.order", attempts=2, backoff=0)
    async def order(scope: Scope) -> list[str]:
        log.append("order")
        return [await (await step.start(name)).result() for name in ("pack", "pack", "ship")]

    async with app:
        assert await (await order.start()).result() == ["pack 2", "pack 3", "ship 6"]
    assert log == ["order", "pack", "pack", "ship", "order", "ship"]


async def test_a_chain_goes_on_where_it_was_when_the_application_closed(app: Durable) -> None:
    """After a restart, what had ended isn't run again, what was cut short is, and the order of starting is free."""
    log: list[str] = []
    open_again = False

    @app.function(namespace="orders.step")
    async def step(scope: Scope, name: str) -> str:
        log.append(name)
        scope.defer(log.append, f"close {name}")
        if name == "ship" and not open_again:
            await anyio.sleep_forever()
        return name.upper()

    @app.function(namespace="orders.order")
    async def order(scope: Scope) -> list[str]:
        log.append("order")
        scope.defer(log.append, "close order")
        names = ["pack", "charge", "ship"]
        handles = {name: await step.start(name) for name in (names if not open_again else reversed(names))}
        return [await handles[name].result() for name in names]

    async with app:
        handle = await order.start()
        await until(partial(reached, handle, Progress(3, 2, 0)))
        assert (await handle.progress()).running == 1
    cut = log.copy()
    open_again = True
    async with app:
        assert await app.handle(handle.id).result() == ["PACK", "CHARGE", "SHIP"]

    assert sorted(cut[-2:]) == ["close order", "close ship"]
    assert sorted(log[len(cut) :]) == ["close order", "close ship", "order", "ship"]


async def test_what_is_started_after_a_restart_is_new(app: Durable) -> None:
    """It isn't taken for what the same attempt had started before, of the same function."""
    log: list[int] = []
    open_again = False

    @app.function(namespace="orders.step")
    async def step(scope: Scope, number: int) -> int:
        log.append(number)
        return number * 10

    @app.function(namespace="orders.order")
    async def order(scope: Scope) -> list[int]:
        results = [await (await step.start(0)).result()]
        if not open_again:
            log.append(-1)
            await anyio.sleep_forever()
        return [*results, await (await step.start(1)).result(), await (await step.start(2)).result()]

    async with app:
        handle = await order.start()
        await until(lambda: log == [0, -1])
    open_again = True
    async with app:
        assert await handle.result() == [0, 10, 20]
    assert log == [0, -1, 1, 2]


async def test_what_another_one_has_started_is_never_taken_for_ones_own(app: Durable) -> None:
    """Keys that differ in a capital letter, or in what a database takes for a wildcard, are different parents."""
    log: list[str] = []

    @app.function(namespace="orders.step")
    async def step(scope: Scope) -> int:
        log.append("step")
        return len(log)

    @app.function(namespace="orders.order", attempts=2, backoff=0)
    async def order(scope: Scope, key: str) -> int:
        if key not in log:
            log.append(key)
            raise ConnectionError  # the first attempt of a start knows that nothing was started before
        return await (await step.start()).result()

    async with app:
        keys = ["A_", "a_", "a%", "ab"]
        handles = [await order.start(key, key=key) for key in keys]
        results = [await handle.result() for handle in handles]

        assert len(set(results)) == len(keys)
        assert [await handle.progress() for handle in handles] == [Progress(1, 1, 0)] * 4
    assert log.count("step") == 4


def test_ids_stay_short_enough_for_an_index() -> None:
    """However deep functions start others, an id stays below the 2700 bytes that PostgreSQL can index."""
    ids = ["durable/4:shop/orders.payment.charge=" + "k" * 400]
    for depth in range(100):
        ids.append(f"{below(ids[-1])}1.{depth}:orders.payment.charge")

    assert max(map(len, ids)) < 600
    assert below("a" * 400) != below("a" * 401)
    assert below("7") == ">1:7/"


async def test_many_are_gathered_also_where_some_fail(app: Durable) -> None:
    """`gather` gives an `Ok` or `Err` for each, in their order, and tells how far it is."""
    told: list[tuple[int, int]] = []

    @app.function(namespace="images.resize", attempts=1)
    async def resize(scope: Scope, image: int) -> int:
        if image % 3 == 2:
            raise ValueError("no image")
        return image * 10

    @app.function(namespace="images.album", attempts=1)
    async def album(scope: Scope, images: int) -> list[int | str]:
        handles = await asyncio.gather(*(resize.start(image) for image in range(images)))
        results = await gather(*handles)
        return [result.value if isinstance(result, Ok) else str(result.error) for result in results]

    async with app:
        handle = await album.start(5)
        single = await resize.start(1)

        assert await handle.result() == [0, 10, "no image", 30, 40]
        assert await handle.progress() == Progress(total=5, done=4, failed=1)
        results: list[Any] = await gather(single, handle, on_progress=lambda *now: told.append(now))
        assert [result.ok for result in results] == [True, True]
    assert told == [(1, 2), (2, 2)]


async def test_two_that_count_alike_never_get_each_others_work() -> None:
    """A process that was taken for dead may go on with an attempt that another one makes again, and start others."""
    first, other = (Children("order=7", 1, first=True) for _ in range(2))
    ids = [await first.id_for("a.b.c", (1,)), await other.id_for("a.b.c", (2,)), await other.id_for("a.b.c", (1,))]

    assert len(set(ids)) == 3
    assert [id_.partition(":a.b.c~")[0] for id_ in ids] == [f">7:order=7/1.{number}" for number in (1, 1, 2)]


async def test_what_is_no_handle_is_not_gathered(app: Durable) -> None:
    """A list of handles, or an async callback, is a mistake that is told at the call; so is an id that is none."""
    gather_anyhow: Any = gather

    async def progress(ended: int, count: int) -> None: ...

    with pytest.raises(TypeError, match=r"takes handles, as `gather\(\*handles\)`.* not a list"):
        await gather_anyhow([app.handle("7")])
    with pytest.raises(TypeError, match="`on_progress` must be a plain function"):
        await gather_anyhow(app.handle("7"), on_progress=progress)
    with pytest.raises(TypeError, match="`id` must be a string, as that of a handle, not a int"):
        app.handle(7)  # type: ignore[arg-type]
    assert await gather_anyhow() == []


async def test_what_outlives_its_attempt_starts_work_of_its_own(app: Durable) -> None:
    """A task that an attempt left behind is no part of it any more."""
    tasks: list[asyncio.Task[Any]] = []
    over = anyio.Event()

    @app.function(namespace="orders.step")
    async def step(scope: Scope) -> None: ...

    @app.function(namespace="orders.order")
    async def order(scope: Scope) -> None:
        async def later() -> str:
            await over.wait()
            return (await step.start()).id

        tasks.append(asyncio.create_task(later()))

    async with app:
        await (await order.start()).result()
        over.set()

        assert (await tasks[0]).startswith("durable/4:shop/orders.step.step~")


# Cancelling and closing


async def test_a_cancel_of_the_engine_unwinds_the_scope(app: Durable) -> None:
    """Its closers run to their ends, none as a step that the engine would refuse; `result` says it was cancelled."""
    log: list[str] = []
    started = anyio.Event()

    @app.function(namespace="orders.payment")
    async def charge(scope: Scope) -> None:
        async def close() -> None:
            await anyio.sleep(0.01)
            log.append(f"{(await refund.start(key='7')).id.rpartition('.')[2]}, close")

        scope.defer(close)
        started.set()
        await anyio.sleep_forever()

    @app.function(namespace="orders.payment")
    async def refund(scope: Scope) -> None: ...

    async with app:
        handle = await charge.start()
        await started.wait()
        await DBOS.cancel_workflow_async(handle.id)
        with pytest.raises(DurableCancelledError, match="was cancelled") as caught:
            await handle.result()

        assert caught.value.id == handle.id
        assert await handle.status() == "cancelled"
        await until(lambda: log == ["refund=7, close"])
    assert log == ["refund=7, close"]


async def test_a_cancel_of_asyncio_leaves_the_work_for_later(app: Durable) -> None:
    """What runs is unwound; when the application opens again, the attempt is made again with a fresh scope."""
    log: list[str] = []
    tasks: list[asyncio.Task[Any]] = []

    @app.function(namespace="orders.payment")
    async def charge(scope: Scope) -> str:
        scope.add(object(), lambda: log.append("close"))
        log.append("open")
        task = asyncio.current_task()
        assert task is not None
        tasks.append(task)
        if len(tasks) == 1:
            await anyio.sleep_forever()
        return "charged"

    async with app:
        handle = await charge.start()
        await until(lambda: len(tasks) == 1)
        tasks[0].cancel()
        with pytest.raises(DurableClosedError):
            await handle.result()
        assert log == ["open", "close"]
        assert await handle.status() == "running"
    async with app:
        assert await app.handle(handle.id).result() == "charged"
    assert log == ["open", "close"] * 2


async def test_a_cancellation_that_nobody_asked_for_is_a_failure(app: Durable) -> None:
    """A body that raises what is no `Exception`, also in a group, has failed, and is not pending for ever."""

    class Stop(BaseException): ...

    raised: list[BaseException] = [
        asyncio.CancelledError(),
        Stop(),
        BaseExceptionGroup("two", [asyncio.CancelledError(), ValueError()]),
    ]

    @app.function(namespace="orders.payment", attempts=1)
    async def charge(scope: Scope, number: int) -> None:
        raise raised[number]

    async with app:
        for number, exc in enumerate(raised):
            with pytest.raises(RuntimeError, match=f"raised a {type(exc).__name__}, and nobody had cancelled it"):
                await (await charge.start(number)).result()


async def test_what_ends_the_process_is_no_failure() -> None:
    """It comes out as it is, so the attempt is one that was cut short."""

    async def leave(scope: Scope) -> None:
        raise SystemExit(3)

    run = _Run(Policy("a.b.c", leave, 1, 0, 0, None), ())
    with pytest.raises(SystemExit):
        await Work()._attempt(run, Children("7", 1, first=True))

    assert run.again


async def test_what_lost_its_task_is_taken_up_again(
    url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the same process, while it is open; what runs there is left alone, and a WARNING says so."""
    monkeypatch.setattr(_takeover, "_LOST_AFTER", 0.4)
    app = Durable(url=url, name="shop", recover_every=0.05)
    tasks: dict[str, list[asyncio.Task[Any] | None]] = {"a": [], "b": []}
    may_end = anyio.Event()

    @app.function(namespace="orders.payment")
    async def charge(scope: Scope, order: str) -> str:
        tasks[order].append(asyncio.current_task())
        await (anyio.sleep_forever() if tasks["a"][1:] == [] else may_end.wait())
        return f"{order} charged"

    async with app:
        handle = await charge.start("a")
        await until(lambda: len(tasks["a"]) == 1)
        lost = tasks["a"][0]
        assert lost is not None
        lost.cancel()
        await until(lambda: len(tasks["a"]) == 2)
        other = await charge.start("b")
        may_end.set()

        assert await app.handle(handle.id).result() == "a charged"
        assert await other.result() == "b charged"
    assert list(map(len, tasks.values())) == [2, 1]
    told = [record.getMessage() for record in caplog.records if record.name == "rescope"]
    assert told == [f"{handle.id} did not come to its end in this process, and is taken up again"]


async def test_what_is_cut_short_again_and_again_fails(app: Durable, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ends its process each time does so for a hundred times; what waits for it goes on, and is told."""
    monkeypatch.setattr(_attempts, "_CUTS", 2)
    log: list[str] = []

    @app.function(namespace="orders.payment", attempts=3)
    async def charge(scope: Scope) -> None:
        log.append("charge")
        await anyio.sleep_forever()

    @app.function(namespace="orders.order", attempts=1)
    async def order(scope: Scope) -> str:
        try:
            await (await charge.start()).result()
        except RuntimeError as exc:
            return str(exc)
        return ""

    async with app:
        handle = await order.start()
        await until(lambda: len(log) == 1)
    async with app:
        await until(lambda: len(log) == 2)
    async with app:
        said = await handle.result()

    assert said == "attempt 1 was cut short 2 times in a row, and may be what ends the process"
    assert log == ["charge"] * 2


@pytest.mark.parametrize(("soon", "plan"), [(0.0, "cut cut cut end"), (3600.0, "cut fail cut end")])
async def test_what_is_cut_short_now_and_then_goes_on(
    app: Durable, monkeypatch: pytest.MonkeyPatch, soon: float, plan: str
) -> None:
    """As what is always at work, where each release closes the application; and each attempt counts for itself."""
    monkeypatch.setattr(_attempts, "_CUTS", 2)
    monkeypatch.setattr(_attempts, "_SOON", soon)
    steps = plan.split()
    made: list[str] = []

    @app.function(namespace="orders.payment", attempts=2, backoff=0)
    async def charge(scope: Scope) -> str:
        made.append(steps[len(made)])
        if made[-1] == "fail":
            raise ConnectionError
        if made[-1] == "cut":
            await anyio.sleep_forever()
        return "charged"

    for number in (number for number, step in enumerate(steps, 1) if step != "fail"):
        async with app:
            handle = await charge.start(key="k")
            await until(lambda number=number: len(made) == number)  # type: ignore[misc]
            if made[-1] == "end":
                assert await handle.result() == "charged"
    assert made == steps


async def test_what_a_body_makes_of_the_closing_is_no_failure(app: Durable) -> None:
    """One that turns its cancellation into an error has not failed: it is made again when the application opens."""
    log: list[str] = []

    @app.function(namespace="orders.payment", attempts=1)
    async def charge(scope: Scope) -> str:
        log.append("open")
        if len(log) == 1:
            try:
                await anyio.sleep_forever()
            except asyncio.CancelledError:
                raise ConnectionError("interrupted") from None
        return "charged"

    async with app:
        handle = await charge.start()
        await until(lambda: log == ["open"])
    async with app:
        assert await handle.result() == "charged"
    assert log == ["open"] * 2


async def test_opening_again_and_again_leaves_nothing(app: Durable) -> None:
    """No thread, no open file."""
    left = []

    @app.function(namespace="orders.payment")
    async def charge(scope: Scope) -> None: ...

    for _ in range(3):
        async with app:
            await (await charge.start()).result()
        left.append((threading.active_count(), open_files()))

    assert left[1] == left[2]


def open_files() -> int:
    """Count them, where the system tells."""
    told = Path("/proc/self/fd")
    return len(list(told.iterdir())) if told.exists() else 0


async def test_context_variables_do_not_reach_a_body(app: Durable) -> None:
    """After a restart they would be gone, so they are never there."""
    variable = ContextVar("variable", default="nobody's")

    @app.function(namespace="orders.payment")
    async def charge(scope: Scope) -> str:
        return variable.get()

    variable.set("the caller's")
    async with app:
        assert await (await charge.start()).result() == "nobody's"


async def test_closing_unwinds_what_runs_and_tells_who_waits(app: Durable) -> None:
    """Bodies are cancelled, pauses cut, waiters get `DurableClosedError`; all goes on when it opens again."""
    log: list[str] = []

    @app.function(namespace="orders.payment", attempts=2, backoff=0.5)
    async def charge(scope: Scope, fail: bool) -> str:
        log.append("open")
        scope.defer(log.append, "close")
        if fail and len(log) < 3:
            raise ConnectionError
        if len(log) < 6:
            await anyio.sleep_forever()
        return "charged"

    async def wait(handle: Any) -> None:
        with pytest.raises(DurableClosedError, match="was closed meanwhile, or the task cancelled: the work goes on"):
            await gather(handle)
        log.append("told")

    async with anyio.create_task_group() as tasks, app:
        failing = await charge.start(True)  # noqa: FBT003
        await until(lambda: len(log) == 2)
        hanging = await charge.start(False)  # noqa: FBT003
        tasks.start_soon(wait, hanging)
        await until(lambda: len(log) == 3)
    assert sorted(log) == ["close", "close", "open", "open", "told"]
    log.append("again")
    async with app:
        assert await failing.result() == "charged"  # the handles that were given before
        assert await hanging.result() == "charged"
    assert log.count("open") == log.count("close") == 4


async def test_work_that_another_process_took_is_left_to_that_one(
    app: Durable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What this one made of it is not written, and closing doesn't wait for the other."""
    monkeypatch.setattr(_attempts, "_TO_WRITE", 0.05)
    tries: list[anyio.Event] = []

    @app.function(namespace="orders.payment")
    async def charge(scope: Scope) -> int:
        number = len(tries)
        tries.append(anyio.Event())
        await tries[-1].wait()
        return number

    async with app:
        handle = await charge.start()
        await until(lambda: len(tries) == 1)
        await DBOS.resume_workflow_async(handle.id)  # as another process does, that takes this one for dead
        await until(lambda: waits_for_its_turn(app, handle))
        assert len(tries) == 1  # it waits until the one that runs has unwound its scope
        tries[0].set()
        await until(lambda: len(tries) == 2)
        with pytest.raises(TimeoutError):
            await handle.result(timeout=0.3)
    await anyio.wait_all_tasks_blocked()
    assert [task for task in asyncio.all_tasks() if "execute_workflow" in repr(task.get_coro())] == []


def waits_for_its_turn(app: Durable, handle: Handle[Any]) -> bool:
    """Whether an attempt of this work waits in this process until another one of it is unwound."""
    assert app._work is not None
    lock: Any = app._work._turns.get(handle.id)
    return lock is not None and bool(lock._waiters)


async def test_what_was_cancelled_and_resumed_waits_until_all_is_unwound(app: Durable) -> None:
    """Also where the closers take their time: the next attempt begins when the scope of the last one is closed."""
    log: list[str] = []
    may_close = anyio.Event()

    @app.function(namespace="orders.payment")
    async def charge(scope: Scope) -> str:
        async def close() -> None:
            log.append("closing")
            await may_close.wait()
            log.append("closed")

        scope.defer(close)
        log.append("open")
        if log.count("open") == 1:
            await anyio.sleep_forever()
        return "charged"

    async with app:
        handle = await charge.start()
        await until(lambda: log == ["open"])
        await DBOS.cancel_workflow_async(handle.id)
        await until(lambda: log[-1] == "closing")
        await DBOS.resume_workflow_async(handle.id)
        await until(lambda: waits_for_its_turn(app, handle))
        assert log == ["open", "closing"]
        may_close.set()

        assert await handle.result() == "charged"
    assert log == ["open", "closing", "closed"] * 2


async def test_a_new_release_goes_on_with_the_work_of_the_last(app: Durable, url: str) -> None:
    """Another program, with other functions beside: the version under which work is stored stays the same."""
    release = Durable(url=url, name="shop")

    @app.function(namespace="orders.payment")
    async def charge(scope: Scope, cents: int) -> None:
        await anyio.sleep_forever()

    async def charge_better(scope: Scope, cents: int) -> str:
        return f"charged {cents}"

    async def refund(scope: Scope) -> None: ...

    charge_better.__name__ = "charge"
    release.function(namespace="orders.payment")(charge_better)
    release.function(namespace="orders.payment")(refund)
    async with app:
        handle = await charge.start(100)
    async with release:
        assert await release.handle(handle.id).result() == "charged 100"


async def test_a_cancellation_of_the_program_leaves_nothing_open(app: Durable) -> None:
    """The scope of what runs is unwound, the engine stopped, the cancellation raised; then it can be opened again."""
    log: list[str] = []

    @app.function(namespace="orders.payment")
    async def charge(scope: Scope) -> None:
        async def close() -> None:
            await anyio.lowlevel.checkpoint()
            log.append("closed")

        scope.defer(close)
        log.append("open")
        await anyio.sleep_forever()

    async def main() -> None:
        async with app:
            await charge.start()
            await anyio.sleep_forever()

    task = asyncio.create_task(main())
    await until(lambda: log == ["open"])
    task.cancel()
    await asyncio.wait({task})

    assert task.cancelled()
    assert log == ["open", "closed"]
    async with app:
        await until(lambda: len(log) == 3)
    assert log == ["open", "closed"] * 2


async def test_a_function_may_be_registered_while_it_is_open(app: Durable) -> None:
    """It works at once."""
    async with app:

        @app.function(namespace="orders.payment")
        async def charge(scope: Scope) -> str:
            return "charged"

        assert await (await charge.start()).result() == "charged"


async def test_no_body_begins_when_it_is_closing() -> None:
    """One whose turn comes too late is left for the next time, also where it would end at once."""
    log: list[str] = []
    work = Work()
    await work.stop()

    async def charge(scope: Scope) -> None:
        log.append("charged")

    run = _Run(Policy("a.b.c", charge, 1, 0, 0, None), ())
    task = asyncio.create_task(work._attempt(run, Children("7", 1, first=True)))
    await asyncio.wait({task}, timeout=20)

    assert task.cancelled()
    assert log == []


async def test_nothing_works_when_it_is_not_open(app: Durable) -> None:
    """A `DurableClosedError` says so, and threads of asyncio work as before."""

    @app.function(namespace="orders.payment")
    async def charge(scope: Scope) -> None: ...

    with pytest.raises(DurableClosedError, match=r"<Durable 'shop'> is not open: do this inside of its `async with`"):
        await charge.start()
    async with app:
        handle = await charge.start()
        for asked in (app.handle("nobody").status, app.handle("nobody").result):
            with pytest.raises(LookupError, match="nothing was ever started as nobody"):
                await asked()
    with pytest.raises(DurableClosedError):
        await handle.result()
    assert await asyncio.to_thread(lambda: "works") == "works"


async def test_no_log_holds_an_argument(app: Durable, caplog: pytest.LogCaptureFixture) -> None:
    """Not ours, and not the engine's, whatever becomes of the work."""
    caplog.set_level(logging.DEBUG)
    started = anyio.Event()

    @app.function(namespace="orders.payment", attempts=1)
    async def charge(scope: Scope, password: str) -> None:
        if password == "secret-1":  # noqa: S105
            raise KeyError(password)
        started.set()
        await anyio.sleep_forever()

    async with app:
        with pytest.raises(KeyError):
            await (await charge.start("secret-1")).result()
        await charge.start("secret-2")
        await started.wait()
    assert "secret" not in "".join(record.getMessage() for record in caplog.records)
    assert "has failed for good, after 1 of 1 attempts: KeyError" in caplog.text
