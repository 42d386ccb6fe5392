"""For stores on clients that know asyncio alone."""

from __future__ import annotations

from asyncio import get_running_loop


def refuse_trio(store: str, client: str) -> None:
    """Raise `RuntimeError` where no asyncio loop runs, before the client fails at something less telling."""
    try:
        get_running_loop()
    except RuntimeError:
        msg = f"{store} runs on asyncio only, as {client} does: on trio, use `SqliteStore` or `MemoryStore`"
        raise RuntimeError(msg) from None
