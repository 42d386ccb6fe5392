"""An owner of journaled directories that is stopped at a place, says so before, and goes on when it gets a line.

python tests/workflow/journal_owner.py FOLDER holding|making|closing BACKEND
"""

# ruff: noqa: S105, S106 (the token of a cleanup is no password)

from __future__ import annotations

import sys
from pathlib import Path

import anyio

from rescope import ResourceCleanupError
from rescope.workflow import SqliteStore
from rescope.workflow.journal import JournaledScope, cleanup
from rescope.workflow.lease import LeaseLostError

TTL = 0.5


class Owner:
    def __init__(self, folder: str, where: str) -> None:
        self.folder = Path(folder)
        self.where = where

    def at(self, where: str) -> None:
        if where == self.where:
            print("here", flush=True)  # noqa: T201 (what it says)
            sys.stdin.readline()

    def make(self, token: str) -> None:
        if token == "second":
            self.at("making")
        (self.folder / token).mkdir()

    async def live(self) -> None:
        async with SqliteStore(self.folder / "store") as store:
            try:
                async with JournaledScope(store, "owner", ttl=TTL) as scope:
                    await scope.acquire(self.make, "owner.folder", token="first")
                    self.at("holding")
                    await scope.acquire(self.make, "owner.folder", token="second")
                    self.at("closing")
            except LeaseLostError:
                print("lost")  # noqa: T201
            except ResourceCleanupError as error:
                print(error.message)  # noqa: T201


def main() -> None:
    owner = Owner(*sys.argv[1:3])

    @cleanup("owner.folder")
    def remove(token: str) -> None:
        if (owner.folder / token).exists():
            (owner.folder / token).rmdir()

    anyio.run(owner.live, backend=sys.argv[3])


if __name__ == "__main__":
    main()
