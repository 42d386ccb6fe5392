"""What `store_contract` checks of many entries, and of many tasks at once."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import TYPE_CHECKING

from rescope.testing._store_bench import LONG, SECRET, TTL, Bench, Checks, expect, increment, keys, refused, there
from rescope.workflow.store import BatchStore, Entry, VersionConflictError

if TYPE_CHECKING:
    from rescope.workflow.store import Store

checks = Checks()
_MANY = 1200


# Scanning


@checks("a scan gives the keys with that prefix, in the order of code points")
async def _(bench: Bench) -> None:
    names = [
        "",
        "a",
        "a%b",
        "a*b",
        "a?b",
        "aXb",
        "a_b",
        "a[b",
        "a\\b",
        "A",
        "Z",
        "z",
        "é",
        "ab",
        "a b",
        "~",
        "\ufffd",
        "😀",
        "\ud7ff",
    ]
    async with bench.store() as store:
        for name in names:
            await store.put(bench.key(name), 1)
        for prefix in ("", "a", "a%", "a*", "a?", "a_", "a[", "a\\", "A", "é", "\ud7ff", "\ufffd", "😀", "none"):
            expected = sorted(bench.key(name) for name in names if name.startswith(prefix))
            found = await keys(store, bench.key(prefix))
            expect(
                sorted(found) == expected, f"a scan does not give the keys, and no others, that begin with {prefix!r}"
            )
            expect(found == expected, "a scan is not in the order of code points")
        everything = await keys(store, "")
        expect(everything == sorted(everything), "a scan of all is not in the order of code points")
        expect(set(everything) >= {bench.key(name) for name in names}, "a scan of all leaves some out")
        entries = [entry async for entry in store.scan(bench.key("a"))]
        got = [await store.get(entry.key) for entry in entries]
        expect(entries == got, "a scan gives other entries than get")


@checks("a scan of many gives each once, whatever changes meanwhile")
async def _(bench: Bench) -> None:
    async with bench.store() as store, bench.store() as other:
        names = [bench.key(f"{number:05}") for number in range(_MANY)]
        await _fill(store, names)
        expect(await keys(store, bench.prefix) == names, f"a scan does not give each of {_MANY} entries once, in order")
        behind, ahead, last = names[0], names[-2], names[-1]
        new = [bench.key("00000-a"), bench.key("00000-b")]
        found: list[str] = []
        async for entry in store.scan(bench.prefix):
            found.append(entry.key)
            if len(found) == _MANY // 3:
                await other.delete(behind)
                await other.delete(ahead)
                await other.put(last, "new")
            if len(found) == 2 * _MANY // 3:
                await _fill(other, new)
        expect(found == sorted(set(found)), "a scan gives an entry twice, or out of order, where others write")
        missed = set(names) - set(found) - {ahead}
        expect(not missed, f"a scan leaves out {len(missed)} entries where others write")
        left, beside = store.scan(bench.prefix), store.scan(bench.prefix)
        expect((await anext(left)).key == new[0], "a scan does not begin with the first key")
        expect((await anext(beside)).key == new[0], "a scan does not begin with the first key beside another")
        expect((await anext(left)).key == new[1], "a scan does not go on where it was beside another")
        for scan in (left, beside):
            if isinstance(scan, AsyncGenerator):  # on trio, one that is dropped warns
                await scan.aclose()
        expect(len(await keys(store, bench.prefix)) == _MANY, "a scan that was left early spoils the next")


async def _fill(store: Store, names: list[str]) -> None:
    if isinstance(store, BatchStore):
        await store.put_many(dict.fromkeys(names, 1))
        return
    for name in names:
        await store.put(name, 1)


# Many at once


@checks("put_many, where there is one, writes all or none")
async def _(bench: Bench) -> None:
    async with bench.store() as store:
        if not isinstance(store, BatchStore):
            return
        await refused(
            [
                ("put_many of a bad value", lambda: store.put_many({bench.key("a"): 1, bench.key("b"): {SECRET}})),
                ("put_many of a bad key", lambda: store.put_many({bench.key("a"): 1, "": SECRET})),
                ("put_many with ttl=0", lambda: store.put_many({bench.key("a"): SECRET}, ttl=0)),
            ]
        )
        expect(await keys(store, bench.prefix) == [], "put_many writes a part of what is refused")
        expect(await store.put_many({}) == {}, "put_many of nothing does not give an empty dict")
        before = await store.put(bench.key("a"), 0)
        versions = await store.put_many({bench.key("b"): 2, bench.key("a"): 1})
        entries = [entry async for entry in store.scan(bench.prefix)]
        expect([entry.value for entry in entries] == [1, 2], "put_many does not write what it is given")
        expect({entry.key: entry.version for entry in entries} == versions, "put_many does not give the versions")
        expect(versions[bench.key("a")] > before, "a version does not grow with put_many")
        await store.put_many({bench.key("a"): 1, bench.key("b"): 2}, ttl=TTL)
        await bench.pass_by(TTL)
        expect(await keys(store, bench.prefix) == [], "the ttl of put_many is ignored")
        await store.put_many({bench.key("a"): 1}, ttl=LONG)
        await store.put_many({bench.key("a"): 2})
        entry = await there(store, bench.key("a"))
        expect(entry.expires_at is None, "put_many without ttl keeps the time of the one before it")


@checks("of tasks that race, one wins")
async def _(bench: Bench) -> None:
    from anyio import create_task_group
    from anyio.lowlevel import checkpoint

    won: list[int] = []
    tasks, rounds = 8, 5

    async def count(store: Store) -> None:
        won.extend([await increment(store, bench.key("count")) for _ in range(rounds)])

    async def create(store: Store, made: list[int], if_version: int = 0, later: int = 0) -> None:
        for _ in range(later):
            await checkpoint()
        with suppress(VersionConflictError):
            made.append(await store.put(bench.key("new"), 1, if_version=if_version))

    async with bench.store() as one, bench.store() as other:
        async with create_task_group() as group:
            for number in range(tasks):
                group.start_soon(count, (one, other)[number % 2])
        entry = await one.get(bench.key("count"))
        lost = tasks * rounds - (0 if entry is None else entry.value)
        expect(lost == 0, f"{lost} of {tasks * rounds} updates with if_version are lost where tasks race")
        expect(len(set(won)) == len(won), "two puts of a key were given the same version")
        for later in range(rounds):
            made: list[int] = []
            async with create_task_group() as group:
                for number in range(tasks):
                    group.start_soon(create, (one, other)[number % 2], made)
            expect(len(made) == 1, f"{len(made)} of {tasks} tasks that put with if_version=0 win")
            taken: list[bool] = []
            async with create_task_group() as group:
                for number in range(tasks):
                    group.start_soon(_take, (one, other)[number % 2], bench.key("new"), taken)
            expect(taken.count(True) == 1, f"{taken.count(True)} of {tasks} tasks that delete one entry are told True")
            version, made, taken = await one.put(bench.key("new"), 1), [], []
            async with create_task_group() as group:
                group.start_soon(_take, one, bench.key("new"), taken, version)
                group.start_soon(create, other, made, version, later)
            expect(taken != [bool(made)], "of a put and a delete with the same if_version, not just one is done")
            stands = await one.get(bench.key("new"))
            expect([stands.version] == made if stands else not made, "a put is lost where a delete races with it")
            await one.delete(bench.key("new"))


async def _take(store: Store, key: str, taken: list[bool], if_version: int | None = None) -> None:
    taken.append(await store.delete(key, if_version=if_version))


@checks("a put that is cancelled is done as a whole or not at all")
async def _(bench: Bench) -> None:
    from anyio import create_task_group
    from anyio.lowlevel import checkpoint

    async with bench.store() as store:
        await store.put(bench.key(), [0] * 3)
        for turn in range(1, 30):
            async with create_task_group() as group:
                group.start_soon(store.put, bench.key(), [turn] * 3)
                if isinstance(store, BatchStore):
                    group.start_soon(store.put_many, {bench.key(name): turn for name in "abcdefgh"})
                for _ in range(turn):
                    await checkpoint()
                group.cancel_scope.cancel()
            entry = await store.get(bench.key())
            whole = entry is not None and entry.value in ([turn] * 3, [turn - 1] * 3)
            expect(whole, "a put that was cancelled leaves something else than the value before or after it")
            many = [await store.get(bench.key(name)) for name in "ah"]
            alike = len({each and each.value for each in many}) == 1
            expect(alike, "a put_many that was cancelled leaves a part of it")
            version = await store.put(bench.key(), [turn] * 3)
            again = await store.get(bench.key())
            expect(again == Entry(bench.key(), [turn] * 3, version), "the store is no good after a cancelled put")
