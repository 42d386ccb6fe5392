"""Breaks the code on purpose, in one place at a time, and sees whether a test notices.

    python tests/mutation.py --only _held _flight

cosmic-ray makes the mutants, of the modules that `mutation.toml` names. All is done in a copy of the checkout. The
tests are imported once. Then each mutant gets a fork of that process, in which the functions that it changes get their
new code, and which runs the tests that execute the changed statement, the quick ones first, until one fails. A test has
to fail twice, so that a busy machine kills nothing. What stands outside of functions is changed in the source, and
tested by a process that begins anew.

A mutant that no test notices survives. Those that change nothing that can be seen are explained, one by one, in
`docs/mutation.md`; the command fails where another one survives.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import difflib
import gc
import json
import math
import os
import pickle
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any

import cosmic_ray.plugins
import pytest
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.config import load_config
from cosmic_ray.mutating import mutate_code
from coverage import Coverage

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

CHECKOUT = Path(__file__).resolve().parent.parent
CONFIG = "tests/mutation.toml"
COPIED = ("src", "tests", "examples", "benchmarks", "docs", "pyproject.toml", "conftest.py", "README.md")
MEMORY = 8 << 30
NEVER = ("soak", "benchmarks", "examples")
"""Tests that say nothing of the core that the others don't."""
LONG = ("laws*", "cancel_everywhere", "testing", "many", "environment")
QUICK = ("-k", "not uvloop and not trio")
UNIQUE = {"None", "OPEN", "CLOSING", "CLOSED", "DETACHED", "Token.MISSING"}
"""To ask whether something is one of these, or equals it, is the same."""

Function = tuple[str, int]
"""By its qualified name and its first line."""


@dataclass(frozen=True)
class Mutant:
    """One place, broken in one way, and what became of it."""

    module: str
    operator: str
    occurrence: int
    line: int
    was: str = ""
    becomes: str = ""
    fate: str = ""
    """"killed", "survived", or "same" where only an annotation or the like was changed."""
    by: str = ""
    """The test that noticed."""

    @property
    def room(self) -> str:
        return self.module.removeprefix("src/rescope/").removesuffix(".py")


# Mutants


def all_mutants(config: Any, only: list[str]) -> Iterator[Mutant]:
    """Give every mutant of the modules, not looked at yet."""
    excluded = re.compile("|".join(config.sub("filters", "operators-filter")["exclude-operators"]))
    for module in config["module-path"]:
        nodes = list(ast_nodes(get_ast(Path(module).read_text(encoding="utf-8"))))
        for name in cosmic_ray.plugins.operator_names():
            kind = cosmic_ray.plugins.get_operator(name)
            if kind.arguments() or excluded.match(name) or (only and Path(module).stem not in only):
                continue
            places = [start for node in nodes for start, _ in kind().mutation_positions(node)]
            for occurrence, (line, _) in enumerate(places):
                yield Mutant(module, name.removeprefix("core/"), occurrence, line)


def changed(source: str, mutant: Mutant) -> str | None:
    """Give the source of the mutant; `None` where it is no Python, or the same when run."""
    operator = cosmic_ray.plugins.get_operator(f"core/{mutant.operator}")()
    new = mutate_code(source, operator, mutant.occurrence)
    try:
        return None if new is None or ast.dump(bare(new)) == without_types(source) else new
    except SyntaxError:
        return None


@cache
def without_types(source: str) -> str:
    return ast.dump(bare(source))


def bare(source: str) -> ast.Module:
    """Parse what is run: no annotations, no slots, nothing that only type checkers read."""
    tree: ast.Module = Bare().visit(ast.parse(source))
    return tree


class Bare(ast.NodeTransformer):
    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> ast.AST | None:
        if (
            isinstance(last := node.body[-1], ast.Expr)
            and isinstance(last.value, ast.Constant)
            and last.value.value is ...
        ):
            return None
        node.returns = None
        return self.generic_visit(node)

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815 (so `ast` calls it)

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        """What is one of a kind is equal to nothing but itself: a type, a constant."""
        of_a_type = (
            isinstance(node.left, ast.Call) and isinstance(node.left.func, ast.Name) and node.left.func.id == "type"
        )
        if len(node.ops) == 1 and (of_a_type or ast.unparse(node.comparators[0]) in UNIQUE):
            same = {ast.Eq: ast.Is(), ast.NotEq: ast.IsNot()}
            node.ops = [same.get(type(node.ops[0]), node.ops[0])]
        return self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.annotation = ast.Constant(None)
        return self.generic_visit(node)

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        if any(isinstance(part, ast.Name) and part.id == "TYPE_CHECKING" for part in ast.walk(node.test)):
            return [self.visit(stmt) for stmt in node.orelse]
        return self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> ast.AST | None:
        slots = any(isinstance(target, ast.Name) and target.id == "__slots__" for target in node.targets)
        return None if slots else self.generic_visit(node)


