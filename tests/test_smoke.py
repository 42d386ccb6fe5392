"""The least that must work."""

from __future__ import annotations

import anyio

from rescope import Scope


async def test_closes_in_reverse_order() -> None:
    """What was registered last is closed first, whether its closer is sync or async."""
    log: list[int] = []

    async def close(n: int) -> None:
        await anyio.lowlevel.checkpoint()
        log.append(n)

    async with Scope() as scope:
        scope.defer(close, 1)
        scope.defer(log.append, 2)
        scope.defer(close, 3)

    assert log == [3, 2, 1]
