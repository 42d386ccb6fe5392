"""What `store_contract` checks of values, keys and versions."""

from __future__ import annotations

import json
from typing import Any

from rescope.testing._store_bench import LONG, SECRET, TTL, Bench, Checks, conflict, expect, keys, refused, there
from rescope.workflow.store import MAX_KEY_BYTES, Entry

checks = Checks()


# Getting back what was put


@checks("get gives what was put, and None where nothing was")
async def _(bench: Bench) -> None:
    async with bench.store() as store:
        key = bench.key()
        expect(await store.get(key) is None, "get of a key that was never put is not None")
        version = await store.put(key, {"a": [1, None]})
        expect(type(version) is int and version > 0, "put does not give a positive int")
        expected = Entry(key, {"a": [1, None]}, version, None)
        expect(await store.get(key) == expected, "get does not give the Entry that was put")
        again = await store.put(key, "other")
        expect(await store.get(key) == Entry(key, "other", again), "a second put does not take the place of the first")


_VALUES: list[tuple[str, object]] = [
    ("null", None),
    ("a bool", [True, False]),
    ("an int", [0, -1, 2**70]),
    ("a float", [1.0, -0.0, 1e300, 0.1]),
    ("text", ["", "é 😀", "quote \" ' \\ %s", "\x00\n\x7f", "\ud800"]),
    ("a list", [[], [[]], [{}]]),
    ("a dict", {"b": 1, "a": {"": None}}),
    ("a tuple", (1, (2,))),
    ("a dict with keys that are not text", {1: "a", None: "b", False: "c"}),
    ("a large value", "x" * 300_000),
    ("a bool alone", False),
    ("a float alone", 1.0),
    ("text that looks like a number", "1"),
    ("an empty dict", {}),
]


@checks("values come back as JSON has them")
async def _(bench: Bench) -> None:
    async with bench.store() as store:
        for what, value in _VALUES:
            await store.put(bench.key(), value)
            entry = await store.get(bench.key())
            same = entry is not None and json.dumps(entry.value) == json.dumps(value)
            expect(same, f"{what} does not come back as it was put")


@checks("what comes back is a copy of the reader's own")
async def _(bench: Bench) -> None:
    async with bench.store() as store:
        value = {"list": [1]}
        await store.put(bench.key(), value)
        value["list"].append(2)
        first = await there(store, bench.key())
        expect(first.value == {"list": [1]}, "what the writer changes after the put is seen")
        first.value["list"].append(3)
        second = await there(store, bench.key())
        expect(second.value == {"list": [1]}, "what a reader changes is seen by another")
        scanned = [entry.value async for entry in store.scan(bench.prefix)]
        scanned[0]["list"].append(4)
        third = await there(store, bench.key())
        expect(third.value == {"list": [1]}, "what a reader of a scan changes is seen by another")


@checks("all who open the store see the same data")
async def _(bench: Bench) -> None:
    async with bench.store() as one, bench.store() as other:
        version = await one.put(bench.key(), 1)
        entry = await other.get(bench.key())
        expect(entry is not None and entry.version == version, "what one has put another does not see")
        await one.get(bench.key())  # it must not keep what it has read
        await other.put(bench.key(), 2, if_version=version)
        entry = await one.get(bench.key())
        found = 0 if entry is None else entry.version
        await conflict(one.put(bench.key(), 3, if_version=version), bench.key(), version, found)
    async with bench.store() as store:
        entry = await store.get(bench.key())
        expect(entry is not None and entry.value == 2, "what was put is gone when the store is opened again")  # noqa: PLR2004


# Bad input


@checks("what is no JSON is refused, and nothing is written")
async def _(bench: Bench) -> None:
    loop: list[object] = [SECRET]
    loop.append(loop)
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    bad: list[tuple[str, object]] = [
        ("a NaN", [SECRET, float("nan")]),
        ("an infinity", {SECRET: -float("inf")}),
        ("a set", {SECRET}),
        ("bytes", SECRET.encode()),
        ("an object", [SECRET, object()]),
        ("a tuple for a key", {(SECRET,): 1}),
        ("a list that holds itself", loop),
        ("a list that is nested too deep", deep),
    ]
    async with bench.store() as store:
        await store.put(bench.key(), "before")
        await refused((what, lambda value=value: store.put(bench.key(), value)) for what, value in bad)  # type: ignore[misc]
        await refused((what, lambda value=value: store.put(bench.key("new"), value)) for what, value in bad)  # type: ignore[misc]
        entry = await store.get(bench.key())
        expect(entry is not None and entry.value == "before", "a value that is refused is written")
        expect(await keys(store, bench.prefix) == [bench.key()], "a value that is refused leaves an entry")