def difference(source: str, new: str) -> tuple[str, str]:
    """Give the lines that differ, without what is the same around them."""
    old_lines, new_lines = source.splitlines(), new.splitlines()
    while old_lines and new_lines and old_lines[0] == new_lines[0]:
        del old_lines[0], new_lines[0]
    while old_lines and new_lines and old_lines[-1] == new_lines[-1]:
        del old_lines[-1], new_lines[-1]
    return " ".join(line.strip() for line in old_lines), " ".join(line.strip() for line in new_lines)


# Putting a mutant in place


@cache
def functions(source: str) -> tuple[str, dict[Function, str]]:
    """Tell apart what stands in functions from what is around them."""
    found: dict[Function, str] = {}

    def walk(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                first = min([child.lineno, *(decorator.lineno for decorator in child.decorator_list)])
                found[prefix + child.name, first] = ast.dump(ast.Module(child.body, []))
                child.body = [ast.Pass()]
            else:
                walk(child, f"{prefix}{child.name}." if isinstance(child, ast.ClassDef) else prefix)

    tree = bare(source)
    walk(tree, "")
    return ast.dump(tree), found


def codes(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from codes(constant)


def key(code: CodeType) -> Function:
    return code.co_qualname, code.co_firstlineno


def exchange(loaded: dict[Function, list[FunctionType]], source: str, new: str, file: str) -> bool:
    """Give the loaded functions their new code; tell whether that is all there is to change."""
    around, old_bodies = functions(source)
    new_around, new_bodies = functions(new)
    others = {function for function, body in new_bodies.items() if old_bodies.get(function) != body}
    if around != new_around or not all(function in loaded for function in others):
        return False
    for code in codes(compile(new, file, "exec", dont_inherit=True)):
        if key(code) in others:
            for function in loaded[key(code)]:
                try:
                    function.__code__ = code
                except ValueError:  # it closes over something else
                    return False
    return True


def loaded_functions(files: Iterable[str]) -> dict[str, dict[Function, list[FunctionType]]]:
    found: dict[str, dict[Function, list[FunctionType]]] = {file: defaultdict(list) for file in files}
    for thing in gc.get_objects():
        if type(thing) is FunctionType and thing.__code__.co_filename in found:
            found[thing.__code__.co_filename][key(thing.__code__)].append(thing)
    return found


# Running tests


class Tests:
    """A pytest plugin that has collected the tests, and lets the caller run them."""

    def __init__(self, judge: Any) -> None:
        self.judge = judge
        self.failed = False

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        self.items = {item.nodeid: item for item in session.items}
        self.judge(self)
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.failed = self.failed or report.failed

    def passes(self, name: str, seconds: float) -> bool:
        item: Any = self.items[name]
        self.failed = False
        signal.alarm(int(seconds) + 1)
        try:
            item.ihook.pytest_runtest_protocol(item=item, nextitem=None)
        except BaseException:  # an interrupt that got out is noticed too
            self.failed = True
        signal.alarm(0)
        item._initrequest()  # so that it can be run again
        return not self.failed

    def first_to_notice(self, tests: Iterable[tuple[str, float]], patience: float = 0) -> str | None:
        """Give the first test that fails twice."""
        until = time.monotonic() + (patience or math.inf)
        for name, seconds in tests:
            if time.monotonic() > until:
                return None
            if not self.passes(name, seconds) and not self.passes(name, seconds):
                return name
        return None


def collect(judge: Any, *args: str) -> None:
    """Collect the tests, and let `judge` run them."""
    options = [
        "--ignore-glob=tests/test_soak.py",
        "--ignore-glob=tests/test_benchmarks.py",
        "-q",
        "--capture=no",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:randomly",
        "-p",
        "no:cov",
        "-p",
        "no:timeout",
    ]
    code = pytest.main([*options, "tests", *args], plugins=[Tests(judge)])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        sys.exit(f"pytest: {code!r}")


def write(file: Path, text: str) -> None:
    """Write a file at once, so that it is whole whenever this ends."""
    new = file.with_suffix(".new")
    new.write_text(text, encoding="utf-8")
    new.replace(file)


def be_quiet() -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(nothing, stream)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


@dataclass
class Known:
    """What the tests do as long as nothing is broken."""

    seconds: dict[str, float]
    reached: dict[tuple[str, int], set[str]]
    """By file and line the tests that execute it."""

    @property
    def outside(self) -> list[str]:
        """The tests that execute none of it in this process: they start others."""
        inside = set[str]().union(*self.reached.values())
        return [name for name in self.seconds if name not in inside]


def learn(tests: Tests, names: list[str], files: list[str], limit: float) -> Known:
    """Run each test once, and see how long it takes and what it executes."""
    known = Known({}, defaultdict(set))
    coverage = Coverage(data_file=None, config_file=False, include=files)
    coverage.start()
    for number, name in enumerate(names):
        if number % 100 == 0:
            Path("progress").write_text(f"{number} of {len(names)} tests are known")
        coverage.switch_context(name)
        since = time.perf_counter()
        if tests.passes(name, 20 * limit):
            known.seconds[name] = time.perf_counter() - since
    coverage.stop()
    data = coverage.get_data()
    for file in files:
        for line, tests_there in data.contexts_by_lineno(file).items():
            known.reached[file, line].update(known.seconds.keys() & set(tests_there))
    return known


def statement(source: str, line: int) -> range:
    """Give the lines of the innermost statement around a line, of one with a body those before it."""
    best = range(0)
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.stmt | ast.ExceptHandler | ast.match_case):
            continue
        first = min([node.lineno, *(one.lineno for one in getattr(node, "decorator_list", []))])
        body = getattr(node, "body", None)
        lines = range(first, body[0].lineno if body and body[0].lineno > first else (node.end_lineno or first) + 1)
        if line in lines and (not best or len(lines) <= len(best)):
            best = lines
    return best


# Judging


class Judge:
    def __init__(self, copy: Path, config: Any, args: argparse.Namespace) -> None:
        self.copy = copy
        self.limit = float(config["timeout"])
        self.args = args
        self.mutants = list(all_mutants(config, args.only))
        self.hints: dict[tuple[str, str, str], str] = {}
        for file in args.hints:
            for one in json.loads(file.read_text()):
                self.hints[one["module"], one["was"], one["becomes"]] = one["by"]
        self.again: set[tuple[str, str, str]] = set()
        for one in json.loads(args.again.read_text()) if args.again else ():
            if one["fate"] == "survived":
                self.again.add((one["module"], one["was"], one["becomes"]))
        self.files = {module: str(copy / module) for module in config["module-path"]}
        self.judged: list[Mutant] = []

    def __call__(self, tests: Tests) -> None:
        import rescope

        assert Path(rescope.__file__).is_relative_to(self.copy), rescope.__file__
        self.tests = tests
        self.loaded = loaded_functions(self.files.values())
        for file in self.files.values():  # each fork knows them then
            without_types(Path(file).read_text(encoding="utf-8"))
            functions(Path(file).read_text(encoding="utf-8"))
        gc.collect()
        gc.freeze()
        self.known = self.learn(self.copy / "known.pickle")
        say(f"{len(self.known.seconds)} of {len(tests.items)} tests pass, {len(self.mutants)} mutants")
        under_way: dict[int, tuple[Mutant, Path]] = {}
        ahead = list(reversed(self.mutants))
        while ahead or under_way:
            while ahead and len(under_way) < self.args.workers:
                mutant = ahead.pop()
                file = self.copy / f"fate-{len(ahead)}.json"
                under_way[self.fork(lambda mutant=mutant, file=file: self.judge(mutant, file))] = mutant, file
            pid, _ = os.wait()
            mutant, file = under_way.pop(pid)
            if file.exists():
                mutant = Mutant(**json.loads(file.read_text()))
                file.unlink()
            if not mutant.fate:
                mutant = replace(mutant, fate="killed", by=f"{mutant.by} (it hangs, or ends the process)")
            self.judged.append(mutant)
            if self.args.out:
                write(self.args.out, json.dumps([asdict(one) for one in self.judged if one.fate != "same"], indent=1))
            if mutant.fate != "same":
                say(tell(mutant))

    def fork(self, main: Any) -> int:
        pid = os.fork()
        if pid:
            return pid
        try:
            be_quiet()
            main()
        finally:
            os._exit(0)

    def learn(self, file: Path) -> Known:
        """Learn what the tests do, of those that are not known from an earlier run in the same place."""
        known: Known = pickle.loads(file.read_bytes()) if file.exists() else Known({}, {})  # noqa: S301 (our own)
        new = [name for name in self.tests.items if name not in known.seconds]
        if new:
            files = list(self.files.values())

            def add() -> None:
                more = learn(self.tests, new, files, self.limit)
                known.seconds |= more.seconds
                for place, names in more.reached.items():
                    known.reached.setdefault(place, set()).update(names)
                file.write_bytes(pickle.dumps(known))

            os.waitpid(self.fork(add), 0)
            known = pickle.loads(file.read_bytes())  # noqa: S301
        return known

    def judge(self, mutant: Mutant, file: Path) -> None:
        """See whether a test notices; in a process of its own."""
        path = self.files[mutant.module]
        source = Path(path).read_text(encoding="utf-8")
        new = changed(source, mutant)
        was, becomes = difference(source, new or source)
        if new is None or (self.again and (mutant.module, was, becomes) not in self.again):
            file.write_text(json.dumps(asdict(replace(mutant, fate="same"))))
            return
        mutant = replace(mutant, was=was, becomes=becomes)
        file.write_text(json.dumps(asdict(mutant)))
        if exchange(self.loaded[path], source, new, path):
            lines = statement(source, mutant.line)
            order = self.in_order(self.reaching(path, lines))
            hint, own = self.hints.get((mutant.module, was, becomes)), f"tests/test_{Path(path).stem.strip('_')}.py"
            order.sort(key=lambda test: (test[0] != hint, not test[0].startswith(own)))
            by = self.tests.first_to_notice(order, self.args.patience)
        else:
            by = self.anew(mutant, new, self.reaching(path, range(1, len(source.splitlines()) + 1)))
        if by is None and not self.args.quick:
            by = self.anew(mutant, new, set(self.known.outside))
        file.write_text(json.dumps(asdict(replace(mutant, fate="killed" if by else "survived", by=by or ""))))

    def reaching(self, path: str, lines: range) -> set[str]:
        return set[str]().union(*(self.known.reached.get((path, line), set()) for line in lines))

    def in_order(self, names: set[str]) -> list[tuple[str, float]]:
        """Put the quick tests first, and give each its time."""
        seconds = self.known.seconds
        names = {name for name in names if name in self.tests.items and not (self.args.quick and seconds[name] > 1)}
        return [(name, max(self.limit, 5 * seconds[name])) for name in sorted(names, key=seconds.__getitem__)]

    def anew(self, mutant: Mutant, new: str, names: set[str]) -> str | None:
        """Let a process that begins anew look at the mutant's source."""
        with tempfile.TemporaryDirectory(dir=self.copy) as folder:
            shutil.copytree(self.copy / "src", Path(folder, "src"))
            Path(folder, mutant.module).write_text(new, encoding="utf-8")
            order = Path(folder, "order.json")
            order.write_text(json.dumps(self.in_order(names)))
            env = os.environ | {"PYTHONPATH": str(Path(folder, "src")), "PYTHONDONTWRITEBYTECODE": "1"}
            done = subprocess.run(  # noqa: S603 (this very file)
                [sys.executable, __file__, "--tests", str(order)], cwd=self.copy, env=env, check=False
            )
            found = order.with_suffix(".found")
            if found.exists():
                return found.read_text() or None
            return f"(it ends the process: {done.returncode})"


def judge_anew(order: Path) -> None:
    """Be the process that begins anew."""

    def judge(tests: Tests) -> None:
        import rescope

        assert Path(rescope.__file__).is_relative_to(order.parent), rescope.__file__
        found = tests.first_to_notice((name, seconds) for name, seconds in json.loads(order.read_text()))
        order.with_suffix(".found").write_text(found or "")

    files = {name.partition("::")[0] for name, _ in json.loads(order.read_text())}
    code = pytest.main(
        ["-q", "--capture=no", "-p", "no:cacheprovider", "-p", "no:randomly", *sorted(files)], plugins=[Tests(judge)]
    )
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        sys.exit(f"pytest: {code!r}")


# Telling

Row = tuple[str, str, str, str]
"""A survivor as the table has it: room, line, what of it was changed, and into what."""


def row(mutant: Mutant) -> Row:
    old, new = (re.findall(r"[<>=!]=|//|\*\*|<<|>>|\w+|\S", line) for line in (mutant.was, mutant.becomes))
    codes = difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
    parts = [part for part in codes if part[0] != "equal"]
    (_, first, _, start, _), (_, _, last, _, end) = parts[0], parts[-1]
    return mutant.room, mutant.was, " ".join(old[first:last]), " ".join(new[start:end])


def explained(page: Path) -> set[Row]:
    """Read the table of survivors: room, line, `from` → `to`, `to`, and why that can't be seen."""
    found: set[Row] = set()
    for line in page.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) == len(("room", "line", "change", "why")) and "→" in cells[2]:
            (room,), (was,) = re.findall("`+ ?(.+?) ?`+", cells[0]), re.findall("`+ ?(.+?) ?`+", cells[1])
            old, news = (re.findall("`(.+?)`", part) for part in cells[2].split("→"))
            found |= {(room, was, "".join(old), new) for new in news or [""]}
    return found


