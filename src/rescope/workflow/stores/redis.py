"""A store in Redis 7 or newer, or Valkey, on redis-py: each operation is one script, which the server runs as a whole.

Three keys of the server hold it all. They share a hash tag, and so a slot of a cluster: an entry, its place in the
order and the count of versions change together or not at all.

- `entries`, a hash: key to version, deadline and JSON; and under the empty key the schema and the last version
- `order`, a sorted set of all keys, with equal scores: so they stand in the order of their bytes, that of code points
- `deadlines`, a sorted set of the keys that expire, by when, in microseconds

Expiry is not the server's own, as that would leave the key in `order`: the scripts compare the deadline with the
server's clock. A version is that clock, in microseconds, or one more than the last version where that is more: so
versions grow also where a replica takes over that has not got the last few.

redis-py sends a command again where the connection was cut under it. A compare-and-set that was done, and whose answer
was lost, would then find its own write, and call it a conflict. So commands are sent on a connection of the client's
pool, where nobody repeats them; a cluster's client does not repeat what is sent to a node that the caller names.
"""

from __future__ import annotations

import re
from asyncio import current_task
from functools import partial
from hashlib import sha1
from typing import TYPE_CHECKING, Any, cast, final

from rescope.workflow.store import (
    Entry,
    Scan,
    StoreClosedError,
    StoreError,
    VersionConflictError,
    check_if_version,
    check_key,
    check_prefix,
    check_ttl,
    decode,
    encode,
    encode_many,
)
from rescope.workflow.stores._asyncio import refuse_trio
from rescope.workflow.stores._redis_client import (
    PATIENCE,
    cancel_all_the_same,
    check_client,
    is_closed,
    is_unknown,
    note_when_closed,
    packed,
    sent_once,
)

if TYPE_CHECKING:
    from asyncio import Task
    from collections.abc import Mapping

    from redis.asyncio import Redis, RedisCluster

_SCHEMA = 1
_PASSING = ("NOREPLICAS", "MISCONF", "BUSY")
"""How the errors begin that pass, of those for which redis-py has no class."""

_START = """
local entries, order, deadlines = KEYS[1], KEYS[2], KEYS[3]
local about, there = unpack(redis.call('HMGET', entries, '', {key}))
if about and string.sub(about, 1, 2) ~= '1 ' then
    return redis.error_reply('RESCOPESCHEMA ' .. about)
end

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]

local function live(held)
    if not held then return nil end
    local version, deadline, json = string.match(held, '^(%d+) (%d+) (.*)$')
    if deadline ~= '0' and tonumber(deadline) <= now then return nil end
    return {version, deadline, json}
end

local function drop(key)
    redis.call('HDEL', entries, key)
    redis.call('ZREM', order, key)
    redis.call('ZREM', deadlines, key)
end
"""
_GET = """
return live(there)
"""
_PUT = """
local ttl, expected = tonumber(ARGV[1]), ARGV[2]
if expected ~= '' then
    local held = live(there)
    local found = held and held[1] or '0'
    if found ~= expected then return -1 - found end
end

local deadline = '0'
if ttl > 0 then
    deadline = string.format('%.0f', now + ttl)
    local over = redis.call('ZRANGE', deadlines, '-inf', string.format('%.0f', now), 'BYSCORE', 'LIMIT', 0, 100 + #ARGV)
    for _, key in ipairs(over) do drop(key) end
end

local first = math.max(now, (about and tonumber(string.sub(about, 3)) or 0) + 1)
local version = first
local counted = {'', string.format('1 %.0f', first + #ARGV / 2 - 2)}
for i = 3, #ARGV, 2 do
    local key = ARGV[i]
    redis.call('HSET', entries, key, string.format('%.0f %s %s', version, deadline, ARGV[i + 1]), unpack(counted))
    counted = {}
    redis.call('ZADD', order, 0, key)
    if ttl > 0 then
        redis.call('ZADD', deadlines, deadline, key)
    else
        redis.call('ZREM', deadlines, key)
    end
    version = version + 1
end
return first
"""
_DELETE = """
local held = live(there)
if not held or (ARGV[2] ~= '' and ARGV[2] ~= held[1]) then return 0 end
drop(ARGV[1])
return 1
"""
_PAGE = """
local keys = redis.call('ZRANGE', order, ARGV[1], ARGV[2], 'BYLEX', 'LIMIT', 0, 500)
if #keys == 0 then return {} end
local page = {keys[#keys]}
for i, held in ipairs(redis.call('HMGET', entries, unpack(keys))) do
    local entry = live(held)
    if entry then
        table.insert(page, {keys[i], unpack(entry)})
    end
end
return page
"""
_NEWER = re.compile(r"RESCOPESCHEMA (\d+)")


