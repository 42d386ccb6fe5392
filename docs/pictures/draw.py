"""The pictures of the docs: `python docs/pictures/draw.py` draws them anew, each into a file beside this one.

With `--check` it only tells whether they are as they would be drawn. The pages take them in as they are, by the
directive `picture` of `conf.py`, so that lines and letters have the colour of the text around them, in the light theme
and in the dark one. The few colours besides are readable on both.
"""
# ruff: noqa: INP001

from __future__ import annotations

import sys
from html import escape
from pathlib import Path

WIDTH = 720
LANE = 30
BAR = 24
LEFT = 132
"""Where the lanes begin, after their names."""

BLUE, GREEN, RED, AMBER = "#3a76bd", "#2e8058", "#cf3b3b", "#a5640f"
"""Held, closed, out of time, cancelled: white letters can be read on each, and each on white and on black."""

SANS = "system-ui, -apple-system, 'Segoe UI', Roboto, Helvetica, Arial, sans-serif"
MONO = "ui-monospace, SFMono-Regular, Menlo, Consolas, monospace"


class Picture:
    """A picture in the making, with the words that stand for it where it can't be seen."""

    def __init__(self, name: str, height: int, words: str) -> None:
        self.name, self.height, self.words = name, height, words
        self.parts: list[str] = []

    def text(
        self,
        x: float,
        y: float,
        words: str,
        *,
        anchor: str = "start",
        size: int = 13,
        colour: str = "currentColor",
        bold: bool = False,
        code: bool = False,
    ) -> None:
        """Write a line; `x` is its start, middle or end, `y` the middle of its height."""
        extra = (' font-weight="600"' if bold else "") + (f' font-family="{MONO}"' if code else "")
        self.parts.append(
            f'<text x="{x:g}" y="{y + size * 0.35:g}" font-size="{size}" text-anchor="{anchor}" fill="{colour}"{extra}>'
            f"{escape(words)}</text>"
        )

    def box(
        self,
        left: float,
        right: float,
        top: float,
        height: float,
        colour: str,
        *,
        solid: bool = False,
        tint: float = 0.14,
        dash: str = "",
    ) -> None:
        """Draw a box: filled, or a tint with an outline."""
        look = f'fill="{colour}"' if solid else f'fill="{colour}" fill-opacity="{tint:g}"'
        dashes = f' stroke-dasharray="{dash}"' if dash else ""
        self.parts.append(
            f'<rect x="{left:g}" y="{top:g}" width="{right - left:g}" height="{height:g}" rx="4" {look} '
            f'stroke="{colour}" stroke-width="1.5"{dashes}/>'
        )

    def bar(
        self,
        left: float,
        right: float,
        y: float,
        words: str,
        colour: str,
        *,
        solid: bool = False,
        dash: str = "",
        middle: float | None = None,
    ) -> None:
        """Draw a stretch of time in the lane whose middle is `y`, with its name inside, in the middle or elsewhere."""
        self.box(left, right, y - BAR / 2, BAR, colour, solid=solid, dash=dash)
        inside = "#ffffff" if solid else "currentColor"
        middle = (left + right) / 2 if middle is None else middle
        self.text(middle, y, words, anchor="middle", size=12, colour=inside)

    def line(self, x1: float, y1: float, x2: float, y2: float, *, colour: str = "currentColor", dash: str = "") -> None:
        """Draw a straight line."""
        dashes = f' stroke-dasharray="{dash}"' if dash else ""
        self.parts.append(
            f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="{colour}" stroke-width="1.5"{dashes}/>'
        )

    def arrow(self, x1: float, y1: float, x2: float, y2: float, *, colour: str = "currentColor") -> None:
        """Draw an arrow, straight along or straight down or up."""
        across = y1 == y2
        forth = 1 if (x2 - x1) + (y2 - y1) > 0 else -1
        if across:
            tip = f"{x2:g},{y2:g} {x2 - 8 * forth:g},{y2 - 4:g} {x2 - 8 * forth:g},{y2 + 4:g}"
            self.line(x1, y1, x2 - 6 * forth, y2, colour=colour)
        else:
            tip = f"{x2:g},{y2:g} {x2 - 4:g},{y2 - 8 * forth:g} {x2 + 4:g},{y2 - 8 * forth:g}"
            self.line(x1, y1, x2, y2 - 6 * forth, colour=colour)
        self.parts.append(f'<polygon points="{tip}" fill="{colour}"/>')

    def moment(self, x: float, top: float, bottom: float, words: str) -> None:
        """Mark a moment that all lanes share, named above them."""
        self.line(x, top, x, bottom, dash="3 4")
        self.text(x, top - 10, words, anchor="middle", size=12)

    def time(self, y: float) -> None:
        """Draw which way the time goes."""
        self.arrow(LEFT, y, WIDTH - 10, y)
        self.text(0, y, "time", size=12)

    def svg(self) -> str:
        """Give the whole picture."""
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {self.height}" '
            f'font-family="{SANS}" role="img" aria-label="{escape(self.words)}">'
        )
        return "\n".join([head, *self.parts, "</svg>", ""])