def sum_up(judged: list[Mutant], known: set[Row]) -> bool:
    """Print the score of each room, and the survivors that the table does not explain; tell whether there is none."""
    rooms: dict[str, list[Mutant]] = defaultdict(list)
    for mutant in judged:
        if mutant.fate != "same":
            rooms[mutant.room].append(mutant)
    rooms["all"] = [mutant for mutants in rooms.values() for mutant in mutants]
    survivors = [mutant for mutant in rooms["all"] if mutant.fate == "survived" and row(mutant) not in known]
    say(f"{'room':20} {'mutants':>7} {'killed':>6} {'survived':>8} {'explained':>9} {'score':>6}")
    for room, mutants in rooms.items():
        killed = sum(mutant.fate == "killed" for mutant in mutants)
        new = sum(mutant in survivors for mutant in mutants)
        alive = len(mutants) - killed
        score = f"{killed / len(mutants):.1%}" if mutants else "-"
        say(f"{room:20} {len(mutants):7} {killed:6} {alive:8} {alive - new:9} {score:>6}")
    for mutant in survivors:
        say(tell(mutant))
    return not survivors


def say(text: str) -> None:
    print(text, flush=True)  # noqa: T201


def tell(mutant: Mutant) -> str:
    return f"{mutant.fate:8} {mutant.room}:{mutant.line}  {mutant.was}  ->  {mutant.becomes}  {mutant.by}".rstrip()


