"""Cleanup that survives a crash: what a scope has to close is written down before it is made.

After write-ahead logging, and undo in reverse order (ARIES; Mohan et al., 1992): the intent is durable before the
change is made. The cleanups are the compensations of a saga (Garcia-Molina and Salem, 1987): each has a name, and may
be run any number of times.

A *record* is one entry of the store: the name of a cleanup and its token. Its key says whose it is, an owner's, in one
of its lives (one event loop of one process), in which scope, and at which place: the places of a child scope lie below
its own place in the parent. So the keys, backwards, are the order in which a scope closes. Its states:

- *none*: nothing was made.
- *intent*: written before anything is made, and for as long as it may be there: a second write when it was made would
  tell a recoverer nothing that it needs. A cleanup may meet what was never made.
- *gone*: the cleanup has run to its end, then the record was deleted. A crash between the two lets the cleanup run
  again. It may meet what is gone already.

An owner's life has a *lease*, of which nobody else has the name. Whoever holds it, and nobody else, runs the cleanups
of that life:

- *held*: the scopes of the life share it. It is renewed in a task that no cancellation of theirs reaches, and given
  back when the last scope that uses it has closed. What fails to close is put under a name of which nobody ever holds
  the lease (`...-left`), and so is left to recover at once, however long the life goes on.
- *lost*: the store could not be reached for as long as the ttl, or the process was stopped. A life that has lost its
  lease is over: it journals nothing more. `acquire` raises `LeaseLostError`, before it writes or makes anything, and a
  WARNING tells it. A scope that is opened then begins another life, unless it is the child of one that stands on the
  lost one. To close what it holds, a lost life needs its lease again, for a moment: then it closes what still has
  a record. Where a recoverer has the lease, or the store can't be asked, this is left, which is told as a failure to
  close; and with it all that is older, which may be needed to close it.
- *recovered*: a recoverer has taken it. It has the lease `journal-recovery` too, which makes it the only one.

Time passes between looking at a clock and what is done then; no lease can prevent that. So it is looked at before the
intent is written, before anything is made, and after: what was made while the lease was lost is closed again. What is
left is a process that is stopped within a cleanup for longer than the ttl, and goes on with it beside a recoverer: the
same cleanup, for the same token. This is why cleanups are idempotent, and why a token should be good for one making.
"""

from rescope.workflow.journal._cleanups import cleanup
from rescope.workflow.journal._owner import CleanupTakenError
from rescope.workflow.journal._records import PendingCleanup
from rescope.workflow.journal._recovery import pending, recover
from rescope.workflow.journal._report import RecoveryReport
from rescope.workflow.journal._scope import JournaledScope

__all__ = ["CleanupTakenError", "JournaledScope", "PendingCleanup", "RecoveryReport", "cleanup", "pending", "recover"]
