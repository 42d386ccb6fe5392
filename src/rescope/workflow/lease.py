"""A lock that expires, with fencing tokens, on a `Store`.

After Gray and Cheriton ("Leases: An Efficient Fault-Tolerant Mechanism for Distributed File Cache Consistency", 1989),
Chubby's sequencers (Burrows, 2006), and Kleppmann's "How to do distributed locking" (2016), which is why there is
a token.

What is held is in `_lease_held`, what the store is asked and when in `_lease_claim`, the block and its end in
`_lease_block`.
"""

from __future__ import annotations

import os
import time
from functools import partial
from socket import gethostname
from typing import TYPE_CHECKING, Final

from rescope.workflow._lease_block import Leasing
from rescope.workflow._lease_claim import PREFIX, Claim
from rescope.workflow._lease_held import Lease, LeaseHeldError, LeaseLostError
from rescope.workflow.store import check_key, check_ttl

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from rescope.workflow.store import Store

__all__ = ["Lease", "LeaseHeldError", "LeaseLostError", "lease"]

_BOOTTIME: int | None = getattr(time, "CLOCK_BOOTTIME", None)
_clock: Final[Callable[[], float]] = time.monotonic if _BOOTTIME is None else partial(time.clock_gettime, _BOOTTIME)


def lease(
    store: Store,
    name: str,
    *,
    ttl: float,
    wait: float = 0,
    holder: str | None = None,
    clock: Callable[[], float] = _clock,
) -> AbstractAsyncContextManager[Lease, bool | None]:
    """Hold a lock that expires, while a block of code runs.

    `ttl`: seconds after which it expires unless it is renewed, which it is by itself, after each third of that. So
    others wait as long for a holder that was killed, and a holder can do without its store for about as long. `wait`:
    seconds to wait where somebody holds it; there are a few quick tries in any case, for half a second. `holder`: what
    this holder is called in the errors of the others; by default host name, process id and some random digits. `clock`
    gives seconds that never go back; a test may turn it.

    Gives a `Lease`. Send its `token` with all that is written under the lease, and let the other side refuse one that
    is smaller than what it has seen. Without that, no lock that expires is safe.

    Raises `LeaseHeldError` where somebody else holds it. A store that fails is asked again for half a second; then its
    `StoreError` is raised. So is one where the store does not answer in a third of the ttl, or half a second if that is
    more; an answer that comes when the ttl is over grants nothing.

    Where the lease is lost while the block runs, the block is cancelled, and `LeaseLostError` is raised: `from` the
    block's own exception, if it ended with one. What is no `Exception`, as a cancellation from outside, comes out
    itself, with a note. A block that ends before the loss is noticed keeps its outcome. A failing release never changes
    the outcome: the lease then expires. What is not raised is told in `Lease.lost`, `Lease.release_error`, and by
    a WARNING on the logger `rescope`.

    A cancellation ends the asking, and what was granted meanwhile is released. No cancellation reaches the release,
    which takes 10 seconds at most.

    In `async with` and in `await scope.enter(lease(...))`, the task that enters is the one to be cancelled. In `await
    scope.host(lease(...))` there is no block: the loss is the death of the host, and is told as that. ::

        async with lease(store, "invoices", ttl=30) as held:
            await invoices.write(fencing_token=held.token)
    """
    _check(store, name, ttl, wait, holder)
    mark = os.urandom(8).hex()
    held = Lease(name, holder or f"{gethostname()}:{os.getpid()}:{mark[:4]}", clock)
    return Leasing(Claim(store, held, ttl, mark), wait)


def _check(store: object, name: object, ttl: object, wait: object, holder: object) -> None:
    """Refuse what no lease can be made of."""
    if isinstance(store, type) or not hasattr(store, "put"):
        what = f"the class {store.__qualname__}" if isinstance(store, type) else f"a {type(store).__qualname__}"
        msg = f"`store` must be a store, as `MemoryStore()`, not {what}"
        raise TypeError(msg)
    for text, option in ((name, "name"), (holder, "holder")):
        if not isinstance(text, str) and not (text is None and option == "holder"):
            msg = f"`{option}` must be a string, not a {type(text).__qualname__}"
            raise TypeError(msg)
        if text == "":
            msg = f"`{option}` must not be empty"
            raise ValueError(msg)
    check_key(f"{PREFIX}{name}")
    if ttl is None:
        msg = "`ttl` must be a number of seconds: a lock that never expires is never let go of by a holder that died"
        raise TypeError(msg)
    check_ttl(ttl)
    if isinstance(wait, bool) or not isinstance(wait, int | float):
        msg = f"`wait` must be a number of seconds, not a {type(wait).__qualname__}: `math.inf` waits for ever"
        raise TypeError(msg)
    if not wait >= 0:
        msg = f"`wait` must not be negative or NaN, got {wait}"
        raise ValueError(msg)