def order_last_first() -> Picture:
    """Draw three resources that close one after the other."""
    p = Picture(
        "order-last-first",
        168,
        "Three resources are opened one after the other: folder, connection, transaction. When the body ends, they "
        "close one at a time: transaction, then connection, then folder.",
    )
    ends = 440
    p.moment(ends, 30, 126, "the body ends")
    for lane, (name, opened) in enumerate([("folder", 140), ("connection", 200), ("transaction", 260)]):
        y, closes = 46 + LANE * lane, ends + 90 * (2 - lane)
        p.text(0, y, name, bold=True)
        p.bar(opened, closes, y, "held", BLUE, middle=(opened + ends) / 2)
        p.bar(closes, closes + 86, y, "closes", GREEN, solid=True)
    p.time(148)
    return p


def order_at_once() -> Picture:
    """Draw three resources that close at the same time."""
    p = Picture(
        "order-at-once",
        168,
        "Three sessions in a concurrent scope. When the body ends, all three close at the same time, and the scope is "
        "closed when the slowest is.",
    )
    ends = 440
    p.moment(ends, 30, 126, "the body ends")
    for lane, (name, opened, takes) in enumerate(
        [("session 1", 140, 110), ("session 2", 200, 170), ("session 3", 260, 80)]
    ):
        y = 46 + LANE * lane
        p.text(0, y, name, bold=True)
        p.bar(opened, ends, y, "held", BLUE)
        p.bar(ends, ends + takes, y, "closes", GREEN, solid=True)
    p.moment(ends + 170, 30, 126, "closed")
    p.time(148)
    return p


def order_child() -> Picture:
    """Draw a child scope at its place in the order of its parent."""
    p = Picture(
        "order-child",
        206,
        "A parent holds a database, a child scope with a lock and a session in it, and a log. When the body ends, the "
        "log closes first, then the child with its session and its lock, then the database.",
    )
    ends = 390
    p.moment(ends, 30, 162, "the body ends")
    p.box(1, ends + 238, 62, 68, "currentColor", tint=0, dash="5 4")
    lanes = [("database", 140, 3), ("lock", 190, 2), ("session", 240, 1), ("log", 290, 0)]
    for lane, (name, opened, place) in enumerate(lanes):
        y, closes = 46 + (LANE + 3) * lane, ends + 79 * place
        inner = name in {"lock", "session"}
        p.text(60 if inner else 0, y, name, bold=True)
        p.bar(opened, closes, y, "held", BLUE, middle=(opened + ends) / 2)
        p.bar(closes, closes + 75, y, "closes", GREEN, solid=True)
    p.text(10, 96, "child", size=12)
    p.time(186)
    return p


def time_halves() -> Picture:
    """Draw how a grace is shared out among closers that hang."""
    p = Picture(
        "time-halves",
        190,
        "A scope with a grace of eight seconds and three closers that hang. The first to close may take four seconds, "
        "half of the eight. The next may take two, half of the four that are left. The last may take all that is left, "
        "two seconds.",
    )
    second = 72
    hang = [("third", 0, 4, "half of 8 s"), ("second", 4, 6, "half of 4 s"), ("first", 6, 8, "all of 2 s")]
    for lane, (name, begins, over, share) in enumerate(hang):
        y = 22 + LANE * lane
        p.text(0, y, f"{name}, hangs", bold=True)
        p.bar(LEFT + second * begins, LEFT + second * over, y, share, RED, solid=True)
        p.line(LEFT + second * over, y + BAR / 2, LEFT + second * over, 128, dash="3 4")
    p.line(LEFT, 128, LEFT + second * 8, 128)
    for seconds in range(9):
        x = LEFT + second * seconds
        p.line(x, 124, x, 132)
        p.text(x, 144, str(seconds), anchor="middle", size=12)
    p.text(0, 144, "seconds", size=12)
    p.text(LEFT, 174, "grace=8", code=True)
    p.line(LEFT + 74, 174, LEFT + second * 8, 174)
    p.line(LEFT + second * 8, 166, LEFT + second * 8, 182)
    return p


