"""For tests of your own resources: let things fail, hang and be cancelled on cue, and see that all is closed."""

from rescope.testing._cancel import cancel_everywhere
from rescope.testing._captured import CapturedEvents
from rescope.testing._closed import assert_all_closed
from rescope.testing._cue import Cue
from rescope.testing._faulty import FaultyResource, Moment
from rescope.testing._ledger import Ledger
from rescope.testing._report import CancelEverywhereError, CancelMode, CancelReport, Fault
from rescope.testing._store_contract import StoreCheck, StoreContract, StoreContractError, store_contract

__all__ = [
    "CancelEverywhereError",
    "CancelMode",
    "CancelReport",
    "CapturedEvents",
    "Cue",
    "Fault",
    "FaultyResource",
    "Ledger",
    "Moment",
    "StoreCheck",
    "StoreContract",
    "StoreContractError",
    "assert_all_closed",
    "cancel_everywhere",
    "store_contract",
]
