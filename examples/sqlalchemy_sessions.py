"""Seats booked through SQLAlchemy's async sessions, on SQLite and on PostgreSQL: commit, or roll back, without a flag.

Each request is a child scope with a session: it commits on success, and rolls back when the request fails or is
cancelled. Whatever happens, the connection goes back to the pool, and the engine is disposed of last.
PostgreSQL is a server of its own, or the one that `RESCOPE_TEST_POSTGRES_URL` names.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import anyio
from servers import connections_left, postgres
from sqlalchemy import URL, AsyncAdaptedQueuePool, make_url, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from rescope import Scope

NAME = "rescope-seats"


class Base(DeclarativeBase):
    """The tables of this example."""


class Seat(Base):
    """A seat that is taken."""

    __tablename__ = "rescope_seats"

    number: Mapped[int] = mapped_column(primary_key=True)
    taken_by: Mapped[str]


def open_session(request: Scope, engine: AsyncEngine) -> AsyncSession:
    session = request.add(AsyncSession(engine))
    request.on_success(session.commit)
    request.on_error(session.rollback)
    return session


async def book(service: Scope, engine: AsyncEngine, number: int, name: str) -> None:
    async with service.child(f"booking of {name}") as request:
        session = open_session(request, engine)
        session.add(Seat(number=number, taken_by=name))
        await session.flush()
        if name == "carol":  # she can't make up her mind
            await anyio.sleep_forever()


async def booked(service: Scope, engine: AsyncEngine) -> dict[int, str]:
    async with service.child("list") as request:
        session = open_session(request, engine)
        seats = await session.scalars(select(Seat).order_by(Seat.number))
        return {seat.number: seat.taken_by for seat in seats}


async def run(url: URL) -> bool:
    """Book some seats; tell whether all is as it should be."""
    async with Scope("box office", grace=10) as service:
        settings = {"server_settings": {"application_name": NAME}} if url.drivername.startswith("postgresql") else {}
        engine = create_async_engine(url, poolclass=AsyncAdaptedQueuePool, connect_args=settings)
        service.add(engine, engine.dispose)
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        await book(service, engine, 1, "ada")
        try:
            await book(service, engine, 1, "bob")
        except IntegrityError:
            print("  bob wanted a seat that is taken: rolled back")
        with anyio.move_on_after(0.3):
            await book(service, engine, 2, "carol")
        print("  carol went away: rolled back")
        await book(service, engine, 2, "dora")
        seats = await booked(service, engine)
        out = engine.pool.checkedout() if isinstance(engine.pool, AsyncAdaptedQueuePool) else 0
        print(f"  booked: {seats}; connections out of the pool: {out}")
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.drop_all)
    return seats == {1: "ada", 2: "dora"} and out == 0


def main() -> int:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        print("on SQLite")
        good = asyncio.run(run(make_url(f"sqlite+aiosqlite:///{folder / 'seats.sqlite'}")))
        print("on PostgreSQL")
        url = stack.enter_context(postgres())
        good = asyncio.run(run(make_url(url).set(drivername="postgresql+asyncpg"))) and good
        left = asyncio.run(connections_left(url, NAME))
        print(f"connections left in the server: {len(left)}")
        return 0 if good and not left else 1


if __name__ == "__main__":
    sys.exit(main())
