"""The same work written out by hand: the limit, which no library can pass.

For 1 and 10 it is nested `try` and `finally`, as many as there are closers. Nobody writes a thousand of them, nor would
Python compile them: there it is a list, and a loop that runs all and collects what fails.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from contextlib import AbstractAsyncContextManager

    from benchmarks.work import AsyncClose, Batch, Item


def sync_closers(count: int, close: Callable[[], object]) -> Batch:
    """Call sync closers."""
    return partial({1: _one_sync, 10: _ten_sync}.get(count) or partial(_many_sync, count), close)


def async_closers(count: int, close: AsyncClose) -> Batch:
    """Await async closers."""
    return partial({1: _one_async, 10: _ten_async}.get(count) or partial(_many_async, count), close)


def ten_managers(m: AbstractAsyncContextManager[object]) -> Batch:
    """Enter ten managers by one `async with`, which is the same as ten nested ones."""

    async def ten(times: int) -> None:
        for _ in range(times):
            async with m, m, m, m, m, m, m, m, m, m:
                pass

    return ten


def ten_generators(generator: Callable[[], AsyncGenerator[Item]]) -> Batch:
    """Do the same with ten new managers, made of async generators."""
    make = asynccontextmanager(generator)

    async def ten(times: int) -> None:
        for _ in range(times):
            async with make(), make(), make(), make(), make(), make(), make(), make(), make(), make():
                pass

    return ten


async def _one_sync(close: Callable[[], object], times: int) -> None:
    for _ in range(times):
        try:
            pass
        finally:
            close()


async def _ten_sync(close: Callable[[], object], times: int) -> None:
    for _ in range(times):
        try:
            try:
                try:
                    try:
                        try:
                            try:
                                try:
                                    try:
                                        try:
                                            try:
                                                pass
                                            finally:
                                                close()
                                        finally:
                                            close()
                                    finally:
                                        close()
                                finally:
                                    close()
                            finally:
                                close()
                        finally:
                            close()
                    finally:
                        close()
                finally:
                    close()
            finally:
                close()
        finally:
            close()


async def _many_sync(count: int, close: Callable[[], object], times: int) -> None:
    for _ in range(times):
        errors: list[Exception] = []
        held = []
        try:
            for _ in range(count):
                held.append(close)  # noqa: PERF401 (each is opened by itself)
        finally:
            while held:
                try:
                    held.pop()()
                except Exception as error:
                    errors.append(error)
        if errors:
            msg = "closers failed"
            raise ExceptionGroup(msg, errors)


async def _one_async(close: AsyncClose, times: int) -> None:
    for _ in range(times):
        try:
            pass
        finally:
            await close()


async def _ten_async(close: AsyncClose, times: int) -> None:
    for _ in range(times):
        try:
            try:
                try:
                    try:
                        try:
                            try:
                                try:
                                    try:
                                        try:
                                            try:
                                                pass
                                            finally:
                                                await close()
                                        finally:
                                            await close()
                                    finally:
                                        await close()
                                finally:
                                    await close()
                            finally:
                                await close()
                        finally:
                            await close()
                    finally:
                        await close()
                finally:
                    await close()
            finally:
                await close()
        finally:
            await close()


async def _many_async(count: int, close: AsyncClose, times: int) -> None:
    for _ in range(times):
        errors: list[Exception] = []
        held = []
        try:
            for _ in range(count):
                held.append(close)  # noqa: PERF401 (each is opened by itself)
        finally:
            while held:
                try:
                    await held.pop()()
                except Exception as error:
                    errors.append(error)
        if errors:
            msg = "closers failed"
            raise ExceptionGroup(msg, errors)
