"""Writes down what is public: `python -m tests.public_api` renews `public_api.txt`, which `test_api.py` looks after.

It is read from the source of the installed package: annotations and overloads stand there as they were written, and
they are the same on every Python.
"""

from __future__ import annotations

import ast
import copy
import re
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator

WRITTEN = Path(__file__).with_suffix(".txt")
IMPLIED = "what these name"

Statement = TypeVar("Statement", bound=ast.stmt)
Definitions = dict[str, list[ast.stmt]]
Place = tuple[str, str]


@dataclass
class Module:
    """What a module defines at its top, and what it takes from others of rescope."""

    defined: Definitions = field(default_factory=lambda: defaultdict(list))
    imported: dict[str, Place] = field(default_factory=dict)


def public_modules() -> list[str]:
    """Name the package and its modules, but those with an underscore."""
    package = path_of("rescope").parent
    paths = [path.relative_to(package.parent).with_suffix("") for path in package.rglob("*.py")]
    names = [".".join(path.parts).removesuffix(".__init__") for path in paths]
    return sorted(name for name in names if "._" not in name)


def public_names(module: str) -> list[str]:
    """Name what is in `__all__`, or what is defined there."""
    defined = read(module).defined
    match defined.get("__all__"):
        case [ast.Assign(value=names)]:
            return sorted(ast.literal_eval(names))
        case _:
            return sorted(name for name in defined if not name.startswith("_"))


def path_of(module: str) -> Path:
    """Find the source of a module."""
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin)


@cache
def read(name: str) -> Module:
    """Read a module of rescope."""
    module = Module()
    for statement in at_top(ast.parse(path_of(name).read_text(encoding="utf-8"))):
        match statement:
            case ast.ImportFrom(module=str(source), names=names) if source.partition(".")[0] == "rescope":
                module.imported |= {alias.asname or alias.name: (source, alias.name) for alias in names}
            case _ if made := name_of(statement):
                module.defined[made].append(statement)
            case _:
                pass
    return module


def at_top(tree: ast.Module) -> Iterator[ast.stmt]:
    """Give what stands at the top of a module, also what only type checkers see."""
    for statement in tree.body:
        yield from statement.body if isinstance(statement, ast.If) else [statement]


def name_of(statement: ast.stmt) -> str | None:
    """Give the name that a statement defines."""
    match statement:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return name
        case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
            return name
        case _:
            return None


def place_of(module: str, name: str) -> Place:
    """Find where a name that a module knows is defined."""
    while name in read(module).imported:
        module, name = read(module).imported[name]
    return module, name


# From what is defined to what is seen


def seen(module: str, definitions: list[ast.stmt]) -> list[ast.stmt]:
    """Keep what a user sees of the definitions of a name: where there are overloads, only them."""
    overloads = [one for one in definitions if "overload" in map(ast.unparse, getattr(one, "decorator_list", []))]
    return [without_insides(module, one) for one in overloads or definitions]


def without_insides(module: str, statement: ast.stmt) -> ast.stmt:
    """Take away what a function does, and what is private to a class."""
    match statement:
        case ast.FunctionDef(body=body) | ast.AsyncFunctionDef(body=body):
            kept = [line for line in body if sets_attribute(line)]
        case ast.ClassDef():
            statement = with_private_bases(module, statement)
            members: Definitions = defaultdict(list)
            for line in sorted(statement.body, key=fields_first):
                if is_public(name := name_of(line) or "_"):
                    members[name].append(line)
            kept = [line for definitions in members.values() for line in seen(module, definitions)]
        case _:
            return statement
    return changed(statement, body=kept or [ast.Expr(ast.Constant(...))])


