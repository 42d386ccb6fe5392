"""An album of images, made smaller side by side by one durable function each; two files are no images.

The album starts a function for each image, and gathers what came of them: the failures are part of the result, and stop
no other image. A limit of two at a time is a semaphore of this process, in the function itself.

    python examples/durable_images.py
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

from rescope import Ok, Scope
from rescope.workflow.durable import Durable, gather

folder = tempfile.TemporaryDirectory()
root = Path(folder.name)
app = Durable(url=f"sqlite:///{root}/work.db", name="album")
AT_A_TIME = 2
BROKEN = (5, 11)
at_a_time = asyncio.Semaphore(AT_A_TIME)
working: list[str] = []
most = 0


def halve(image: bytes) -> bytes:
    """Make an image in PGM format half as wide and half as high."""
    kind, size, depth, pixels = image.split(b"\n", 3)
    if kind != b"P5":
        msg = "no PGM image"
        raise ValueError(msg)
    width, height = map(int, size.split())
    rows = [pixels[row * width : row * width + width : 2] for row in range(0, height, 2)]
    return b"\n".join([kind, b"%d %d" % (width // 2, height // 2), depth, b"".join(rows)])


@app.function(namespace="images.album", attempts=2, backoff=0.01)
async def thumbnail(scope: Scope, name: str) -> int:
    """Make one image smaller; gives how many bytes it has."""
    global most  # noqa: PLW0603 (the check at the end wants to know)
    await scope.enter(at_a_time)
    working.append(name)
    scope.defer(working.remove, name)
    most = max(most, len(working))
    smaller = await asyncio.to_thread(lambda: halve((root / name).read_bytes()))
    return (root / f"small-{name}").write_bytes(smaller)


@app.function(namespace="images.album")
async def album(_scope: Scope, names: list[str]) -> dict[str, str]:
    """Make all smaller, and say of each how it went."""
    handles = await asyncio.gather(*(thumbnail.start(name) for name in names))
    results = await gather(*handles)
    return {
        name: f"{result.value} bytes" if isinstance(result, Ok) else f"failed: {result.error}"
        for name, result in zip(names, results, strict=True)
    }


async def main() -> bool:
    names = [f"{number:02}.pgm" for number in range(12)]
    for number, name in enumerate(names):
        pixels = bytes(range(64)) * 64
        (root / name).write_bytes(b"P5\n64 64\n255\n" + pixels if number not in BROKEN else b"<html>404</html>\n\n\n")
    async with app:
        handle = await album.start(names, key="holidays")
        told = await handle.result(timeout=30)
        progress = await handle.progress()
    for name, how in told.items():
        print(f"{name}: {how}")
    print(f"{progress.done} of {progress.total} done, {progress.failed} failed, at most {most} at a time")
    made = len(list(root.glob("small-*")))  # noqa: ASYNC240
    return (made, progress.done, progress.failed, most <= AT_A_TIME, working) == (10, 10, 2, True, [])


if __name__ == "__main__":
    with folder:
        sys.exit(0 if asyncio.run(main()) else "it did NOT go as it should")
