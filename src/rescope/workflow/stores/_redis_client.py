"""What `RedisStore` asks of redis-py: one command on one connection, once; and whether its client was closed."""

from __future__ import annotations

from asyncio import CancelledError
from contextlib import suppress
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

PATIENCE: Final = 5.0
"""How long a cancellation waits for the answer."""

_closed: WeakKeyDictionary[object, bool] = WeakKeyDictionary()
"""The clients and pools that are looked at, and whether they have been closed."""


def note_when_closed(client: Any) -> None:
    """Note when a client is closed, from now on, or the pool that it closes.

    redis-py has no such state: who goes on using a client connects again, and nobody closes that connection. The pool
    is looked at too, as somebody, a scope say, may hold the `aclose` of the client already.
    """
    for one in (client, getattr(client, "connection_pool", client)):
        if one not in _closed:
            _closed[one] = False
            one.aclose = partial(_close, one, one.aclose)


def is_closed(client: Any) -> bool:
    return any(_closed.get(one) for one in (client, getattr(client, "connection_pool", None)) if one is not None)


async def _close(one: Any, close: Callable[..., Awaitable[None]], *args: Any, **options: Any) -> None:
    _closed[one] = True
    vars(one).pop("aclose", None)  # which refers to it: so it is gone with its last user
    await close(*args, **options)


async def sent_once(connection: Any, command: bytes) -> Any:
    """Send a command, and read its answer as bytes, whatever the client makes of answers.

    Where it is cancelled, the answer is waited for all the same: else what was cancelled could still be done later.
    """
    await connection.send_packed_command(command)
    try:
        return await connection.read_response(disable_decoding=True, disconnect_on_error=False)
    except CancelledError:
        from anyio import move_on_after

        with move_on_after(PATIENCE, shield=True), suppress(Exception):
            await connection.read_response(disable_decoding=True)
        raise
    except BaseException as exc:
        from redis.exceptions import ResponseError

        if not isinstance(exc, ResponseError):
            await connection.disconnect(nowait=True)
        raise


def packed(*parts: bytes) -> bytes:
    """Write parts of a command as the protocol has it. redis-py, which takes more than bytes, needs longer for that."""
    return b"".join([b"$%d\r\n%b\r\n" % (len(part), part) for part in parts])


def is_unknown(exc: Exception) -> bool:
    """Tell whether the server doesn't know the script, and so has not run it."""
    from redis.exceptions import NoScriptError

    return isinstance(exc, NoScriptError)


def cancel_all_the_same() -> None:
    """Raise the cancellation that Python 3.11's `wait_for` has swallowed under redis-py, unless it comes again."""
    from anyio import current_effective_deadline

    if current_effective_deadline() > -inf:  # else it is from a scope of anyio, which goes on cancelling
        raise CancelledError


def check_client(client: object) -> None:
    try:
        from redis.asyncio import Redis, RedisCluster
    except ImportError as exc:
        msg = "RedisStore needs redis-py: pip install 'rescope[redis]'"
        raise ImportError(msg) from exc
    if not isinstance(client, (Redis, RedisCluster)):
        msg = (
            f"`client` must be a `redis.asyncio.Redis` or `RedisCluster`, not a {type(client).__module__}."
            f"{type(client).__qualname__}: `from redis.asyncio import Redis`"
        )
        raise TypeError(msg)
