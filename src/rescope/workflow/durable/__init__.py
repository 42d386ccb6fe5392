"""Durable functions: once started, they run to their end, whatever becomes of the process.

    app = Durable(url="sqlite:///jobs.db", name="shop")

    @app.function(namespace="orders.payment", attempts=3)
    async def charge(scope, order, cents):
        bank = await scope.enter(connect_to_bank())
        return await bank.charge(order, cents)

    async with app:
        handle = await charge.start("order-7", 4980, key="order-7")
        receipt = await handle.result()

The engine is DBOS (Qian et al., "DBOS: A DBMS-oriented operating system", VLDB 2022), which keeps in a database what
was started and what came out. The fit to scopes is made here:

- A start is one workflow of the engine, and each attempt is one step of it. The scope of an attempt opens and closes
  inside that step, so acquire and release are never remembered apart. An attempt that was cut short (a crash, a
  cancellation of either kind, the end of the application) leaves no trace but what its scope has unwound, and is made
  again with a fresh scope. One that ended, well or not, is remembered. That one was cut short is remembered too, when
  it is to be made again: what ends its process each time is given up after a hundred times in a row.
- Pauses between attempts are durable: a restart waits for the rest.
- What a function starts is found again after a crash, by its function and its arguments: `_children`. Nothing
  that has ended well is run again.
- Ids hold the names of the application and of the function, so keys of two functions never meet.
- Each process is an executor under a name of its own, with a lock that dies with it: `_locks`. Whoever gets the
  lock of another takes over what that one left: at its own start, and every few seconds. What was lost in the process
  itself it takes up as well. The version under which work is stored is always the same, so a new release goes on with
  it.
- What is started runs at once, without a queue. What is taken over goes through one that is asked five times a second.

The engine is at home on asyncio alone.
"""

from __future__ import annotations

from importlib import import_module

try:
    import_module("dbos")
except ImportError as _missing:
    msg = "rescope.workflow.durable needs DBOS: pip install 'rescope[durable]'"
    raise ImportError(msg, name=_missing.name) from _missing

from rescope.workflow.durable._app import Durable, DurableFunction
from rescope.workflow.durable._handle import (
    DurableCancelledError,
    DurableClosedError,
    Handle,
    KeyReusedError,
    Progress,
    gather,
)
from rescope.workflow.durable._packing import RemoteError

__all__ = [
    "Durable",
    "DurableCancelledError",
    "DurableClosedError",
    "DurableFunction",
    "Handle",
    "KeyReusedError",
    "Progress",
    "RemoteError",
    "gather",
]