@checks("bad keys are refused by every method")
async def _(bench: Bench) -> None:
    long = "é" * (MAX_KEY_BYTES // 2) + "x"
    bad: list[tuple[str, Any]] = [
        ("no string", 1),
        ("bytes", b"key"),
        ("a control character", bench.key("a\nb")),
        ("a null character", bench.key("a\0b")),
        ("a late control character", bench.key("a\x85")),
        ("a lone surrogate", bench.key("\ud800")),
        ("too long", long),
    ]
    async with bench.store() as store:
        for what, key in [*bad, ("empty", "")]:
            await refused(
                [
                    (f"get of a key that is {what}", lambda key=key: store.get(key)),  # type: ignore[misc]
                    (f"put of a key that is {what}", lambda key=key: store.put(key, SECRET)),  # type: ignore[misc]
                    (f"delete of a key that is {what}", lambda key=key: store.delete(key)),  # type: ignore[misc]
                ]
            )
        await refused((f"a prefix that is {what}", lambda key=key: keys(store, key)) for what, key in bad)  # type: ignore[misc]
        longest = bench.key("")
        longest += "é" * ((MAX_KEY_BYTES - len(longest)) // 2)
        version = await store.put(longest, 1)
        expect(await store.get(longest) == Entry(longest, 1, version), f"a key of {MAX_KEY_BYTES} bytes is not taken")
        expect(await keys(store, longest) == [longest], f"a prefix of {MAX_KEY_BYTES} bytes is not taken")


@checks("bad options are refused, and nothing is written")
async def _(bench: Bench) -> None:
    times: list[Any] = [0, -1, -0.5, float("nan"), float("inf"), 1e300, "1", True]
    versions: list[Any] = [-1, 1.0, "1", True, 2**63]
    async with bench.store() as store:
        key = bench.key()
        await refused((f"ttl={ttl!r}", lambda ttl=ttl: store.put(key, SECRET, ttl=ttl)) for ttl in times)  # type: ignore[misc]
        await refused((f"put with if_version={v!r}", lambda v=v: store.put(key, 1, if_version=v)) for v in versions)  # type: ignore[misc]
        expect(await store.get(key) is None, "a put that is refused is done")
        await store.put(key, 1)
        versions.append(0)
        await refused((f"delete with if_version={v!r}", lambda v=v: store.delete(key, if_version=v)) for v in versions)  # type: ignore[misc]
        expect(await store.get(key) is not None, "a delete that is refused is done")


@checks("keys are told apart by every character")
async def _(bench: Bench) -> None:
    names = [
        "a",
        "A",
        "a ",
        " a",
        "é",
        "e\u0301",
        "ﬁ",
        "fi",
        "%",
        "*",
        "_",
        "?",
        "[a]",
        "\\",
        "'",
        '"',
        "a:b",
        "a/b",
        "😀",
    ]
    async with bench.store() as store:
        for number, name in enumerate(names):
            await store.put(bench.key(name), number)
        found = [await store.get(bench.key(name)) for name in names]
        values = [None if entry is None else entry.value for entry in found]
        expect(values == list(range(len(names))), "two different keys share an entry")
        for gone, name in enumerate(names, 1):
            await store.delete(bench.key(name))
            expect(await store.get(bench.key(name)) is None, f"the key that ends in {name!r} can't be deleted")
            left = await keys(store, bench.prefix)
            expect(len(left) == len(names) - gone, f"with the key that ends in {name!r}, others are deleted")


# Versions


@checks("versions only grow")
async def _(bench: Bench) -> None:
    async with bench.store() as store:
        seen = [await store.put(bench.key(), 1), await store.put(bench.key(), 1), await store.put(bench.key(), 2)]
        expect(seen == sorted(set(seen)), "a put does not give a greater version than the put before it")
        for _ in range(3):
            await store.delete(bench.key())
            seen.append(await store.put(bench.key(), 1, if_version=0))
            expect(seen == sorted(set(seen)), "a version does not grow across delete and put")
        seen.append(await store.put(bench.key(), 1, ttl=TTL))
        await bench.pass_by(TTL)
        seen.append(await store.put(bench.key(), 1, if_version=0))
        expect(seen == sorted(set(seen)), "a version does not grow across expiry and put")
    async with bench.store() as store:
        await store.delete(bench.key())
        seen.append(await store.put(bench.key(), 1))
        expect(seen == sorted(set(seen)), "a version does not grow when the store is opened again")


@checks("if_version writes only over that version")
async def _(bench: Bench) -> None:
    async with bench.store() as store:
        key = bench.key()
        await conflict(store.put(key, SECRET, if_version=5), key, 5, 0)
        expect(await store.get(key) is None, "a put that conflicts is done")
        first = await store.put(key, "first", if_version=0)
        await conflict(store.put(key, SECRET, if_version=0), key, 0, first)
        second = await store.put(key, "second", if_version=first)
        await conflict(store.put(key, SECRET, if_version=first), key, first, second)
        await conflict(store.put(key, SECRET, if_version=second + 1), key, second + 1, second)
        expect(await store.get(key) == Entry(key, "second", second), "a put that conflicts changes the entry")


@checks("delete tells whether there was an entry")
async def _(bench: Bench) -> None:
    async with bench.store() as store:
        key = bench.key()
        expect(await store.delete(key) is False, "delete of what is not there does not give False")
        version = await store.put(key, 1)
        expect(
            await store.delete(key, if_version=version + 1) is False, "delete of another version does not give False"
        )
        expect(await store.get(key) is not None, "delete of another version is done")
        expect(await store.delete(key, if_version=version) is True, "delete of that version does not give True")
        expect(await store.get(key) is None, "what is deleted is still there")
        await store.put(key, 1)
        expect(await store.delete(key) is True, "delete does not give True")
        expect(await store.get(key) is None, "what is deleted is still there")


@checks("a stale writer never wins")
async def _(bench: Bench) -> None:
    async with bench.store() as store:
        key = bench.key()
        stale = await store.put(key, "stale")
        await store.delete(key)
        await conflict(store.put(key, SECRET, if_version=stale), key, stale, 0)
        current = await store.put(key, "current", ttl=LONG)
        await conflict(store.put(key, SECRET, if_version=stale), key, stale, current)
        expect(await store.delete(key, if_version=stale) is False, "a stale delete takes the new entry away")
        entry = await store.get(key)
        expect(entry is not None and entry.value == "current", "a stale writer has changed the new entry")