def time_moments() -> Picture:
    """Draw what becomes of a close that is out of time."""
    p = Picture(
        "time-moments",
        178,
        "A close that hangs. When its time is up it is cancelled, and has up to 50 milliseconds to end. Then force is "
        "called, and it has up to 50 milliseconds more. Then it is left behind, and the next one closes.",
    )
    y = 62
    p.text(0, y, "one close", bold=True)
    p.bar(LEFT, 300, y, "closing, in its time", GREEN, solid=True)
    p.bar(300, 420, y, "up to 50 ms", AMBER, solid=True)
    p.bar(420, 540, y, "up to 50 ms", RED, solid=True)
    p.bar(540, 708, y, "left behind", RED, dash="5 4")
    for x, words, code in [(300, "cancelled", False), (420, "force()", True), (540, "given up", False)]:
        p.text(x, 16, words, anchor="middle", size=12, code=code)
        p.arrow(x, 26, x, 48)
    p.text(0, 112, "the next one", bold=True)
    p.bar(540, 708, 112, "closing", GREEN, solid=True)
    p.line(540, y + BAR / 2, 540, 100, dash="3 4")
    p.text(LEFT, 156, "If it ends earlier, the next one begins earlier.", size=12)
    return p


def cancel_held_off() -> Picture:
    """Draw a cancellation that comes while a scope closes."""
    p = Picture(
        "cancel-held-off",
        208,
        "A task runs the body, then closes three closers: two async ones in a task of their own, and a sync one in the "
        "task itself. A cancellation hits the task while the first closer runs. It is held off until all three are "
        "closed, and is then raised.",
    )
    mine, other = 92, 142
    p.text(0, mine, "your task", bold=True)
    p.text(0, other, "a task for", bold=True)
    p.text(0, other + 16, "async closers", bold=True)
    p.bar(LEFT, 270, mine, "body", BLUE)
    p.bar(270, 490, mine, "waits for them", BLUE, dash="5 4")
    p.bar(490, 600, mine, "sync closer", GREEN, solid=True)
    p.bar(274, 378, other, "async closer", GREEN, solid=True)
    p.bar(382, 486, other, "async closer", GREEN, solid=True)
    p.text(330, 16, "task.cancel()", anchor="middle", size=12, code=True)
    p.arrow(330, 26, 330, mine - BAR / 2, colour=AMBER)
    p.line(330, 52, 600, 52, colour=AMBER, dash="3 4")
    p.text(465, 40, "held off", anchor="middle", size=12)
    p.line(600, 52, 600, mine - BAR / 2, colour=AMBER, dash="3 4")
    p.arrow(604, mine, 640, mine, colour=AMBER)
    p.text(648, mine, "raised", size=12)
    p.line(270, mine + BAR / 2, 270, other + BAR / 2, dash="3 4")
    p.line(490, mine + BAR / 2, 490, other + BAR / 2, dash="3 4")
    p.time(190)
    return p


def cancel_reaches() -> Picture:
    """Draw what a cancellation of the closing task reaches."""
    p = Picture(
        "cancel-reaches",
        178,
        "What a cancellation of your task reaches. The body and the exit of an entered manager are cut short, as in "
        "a plain async with. A sync closer, which does not await, is not reached, nor is what runs in tasks of its "
        "own: an async closer, the exit of a hosted manager, an acquire with shield=True.",
    )
    mine, other = 86, 152
    p.text(0, mine, "your task", bold=True)
    p.text(0, other - 8, "tasks of", bold=True)
    p.text(0, other + 8, "their own", bold=True)
    p.text(264, 16, "a cancellation cuts these short", anchor="middle", size=12)
    for left, right, words in [(LEFT, 232, "body"), (242, 396, "exit of an entered one")]:
        p.bar(left, right, mine, words, AMBER)
        p.arrow((left + right) / 2, 30, (left + right) / 2, mine - BAR / 2, colour=AMBER)
    p.line(408, 30, 408, 120, dash="6 4")
    p.line(LEFT, 120, 408, 120, dash="6 4")
    p.text(564, 16, "it does not reach these", anchor="middle", size=12)
    p.bar(420, 560, mine, "sync closer", GREEN, solid=True)
    for left, right, words in [
        (LEFT, 310, "async closer"),
        (320, 500, "exit of a hosted one"),
        (510, 708, "acquire(shield=True)"),
    ]:
        p.bar(left, right, other, words, GREEN, solid=True)
    return p