def with_private_bases(module: str, statement: ast.ClassDef) -> ast.ClassDef:
    """Give a class what it has from private ones: to users it is all the same."""
    bases, body = list(statement.bases), list(statement.body)
    for place in private_bases(module, statement):
        (definition,) = read(place[0]).defined[place[1]]
        assert isinstance(definition, ast.ClassDef)
        base = with_private_bases(place[0], definition)
        bases = [other for other in bases if ast.unparse(other) != place[1]] + base.bases
        own = {name_of(line) for line in body}
        body += [line for line in base.body if name_of(line) not in own]
    return changed(statement, bases=bases, body=body)


def private_bases(module: str, statement: ast.stmt) -> list[Place]:
    """Find the classes of rescope that it has things from, and that users can't name."""
    places = [place_of(module, base.id) for base in getattr(statement, "bases", []) if isinstance(base, ast.Name)]
    return [place for place in places if "._" in place[0] and place[1] in read(place[0]).defined]


def changed(statement: Statement, **parts: object) -> Statement:
    """Copy a statement with other parts."""
    statement = copy.copy(statement)
    vars(statement).update(parts)
    return statement


def fields_first(line: ast.stmt) -> tuple[bool, str]:
    """Sort by name, but for fields: theirs is the order in which they are given."""
    is_field = isinstance(line, ast.Assign | ast.AnnAssign)
    return not is_field, "" if is_field else name_of(line) or ""


def is_public(name: str) -> bool:
    """Tell whether a member is for users, or for Python itself."""
    return not name.startswith("_") or (name.startswith("__") and name != "__slots__")


def sets_attribute(line: ast.stmt) -> bool:
    """Tell whether it gives the object a public attribute."""
    match line:
        case ast.Assign(targets=[ast.Attribute(value=ast.Name(id="self"), attr=name)]):
            return is_public(name)
        case _:
            return False


# Writing it down


def describe() -> dict[str, str]:
    """Describe each public module, and in the end what their signatures name besides."""
    modules = public_modules()
    sections = {module: [told(module, name) for name in public_names(module)] for module in modules}
    sections[IMPLIED] = [told(*place) for place in implied()]
    return {title: "\n".join(sorted(set(section), key=order)).strip() for title, section in sections.items()}


def order(text: str) -> tuple[bool, str]:
    """Sort what fits into one line before all that doesn't."""
    return "\n" in text, text


def told(module: str, name: str) -> str:
    """Describe a name of a module; where another public one defines it, just say so."""
    source, original = place_of(module, name)
    if source != module and source in public_modules():
        return f"from {source} import {original}"
    text = "\n".join(ast.unparse(statement) for statement in seen(source, read(source).defined[original]))
    text = re.sub(r"\n+", "\n", re.sub(r":\n +\.\.\.$", ": ...", text, flags=re.MULTILINE))
    return f"\n{text}" if "\n" in text else text


def implied() -> set[Place]:
    """Find what else of rescope the public signatures name, and what those name."""
    public = {place_of(module, name) for module in public_modules() for name in public_names(module)}
    found, ahead = set(public), list(public)
    bases = set()
    while ahead:
        module, name = ahead.pop()
        definitions = read(module).defined[name]
        bases |= {base for definition in definitions for base in private_bases(module, definition)}
        nodes = ast.walk(ast.Module(seen(module, definitions), []))
        named = {place_of(module, node.id) for node in nodes if isinstance(node, ast.Name)} | bases
        new = {place for place in named - found if place[1] in read(place[0]).defined}
        ahead += new
        found |= new
    return found - public - bases


def write(sections: dict[str, str]) -> str:
    """Put the sections into one text."""
    return "\n\n\n".join(f"# {title}\n\n{section}" for title, section in sections.items()) + "\n"


def parse(text: str) -> dict[str, str]:
    """Take the text apart again."""
    sections = re.split(r"^# (.+)\n\n", text, flags=re.MULTILINE)[1:]
    return {title: section.strip() for title, section in zip(sections[::2], sections[1::2], strict=True)}


if __name__ == "__main__":
    WRITTEN.write_text(write(describe()), encoding="utf-8")
