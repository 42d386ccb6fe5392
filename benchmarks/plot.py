"""The pictures of the page: how the contenders stand, how cost grows, and what each guarantee adds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks import bounds
from benchmarks.svg import AMBER, BLUE, GREEN, GREY, PINK, PURPLE, RED, Picture, Scale

if TYPE_CHECKING:
    from benchmarks.results import Results

# Those drawn last lie on top.
CONTENDERS = {
    "by hand": ("stroke", GREEN, "by hand"),
    "dishka": ("triangle", PINK, "dishka"),
    "svcs": ("square", PURPLE, "svcs"),
    "AES+": ("cross", AMBER, "AES+"),
    "add": ("ring", BLUE, "rescope, add"),
    "rescope": ("dot", BLUE, "rescope, defer"),
}
STEPS = (GREY, GREEN, BLUE, PURPLE, PINK, AMBER, RED)
WIDTH = 720
FAINT = 0.18
BAND = 0.28


def standing(results: Results) -> str:
    """Draw how all stand, row by row: times as ratios to the stack."""
    left, right, top, step = 186, WIDTH - 16, 62, 30
    bottom = top + step * len(results.rows)
    words = "Each row a kind of work, each mark a contender: its time as a ratio to AsyncExitStack's, on a log scale."
    picture = Picture(WIDTH, bottom + 44, words)
    x = Scale((0.015, 30), (left, right))
    for tick in (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20):
        even = tick == 1
        picture.line((x(tick), top - 14), (x(tick), bottom - 8), width=1 + even, tint=0.7 if even else FAINT)
        picture.text(x(tick), bottom + 6, f"{tick:g}", anchor="middle", bold=even)
    picture.text(left, bottom + 30, "← faster")
    picture.text(x(1), bottom + 30, "AsyncExitStack", anchor="middle", bold=True)
    picture.text(right, bottom + 30, "slower →", anchor="end")
    at = 8.0
    for form, colour, label in reversed(CONTENDERS.values()):
        picture.mark(at, 20, form, colour)
        picture.text(at + 13, 20, label)
        at += 38 + 6.7 * len(label)
    picture.bar(at - 4, 20, 24, 16, BLUE, tint=BAND)
    picture.text(at + 26, 20, "from goal to must")
    for number, (work, figures) in enumerate(results.rows.items()):
        y = top + step * number + 4
        picture.text(left - 16, y, work, anchor="end")
        bound = bounds.of_row(work, results.python, results.backend).aes
        if bound.must is not None:
            begin = left if bound.goal is None else x(bound.goal)
            picture.bar(begin, y, x(bound.must) - begin, 20, BLUE, tint=BAND)
        for name, (form, colour, _) in CONTENDERS.items():
            if name in figures.to_aes:
                picture.mark(x(figures.to_aes[name].middle), y, form, colour)
    return picture.written()


def growing(results: Results) -> str:
    """Draw what each closer costs, the more there are."""
    left, right, top, bottom = 64, WIDTH - 120, 34, 250
    lines: dict[str, list[tuple[int, float]]] = {}
    for part, cost in results.singles[bounds.GROWTH].parts.items():
        name, count = part.split()
        lines.setdefault(name, []).append((int(count), cost))
    sizes = [size for size, _ in lines["rescope"]]
    most = max(cost for line in lines.values() for _, cost in line)
    words = f"Nanoseconds per closer, from {sizes[0]:,} to {sizes[-1]:,} closers, in a scope and in AsyncExitStack."
    picture = Picture(WIDTH, bottom + 48, words)
    picture.text(0, 10, "ns per closer")
    x = Scale((sizes[0], sizes[-1]), (left, right))
    grid = range(0, int(most) + 200, 200)

    def y(each: float) -> float:
        return bottom - (bottom - top) * each / grid[-1]

    for tick in grid:
        picture.line((left, y(tick)), (right, y(tick)), tint=FAINT)
        picture.text(left - 12, y(tick), f"{tick:,}", anchor="end")
    for size in sizes:
        picture.text(x(size), bottom + 18, f"{size:,}", anchor="middle")
    picture.text((left + right) / 2, bottom + 38, "closers", anchor="middle")
    for name, colour, label in (("AES", GREY, "AsyncExitStack"), ("rescope", BLUE, "rescope")):
        picture.line(*((x(size), y(each)) for size, each in lines[name]), colour=colour, width=2.5)
        for size, each in lines[name]:
            picture.mark(x(size), y(each), "small dot", colour)
        picture.text(right + 16, y(lines[name][-1][1]), label)
    return picture.written()


def climbing(ladders: dict[str, dict[str, float]]) -> str:
    """Draw what each guarantee adds to the cost of a closer, and where the stack stands."""
    left, right, step = 164, WIDTH - 12, 40
    steps = [name for name in next(iter(ladders.values())) if name != "AES"]
    top = 40 + 22 * ((len(steps) + 2) // 3)
    bottom = top + step * len(ladders)
    most = max(max(found.values()) for found in ladders.values())
    picture = Picture(
        WIDTH, bottom + 46, "A bar for each kind of work, made of steps: what each guarantee adds, in ns."
    )
    for number, name in enumerate(steps):
        at = 8 + 240 * (number % 3), 12 + 22 * (number // 3)
        picture.bar(*at, 14, 14, STEPS[number], tint=0.85)
        picture.text(at[0] + 22, at[1], "the rest of Scope" if name == "Scope" else name)

    def x(each: float) -> float:
        return left + (right - left) * each / most

    for tick in range(0, int(most) + 1, 500):
        picture.line((x(tick), top - 18), (x(tick), bottom - 16), tint=FAINT)
        picture.text(x(tick), bottom - 2, f"{tick:,}", anchor="middle")
    for number, (work, found) in enumerate(ladders.items()):
        y = top + step * number
        picture.text(left - 14, y, work, anchor="end")
        reached = 0.0
        for place, name in enumerate(steps):
            picture.bar(x(reached), y, x(max(found[name], reached)) - x(reached), 20, STEPS[place], tint=0.85)
            reached = max(reached, found[name])
        picture.line((x(found["AES"]), y - 17), (x(found["AES"]), y + 17), width=2.5)
    picture.text(left, bottom + 28, "ns per closer; the upright stroke is AsyncExitStack")
    return picture.written()