def hosts() -> Picture:
    """Draw whose task enters and exits a manager."""
    p = Picture(
        "hosts",
        306,
        "Above: an entered manager is entered, used and exited in one task. Below: a hosted manager is entered in "
        "a task of its own, which stays there; your task goes on with the value it gave. Another task closes the "
        "scope, the host's task exits the manager, and the other task goes on.",
    )
    p.text(0, 16, "await scope.enter(client)", code=True)
    p.text(0, 50, "your task", bold=True)
    p.bar(LEFT, 212, 50, "enters", GREEN, solid=True)
    p.bar(216, 560, 50, "body", BLUE)
    p.bar(564, 644, 50, "exits", GREEN, solid=True)
    p.line(0, 86, WIDTH, 86, dash="1 5")
    p.text(0, 112, "await scope.host(client)", code=True)
    mine, host, other = 148, 204, 260
    p.text(0, mine, "your task", bold=True)
    p.text(0, host, "the host's task", bold=True)
    p.text(0, other, "any task", bold=True)
    p.bar(LEFT, 232, mine, "waits", BLUE, dash="5 4")
    p.bar(236, 520, mine, "body", BLUE)
    p.bar(142, 228, host, "enters", GREEN, solid=True)
    p.bar(232, 560, host, "stays", BLUE)
    p.bar(564, 644, host, "exits", GREEN, solid=True)
    p.arrow(147, mine + BAR / 2, 147, host - BAR / 2)
    p.arrow(234, host - BAR / 2, 234, mine + BAR / 2)
    p.text(242, (mine + host) / 2, "the value", size=12)
    p.bar(540, 652, other, "scope.aclose()", BLUE, dash="5 4")
    p.arrow(562, other - BAR / 2, 562, host + BAR / 2)
    p.arrow(646, host + BAR / 2, 646, other - BAR / 2)
    p.text(554, (host + other) / 2, "leave", anchor="end", size=12)
    p.text(654, (host + other) / 2, "done", size=12)
    p.time(294)
    return p


def failures() -> Picture:
    """Draw what comes out of a scope."""
    p = Picture(
        "failures",
        356,
        "What comes out of a scope. Was something raised that is no Exception, by the body or a closer? Then it is "
        "raised as itself, and the cleanup error is noted on it. Else, did anything fail to close? Then one "
        "ResourceCleanupError is raised, with the body's exception as its cause. Else, did the body raise? Then its "
        "exception is raised. Else the body's value is given.",
    )
    steps = [
        (
            ("Was anything raised that is no Exception:", "a cancellation, KeyboardInterrupt, SystemExit?"),
            AMBER,
            ("It is raised as itself.", "What failed is noted on it, logged,", "and in scope.cleanup_error"),
        ),
        (
            ("Did anything fail to close?",),
            RED,
            ("One ResourceCleanupError, from what", "the body raised. Of a Result:", "Err(ResourceCleanupError)"),
        ),
        (
            ("Did the body raise, and did no entered", "manager suppress it?"),
            BLUE,
            ("What it raised, as the entered", "managers left it"),
        ),
    ]
    for number, (question, colour, answer) in enumerate(steps):
        y = 46 + 96 * number
        p.box(1, 318, y - 32, 64, "currentColor")
        p.box(430, 719, y - 32, 64, colour)
        for lines, x in [(question, 160), (answer, 575)]:
            for line, words in enumerate(lines):
                p.text(x, y + 17 * (line - (len(lines) - 1) / 2), words, anchor="middle", size=12)
        p.arrow(318, y, 430, y)
        p.text(374, y - 10, "yes", anchor="middle", size=12)
        p.arrow(160, y + 32, 160, y + 64)
        p.text(170, y + 46, "no", size=12)
    p.box(1, 318, 302, 44, GREEN)
    p.text(160, 324, "Nothing is raised: the body's value", anchor="middle", size=12)
    return p


PICTURES = [
    order_last_first,
    order_at_once,
    order_child,
    time_halves,
    time_moments,
    cancel_held_off,
    cancel_reaches,
    hosts,
    failures,
]


def main(*, check: bool) -> int:
    """Draw them all, or check them; give the exit code."""
    stale = False
    for picture in [draw() for draw in PICTURES]:
        path = Path(__file__).with_name(f"{picture.name}.svg")
        if check:
            stale |= path.read_text(encoding="utf-8") != picture.svg()
        else:
            path.write_text(picture.svg(), encoding="utf-8")
    return int(stale)


if __name__ == "__main__":
    sys.exit(main(check="--check" in sys.argv))