def absolute(path: str) -> Path:
    return Path(path).resolve()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], metavar="ROOM", help="modules to break, by name")
    parser.add_argument(
        "--patience", type=float, default=0, help="seconds of tests that a survivor has survived; 0: all"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="mutants at a time")
    parser.add_argument("--quick", action="store_true", help="only tests on asyncio, and not those that take a second")
    parser.add_argument("--thorough", action="store_true", help="the laws and every cancellation point too")
    parser.add_argument("--tests", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--copy", type=absolute, help="where to put the copy, and to find it again")
    parser.add_argument("--out", type=absolute, help="where to put the results, as JSON")
    parser.add_argument(
        "--hints", type=absolute, nargs="+", default=[], help="earlier results: what noticed comes first"
    )
    parser.add_argument("--again", type=absolute, help="results of an earlier run: try those that survived")
    args = parser.parse_args()
    if args.tests:
        judge_anew(args.tests)
        return 0
    with contextlib.ExitStack() as stack:
        copy = args.copy or absolute(stack.enter_context(tempfile.TemporaryDirectory()))
        if not (copy / "src").exists():
            for name in COPIED:
                if (CHECKOUT / name).is_dir():
                    shutil.copytree(CHECKOUT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
                else:
                    copy.mkdir(exist_ok=True)
                    shutil.copy(CHECKOUT / name, copy / name)
        os.chdir(copy)
        sys.path.insert(0, str(copy / "src"))
        judge = Judge(copy, load_config(CONFIG), args)
        left_out = NEVER if args.thorough else NEVER + LONG
        collect(judge, *(f"--ignore-glob=tests/test_{name}.py" for name in left_out), *(QUICK if args.quick else ()))
    return 0 if sum_up(judge.judged, explained(CHECKOUT / "docs/mutation.md")) else 1


if __name__ == "__main__":
    sys.exit(main())