@final
class _Script:
    """What the server keeps under the hash of its text. The flags say what it needs, so that it is refused as a whole.

    Without any, a server that is out of memory refuses it before it begins. `key` is where it finds the key that it is
    about.
    """

    __slots__ = ("sha", "text")

    def __init__(self, body: str, flags: str = "", *, key: str = "ARGV[1]") -> None:
        self.text = f"#!lua{flags}\n{_START.replace('{key}', key)}{body}".encode()
        self.sha = sha1(self.text, usedforsecurity=False).hexdigest().encode()


_GETTING = _Script(_GET, " flags=no-writes")
_PAGING = _Script(_PAGE, " flags=no-writes")
_PUTTING = _Script(_PUT, key="ARGV[3] or ''")
_DELETING = _Script(_DELETE, " flags=allow-oom")
_ALL = (_GETTING, _PAGING, _PUTTING, _DELETING)


@final
class RedisStore:
    """A store in Redis 7 or newer, or Valkey, through a client of redis-py: `redis.asyncio.Redis`, or `RedisCluster`.

    The client stays yours to close. What is asked afterwards is refused, though redis-py would connect again.
    redis-py must be 5.3 or newer, 8 for a cluster. `prefix` keeps stores apart that share a server. All of one lies in
    one slot, and so on one node of a cluster.

    Each operation is one round trip, apart from the first of its kind after the server has started. redis-py's retries
    don't apply: where a connection is cut, `StoreError` tells whether the call may be made again.

    What a put has written stays as long as the server keeps it: `appendonly` and `appendfsync` decide whether a crash
    loses the last second or more, and a replica that takes over may not have had the latest. Versions grow all the
    same, as far as the clocks agree. Keep `maxmemory-policy` at `noeviction`. Time is that of the server.

    Raises `TypeError` or `ValueError` for arguments that can't be, as a client that isn't async; `RuntimeError` on
    trio, where redis-py does not run; `StoreClosedError` where the client is closed; `StoreError` where the server
    fails or can't be reached, and for what a newer version of rescope has written. One that is cancelled waits for its
    answer, for 5 seconds at most; a second `task.cancel()`, and with `RedisCluster` the first, cuts that off.
    """

    __slots__ = ("_calls", "_client", "_clustered", "_keys", "_prefix")
    _soon_cut_off = True  # so a lease may wait for it in the task of its block

    def __init__(self, client: Redis | RedisCluster, *, prefix: str = "rescope") -> None:
        check_client(client)
        check_prefix(prefix)
        if not prefix or "{" in prefix or "}" in prefix:
            msg = f"`prefix` must not be empty or hold braces, which a cluster reads: not {prefix!r}"
            raise ValueError(msg)
        note_when_closed(client)
        self._client = client
        self._clustered = hasattr(client, "get_node_from_key")
        self._prefix = prefix
        self._keys = [f"{{{prefix}}}:{name}".encode() for name in ("entries", "order", "deadlines")]
        self._calls = {script: packed(b"EVALSHA", script.sha, b"%d" % len(self._keys), *self._keys) for script in _ALL}

    def __repr__(self) -> str:
        return f"<RedisStore {self._prefix!r}>"

    async def get(self, key: str) -> Entry | None:
        """See `Store.get`."""
        check_key(key)
        held = await self._run(_GETTING, key.encode())
        return None if held is None else _entry(key, *held)

    async def put(self, key: str, value: Any, *, ttl: float | None = None, if_version: int | None = None) -> int:
        """See `Store.put`."""
        check_if_version(if_version)
        if if_version is None:
            return (await self.put_many({key: value}, ttl=ttl))[key]
        check_key(key)
        check_ttl(ttl)
        given = (b"%d" % _microseconds(ttl), b"%d" % if_version, key.encode(), encode(key, value).encode())
        version = await self._run(_PUTTING, *given, harmless=False)
        if version < 0:
            raise VersionConflictError(key, if_version, -1 - version)
        return int(version)

    async def put_many(self, values: Mapping[str, Any], *, ttl: float | None = None) -> dict[str, int]:
        """See `BatchStore.put_many`. The server does nothing else meanwhile: about 10 ms for 1,000 entries."""
        check_ttl(ttl)
        texts = encode_many(values)
        given = [part.encode() for entry in texts.items() for part in entry]
        first = await self._run(_PUTTING, b"%d" % _microseconds(ttl), b"", *given)
        return {key: first + i for i, key in enumerate(texts)}

    async def delete(self, key: str, *, if_version: int | None = None) -> bool:
        """See `Store.delete`."""
        check_key(key)
        check_if_version(if_version, least=1)
        return bool(await self._run(_DELETING, key.encode(), b"%d" % if_version if if_version else b""))

    def scan(self, prefix: str) -> Scan:
        """See `Store.scan`. Each page is what the store holds at one moment."""
        check_prefix(prefix)
        end = b"(" + prefix.encode() + b"\xff"  # no UTF-8 has that byte

        async def page(after: str) -> list[Entry]:
            start = b"(" + after.encode() if after else b"[" + prefix.encode()
            while reply := await self._run(_PAGING, start, end):
                last, *entries = reply
                if entries:
                    return [_entry(key.decode(), *held) for key, *held in entries]
                start = b"(" + last  # all of that page had expired
            return []

        return Scan(page)

    async def _run(self, script: _Script, *args: bytes, harmless: bool = True) -> Any:
        """Run a script in one round trip. `harmless`: it may be run again even if it was done."""
        refuse_trio("RedisStore", "redis-py")
        if is_closed(self._client):
            msg = f"the store {self._prefix!r}: its client is closed: use the store before that. Nothing was written"
            raise StoreClosedError(msg)
        task, sent = cast("Task[Any]", current_task()), False
        before = task.cancelling()
        try:
            lent = await self._lend()
            sent = True
            answer = await (self._ask_node if self._clustered else self._ask_once)(lent, script, args)
        except Exception as exc:
            raise self._told(exc, sent=sent, harmless=harmless) from exc
        if task.cancelling() > before:
            cancel_all_the_same()
        return answer

    async def _lend(self) -> Any:
        """Give a connection of the pool, or the node of a cluster that the keys are on."""
        client: Any = self._client
        if not self._clustered:
            return await client.connection_pool.get_connection()
        await client.initialize()
        return client.get_node_from_key(self._keys[0].decode())

    async def _ask_once(self, connection: Any, script: _Script, args: tuple[bytes, ...]) -> Any:
        size, rest = 3 + len(self._keys) + len(args), packed(*args)
        try:
            try:
                return await sent_once(connection, b"*%d\r\n%b%b" % (size, self._calls[script], rest))
            except Exception as exc:
                if not is_unknown(exc):
                    raise
            call = packed(b"EVAL", script.text, b"%d" % len(self._keys), *self._keys)
            return await sent_once(connection, b"*%d\r\n%b%b" % (size, call, rest))
        finally:
            await cast("Any", self._client).connection_pool.release(connection)

    async def _ask_node(self, node: Any, script: _Script, args: tuple[bytes, ...]) -> Any:
        from anyio import fail_after

        send = partial(cast("Any", self._client).execute_command, target_nodes=node, NEVER_DECODE=True)
        with fail_after(PATIENCE, shield=True):  # a cluster's client gives up the answer where it is cancelled
            try:
                return await send("EVALSHA", script.sha, len(self._keys), *self._keys, *args)
            except Exception as exc:
                if not is_unknown(exc):
                    raise
            return await send("EVAL", script.text, len(self._keys), *self._keys, *args)

    def _told(self, exc: Exception, *, sent: bool, harmless: bool) -> StoreError:
        from redis import exceptions as told

        if newer := _NEWER.search(str(exc)):
            msg = (
                f"the store {self._prefix!r} has schema {newer[1]}, of a newer rescope; this one knows {_SCHEMA}: "
                "update rescope. Nothing was written"
            )
            return StoreError(msg)
        while exc.args and isinstance(exc.args[0], Exception):  # so it wraps what fails as it connects
            exc = exc.args[0]
        about = f"the store {self._prefix!r}: {_reason(exc)}"
        answered = isinstance(exc, (told.ResponseError, told.BusyLoadingError, told.AuthenticationError))
        if sent and not answered:
            msg = f"{about}; whether it was done is not known" + ("" if harmless else ": get the entry, and look")
            return StoreError(msg, may_retry=harmless)
        unreachable = (told.ConnectionError, told.TimeoutError, told.RedisClusterException, OSError)
        passing = (told.BusyLoadingError, told.ReadOnlyError, told.OutOfMemoryError, told.TryAgainError)
        may_retry = isinstance(exc, (*passing, told.ClusterError)) or str(exc).startswith(_PASSING)
        may_retry = may_retry or (not answered and isinstance(exc, unreachable))
        return StoreError(f"{about}; nothing was written", may_retry=may_retry)


def _reason(exc: Exception) -> str:
    text = exc.args[0] if exc.args and isinstance(exc.args[0], str) else ""
    return f"{type(exc).__name__}: {text}" if text else type(exc).__name__


def _microseconds(ttl: float | None) -> int:
    return 0 if ttl is None else max(1, round(ttl * 1_000_000))


def _entry(key: str, version: bytes, deadline: bytes, text: bytes) -> Entry:
    return Entry(key, decode(key, text), int(version), int(deadline) / 1_000_000 if deadline != b"0" else None)
