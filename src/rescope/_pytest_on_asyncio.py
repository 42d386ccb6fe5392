"""The scopes of tests on the loops of pytest-asyncio, which has one for each of its loop scopes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import pytest_asyncio

from rescope._pytest_scopes import FACTORY, ScopeFactory

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import pytest


def _on(loop_scope: Literal["function", "class", "module", "package", "session"]) -> object:
    @pytest_asyncio.fixture(loop_scope=loop_scope, name=f"_rescope_on_{loop_scope}_loop")
    async def scopes(request: pytest.FixtureRequest) -> AsyncIterator[ScopeFactory]:
        factory = request.node.stash[FACTORY] = ScopeFactory()
        yield factory
        await factory._close()

    return scopes


on_function = _on("function")
on_class = _on("class")
on_module = _on("module")
on_package = _on("package")
on_session = _on("session")
