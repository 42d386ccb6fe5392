"""What `store_contract` checks of expiry."""

from __future__ import annotations

from contextlib import suppress

from rescope.testing._store_bench import LONG, SECRET, TTL, Bench, Checks, conflict, expect, keys
from rescope.workflow.store import VersionConflictError

checks = Checks()


@checks("an entry whose time has come is not there")
async def _(bench: Bench) -> None:
    async with bench.store() as store:
        names = ["conflict", "delete", "get", "put", "scan"]
        versions = {name: await store.put(bench.key(name), 1, ttl=TTL) for name in names}
        await store.put(bench.key("created"), 1, ttl=TTL, if_version=0)
        replaced = await store.put(bench.key("replaced"), 1, if_version=0)
        await store.put(bench.key("replaced"), 1, ttl=TTL, if_version=replaced)
        stays = await store.put(bench.key("stays"), 1, ttl=LONG)
        await bench.pass_by(TTL)
        expect(await store.get(bench.key("get")) is None, "get gives an entry whose time has come")
        for name in ("created", "replaced"):
            expect(await store.get(bench.key(name)) is None, "the ttl of a put with if_version is ignored")
        expect(await keys(store, bench.prefix) == [bench.key("stays")], "a scan gives an entry whose time has come")
        key, stale = bench.key("conflict"), versions["conflict"]
        await conflict(store.put(key, SECRET, if_version=stale), key, stale, 0)
        await store.put(bench.key("put"), 2, if_version=0)
        expect(await store.delete(bench.key("delete")) is False, "delete finds an entry whose time has come")
        gone = await store.delete(bench.key("scan"), if_version=versions["scan"])
        expect(gone is False, "delete with if_version finds an entry whose time has come")
        entry = await store.get(bench.key("stays"))
        expect(entry is not None and entry.version == stays, "an entry is gone before its time")


@checks("expires_at is in epoch seconds, by one clock")
async def _(bench: Bench) -> None:
    async with bench.store() as store:
        await store.put(bench.key("sooner"), 1, ttl=LONG)
        await store.put(bench.key("later"), 1, ttl=2 * LONG)
        await store.put(bench.key("never"), 1)
        later, never, sooner = [entry.expires_at async for entry in store.scan(bench.prefix)]
        expect(never is None, "an entry without ttl has an expires_at")
        if not isinstance(sooner, float) or not isinstance(later, float):
            msg = "expires_at of an entry with ttl is no float"
            raise AssertionError(msg)  # noqa: TRY004 (it is a check that fails)
        apart = later - sooner
        expect(abs(apart - LONG) < LONG / 10, f"entries with times {LONG:g} s apart expire {apart:g} s apart")
        entry = await store.get(bench.key("sooner"))
        expect(entry is not None and entry.expires_at == sooner, "get and scan differ about expires_at")


@checks("each put sets the time anew")
async def _(bench: Bench) -> None:
    async with bench.store() as store:
        for name in ("stays", "renewed", "left alone"):
            await store.put(bench.key(name), 1, ttl=TTL)
        swapped = await store.put(bench.key("swapped"), 1, ttl=TTL)
        await store.put(bench.key("swapped"), 2, if_version=swapped)
        await store.put(bench.key("cut short"), 1)
        await store.put(bench.key("stays"), 2)
        await store.put(bench.key("renewed"), 2, ttl=LONG)
        await store.put(bench.key("cut short"), 2, ttl=TTL)
        entry = await store.get(bench.key("stays"))
        expect(entry is not None and entry.expires_at is None, "a put without ttl keeps the time of the one before it")
        await store.get(bench.key("left alone"))
        with suppress(VersionConflictError):
            await store.put(bench.key("left alone"), 2, ttl=LONG, if_version=swapped)
        await store.delete(bench.key("left alone"), if_version=swapped)
        await bench.pass_by(TTL)
        expect(await store.get(bench.key("left alone")) is None, "what only reads, or conflicts, changes the time")
        for name in ("stays", "swapped"):
            expect(await store.get(bench.key(name)) is not None, "a put without ttl expires")
        expect(await store.get(bench.key("renewed")) is not None, "a put with a new ttl expires with the old one")
        expect(await store.get(bench.key("cut short")) is None, "a ttl on what had none is ignored")
