"""Four workers, each a process, and the end of their shift: who goes when asked, and who has to be made to.

The indexer ends when it gets SIGTERM. The archiver has a file to finish first, and much to say while it does. The
importer ignores SIGTERM. The launcher has started a process that ignores it too, and waits for that. The shift is over
in the midst of the work: the body is cancelled, and the scope closes what it holds.

Each worker has a second to end. Then `force` kills it, and with it all that it has started. The program ends by
checking that no process is left, that the archive is whole, and that those who had to be forced were told as failures,
and no others; its exit code is 1 if not.

    python examples/processes.py
    python examples/processes.py --backend trio
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import tempfile
from contextlib import suppress
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread
from anyio.abc import ByteReceiveStream, Process

from rescope import CloseTimeoutError, Scope

PAGES = 20_000
ALLOWED = 1.0
"""The seconds that a worker has to end."""

WORK = """
import os, signal, subprocess, sys, time
{before}
os.write(1, f"{{os.getpid()}} {{{child}}}\\n".encode())
time.sleep(60)
"""
INDEXER = WORK.format(before="", child="''")
IMPORTER = WORK.format(before="signal.signal(signal.SIGTERM, signal.SIG_IGN)", child="''")
ARCHIVER = WORK.format(
    before=f"""
def finish(*_):
    with open(sys.argv[1], "w") as archive:
        for page in range({PAGES}):
            print("page", page, file=archive)
            print("archived page", page)
    sys.exit()

signal.signal(signal.SIGTERM, finish)
""",
    child="''",
)
LAUNCHER = WORK.format(
    before=f"""
child = subprocess.Popen([sys.executable, "-c", {IMPORTER!r}], stdout=subprocess.PIPE)
child.stdout.readline()
signal.signal(signal.SIGTERM, lambda *_: child.wait())
""",
    child="child.pid",
)
WORKERS = {"indexer": INDEXER, "archiver": ARCHIVER, "importer": IMPORTER, "launcher": LAUNCHER}


def signal_group(process: Process, number: signal.Signals) -> None:
    """Signal a process and all that it has started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def output(process: Process) -> ByteReceiveStream:
    if process.stdout is None:
        msg = "open the process with a pipe for its output"
        raise TypeError(msg)
    return process.stdout


async def stop(process: Process) -> None:
    """Ask a worker to end, hear it out, and wait; then kill what it leaves behind."""
    try:
        async with process:
            signal_group(process, signal.SIGTERM)
            async for _ in output(process):
                pass
            await process.wait()
    finally:
        signal_group(process, signal.SIGKILL)


class Shift:
    """The workers, and the pipe to which they and all that they start write their errors: it ends with the last."""

    def __init__(self, folder: Path) -> None:
        self.archive = folder / "archive.txt"
        self.workers: dict[str, Process] = {}
        self.processes = 0
        self.forced: list[str] = []
        read, self.write = os.pipe()
        self.errors = os.fdopen(read, "rb")

    async def begin(self, scope: Scope, name: str) -> None:
        command = [sys.executable, "-c", WORKERS[name], str(self.archive)]
        process = await anyio.open_process(command, stderr=self.write, start_new_session=True)
        force = partial(signal_group, process, signal.SIGKILL)
        scope.add(process, partial(stop, process), name=name, timeout=ALLOWED, force=force)
        self.workers[name] = process
        pids = (await output(process).receive()).split()
        self.processes += len(pids)
        print(f"    {name} is up" + (", with a process of its own" if len(pids) > 1 else ""))

    async def work(self) -> None:
        """Work until the shift is over, a tenth of a second after all are up."""
        scope = Scope("shift", grace=10, concurrent=True)
        with anyio.CancelScope() as shift:
            async with scope:
                for name in WORKERS:
                    await self.begin(scope, name)
                shift.deadline = anyio.current_time() + 0.1
                await self.workers["indexer"].wait()
        os.close(self.write)
        # What failed to close never takes the place of a cancellation: the scope logs it, and keeps it.
        failures = () if scope.cleanup_error is None else scope.cleanup_error.failures
        self.forced = sorted(failure.name for failure in failures if isinstance(failure.exception, CloseTimeoutError))

    async def is_over(self) -> bool:
        """Tell whether all processes have ended: those who were killed do when the system comes to it."""
        with self.errors, anyio.move_on_after(5):
            return await anyio.to_thread.run_sync(self.errors.read, abandon_on_cancel=True) == b""
        return False

    def ending(self, name: str) -> str:
        """Say how a worker ended."""
        code = self.workers[name].returncode
        how = f"exit code {code}" if code is None or code >= 0 else f"died of {signal.Signals(-code).name}"
        return how + (", had to be forced" if name in self.forced else "")


def pages(archive: Path) -> int:
    return len(archive.read_text(encoding="utf-8").splitlines()) if archive.exists() else 0


async def main() -> int:
    """Run a shift, and check how it ended."""
    with tempfile.TemporaryDirectory() as folder:
        shift = Shift(Path(folder))
        print("the shift begins")
        await shift.work()
        print("the shift is over")
        is_over = await shift.is_over()
        for name in WORKERS:
            print(f"    {name}: {shift.ending(name)}")
        print(f"    the archive has {pages(shift.archive):,} of {PAGES:,} pages")
        good = is_over and pages(shift.archive) == PAGES and shift.forced == ["importer", "launcher"]
    left = "none is left" if is_over else "NOT ALL HAVE ENDED"
    print(f"{shift.processes} processes were started, {left}; had to be forced: {', '.join(shift.forced) or 'none'}")
    return 0 if good else 1


if __name__ == "__main__":
    logging.basicConfig(stream=sys.stdout, format="    the scope says: %(message)s")
    parser = argparse.ArgumentParser(description="Run four workers as processes, and end their shift.")
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    sys.exit(anyio.run(main, backend=parser.parse_args().backend))
