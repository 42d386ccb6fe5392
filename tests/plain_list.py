"""The model: what must come of a program, by the rules alone.

A scope is a list of entries, popped from the end. Nothing of the library is used. What comes out is told as
`tests/programs.py` tells it, so that the two can be compared.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from strategies import Child, Early, HostAll, Hosted, Item, Managed, Plain, Program, refuses

CANCELLED = "cancelled"
VALUED = {"add", "add limited", "add resource", "create", "own close", "own aclose", "acquire"}
TAKES_VALUE = {"defer args", "on_error", "create", "acquire", "acquire async", "acquire shield"}


def urgent(exc: Any) -> bool:
    """Tell whether an exception is no `Exception`, by its label."""
    return isinstance(exc, str) and exc.split()[0] in {CANCELLED, "KeyboardInterrupt", "SystemExit", "Stop"}


@dataclass(eq=False)
class Entry:
    """Something that a scope holds."""

    item: Any
    state: str = "open"
    dead: bool = False
    inner: Holder | None = None
    held_by: Holder | None = None

    @property
    def name(self) -> str:
        return str(self.item.name)


@dataclass(eq=False)
class Holder:
    """A scope: a list."""

    concurrent: bool = False
    entries: list[Entry] = field(default_factory=list)
    state: str = "open"

    def keep(self, entry: Entry) -> None:
        entry.state, entry.held_by = "open", self
        self.entries.append(entry)


@dataclass(eq=False)
class Failure:
    """A failure on record; one that was suppressed has no exception any more."""

    name: str
    exc: Any


@dataclass(eq=False)
class Flight:
    """What managers see, and what is too urgent to be replaced."""

    exc: Any = None
    flying: Failure | None = None
    urgent: list[Any] = field(default_factory=list)
    waiting: bool = False
    sheltered: bool = False
    """Whether no cancellation reaches those who close."""

    def take(self, exc: Any, failure: Failure | None = None) -> None:
        """Let the next manager see this."""
        if exc is not None and exc != self.exc and urgent(exc):
            self.urgent.append(exc)
        self.exc, self.flying = exc, failure

    def drop(self) -> None:
        """What is in flight is gone."""
        if self.exc in self.urgent:
            self.urgent.remove(self.exc)
        self.exc = self.flying = None

    def most_urgent(self) -> Any:
        for exc in self.urgent:
            if exc.startswith(("KeyboardInterrupt", "SystemExit")):
                return exc
        return self.urgent[0] if self.urgent else None


@dataclass(eq=False)
class Pass:
    """The closing of one scope, or of one resource."""

    outcome: tuple[str, Any]
    flight: Flight
    failures: list[Failure] = field(default_factory=list)
    attempted: int = 0

    def failed(self, name: str, exc: Any) -> Failure | None:
        if urgent(exc):
            self.flight.urgent.append(exc)
            return None
        failure = Failure(name, exc)
        self.failures.append(failure)
        return failure

    def error(self) -> Any:
        return tuple((one.name, one.exc) for one in self.failures if one.exc is not None) or None

    def comes_out(self) -> Any:
        """Say what is raised."""
        return self.flight.most_urgent() or self.error() or self.flight.exc

    def logs(self) -> bool:
        """Tell whether there was an error that could not be raised."""
        return bool(self.error() and self.flight.most_urgent())


class Model:
    """Runs a program on lists."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.journal: list[tuple[Any, ...]] = []
        self.entries: dict[str, Entry] = {}
        self.detached: list[str] = []
        self.held: list[str] = []
        self.deaths: list[str] = []
        self.logs = 0
        """How often an error could not be raised, because of something urgent."""
        self.asked = False
        """Whether a `task.cancel()` was not delivered yet."""
        self.scope_cancelled = False
        self.requests = 0
        self.root = Holder(program.concurrent)
        self.run()

    def log(self, *entry: Any) -> None:
        self.journal.append(entry)

    # The body

    def run(self) -> None:
        program = self.program
        before = len(program.items) if program.move is None else program.move
        self.do_all(self.root, program.items[:before])
        self.root = Holder(program.concurrent, self.root.entries)
        for entry in self.root.entries:
            entry.held_by = self.root
        self.do_all(self.root, program.items[before:])
        self.held = [entry.name for entry in self.root.entries]
        raised, returned = self.body_end()
        by_hand = program.form == "aclose"
        self.outcome = ("Ok", None) if by_hand else ("Err", raised) if raised is not None else ("Ok", returned)
        if returned is not None and returned[0] in ("Ok", "Err"):
            self.outcome = returned if program.form in ("with_scope", "scoped") else ("Ok", None)
        elif program.form not in ("with_scope", "scoped") and raised is None:
            self.outcome = ("Ok", None)
        flight = Flight()
        if not by_hand:
            flight.take(raised)
        closing = self.closing = Pass(self.outcome, flight)
        self.close_all(self.root, closing)
        out = closing.comes_out()
        self.logs += closing.logs()
        self.failures = closing.error()
        self.cause = flight.exc if flight.flying is None else None
        self.came = self.what_came(out, raised, returned)
        self.later = CANCELLED if self.asked or self.scope_cancelled else None
        for name in self.detached:
            entry = self.entries[name]
            self.log("told", name, self.close_now(entry) if entry.state == "detached" else None)

    def body_end(self) -> tuple[Any, Any]:
        """Give what the body raises, or returns."""
        if self.program.end == "cancel":
            self.cancel(self.program.times)
            self.asked = False  # it has been delivered
        ends: dict[str, tuple[Any, Any]] = {
            "raise": ("body", None),
            "raise secret": ("KeyError body", None),
            "stop": ("Stop body", None),
            "interrupt": ("KeyboardInterrupt body", None),
            "cancel": (CANCELLED, None),
            "ok": (None, ("Ok", "body")),
            "err": (None, ("Err", "body")),
        }
        return ends.get(self.program.end, (None, "body"))

    def what_came(self, out: Any, raised: Any, returned: Any) -> tuple[str, Any]:
        in_function = self.program.form in ("with_scope", "scoped")
        if out is not None:
            if out == self.failures and in_function and isinstance(returned, tuple):
                return "returned", ("Err", out)
            return "raised", out
        if self.program.form == "aclose" and raised is not None:
            return "raised", raised
        return "returned", returned if in_function and raised is None else None

    def do_all(self, holder: Holder, items: tuple[Item, ...]) -> None:
        for item in items:
            match item:
                case Plain() | Managed() | Hosted() if refuses(item):
                    self.log("told", item.name, item.name)
                case Plain() | Managed() | Hosted():
                    self.keep(holder, Entry(item))
                case HostAll():
                    for host in item.hosts:
                        self.keep(holder, Entry(host))
                case Child():
                    inner = Holder(item.concurrent)
                    self.keep(holder, Entry(item, inner=inner))
                    self.do_all(inner, item.items)
                case Early():
                    self.log("told", item.target, self.early(holder, item.how, self.entries[item.target]))

    def keep(self, holder: Holder, entry: Entry) -> None:
        self.entries[entry.name] = entry
        holder.keep(entry)

    def early(self, holder: Holder, how: str, entry: Entry) -> Any:
        """Do something to an entry, and say what is raised."""
        item = entry.item
        if how == "die":
            if isinstance(item, Hosted) and entry.state != "closed" and not entry.dead:
                entry.dead = True
                self.deaths.append(entry.name)
            return None
        if how in ("detach", "readd"):
            if entry.state != "open":
                return "KeyError"
            holder.entries.remove(entry)
            entry.state, entry.held_by = "detached", None
            if how == "readd":
                holder.keep(entry)
            else:
                self.detached.append(entry.name)
            return None
        has_value = not isinstance(item, Plain) or item.how.startswith("acquire") or item.how in VALUED
        if how == "value" and has_value and entry.state != "open":
            return "KeyError"
        if how != "aclose" and entry.state == "detached":
            return "KeyError"
        return self.close_now(entry) if entry.state in ("open", "detached") else None

    def cancel(self, times: int) -> None:
        self.requests += times
        if self.program.cancel == "scope":
            self.scope_cancelled = True
        else:
            self.asked = True

    # Closing

    def close_now(self, entry: Entry) -> Any:
        """Close one out of turn, as on success, and say what is raised."""
        closing = Pass(("Ok", None), Flight(sheltered=True))
        if entry.held_by is not None and entry in entry.held_by.entries:
            entry.held_by.entries.remove(entry)
        if entry.inner is None:
            self.close(entry, closing)
        else:
            entry.state = "closing"
            self.close_all(entry.inner, closing)
            entry.state = "closed"
        self.logs += closing.logs()
        return closing.comes_out()

    def close_all(self, holder: Holder, closing: Pass) -> None:
        """Pop from the end until nothing is left."""
        holder.state = "closing"
        closing.attempted = len(holder.entries)
        while holder.entries:
            if holder.concurrent:
                self.close_at_once(holder, closing)
            else:
                self.close(holder.entries.pop(), closing)
        holder.state = "closed"

    def close_at_once(self, holder: Holder, closing: Pass) -> None:
        """Close all that is there; no matter in what order, they see the same."""
        flight = closing.flight
        sheltered, flight.sheltered = flight.sheltered, True
        seen, entries = flight.exc, holder.entries[::-1]
        holder.entries.clear()
        for entry in entries:
            entry.state = "closing"
        for entry in entries:
            self.close(entry, closing)
        flight.sheltered = sheltered
        assert flight.exc == seen, "nothing in a concurrent scope changes what is in flight"
        if any(not isinstance(entry.item, Plain) or entry.item.style != "sync" for entry in entries):
            self.waits(flight)

    def close(self, entry: Entry, closing: Pass) -> None:
        entry.state = "closing"
        match entry.item:
            case Plain():
                self.close_plain(entry, closing)
            case Managed():
                self.exit(entry, closing)
            case Hosted():
                self.exit_host(entry, closing)
            case Child():
                self.close_child(entry, closing)
        entry.state = "closed"

    def close_plain(self, entry: Entry, closing: Pass) -> None:
        item, outcome = entry.item, closing.outcome
        due = {"on_error": outcome[0] == "Err", "on_success": outcome[0] == "Ok"}.get(item.how, True)
        if not due:
            closing.attempted -= 1
            return
        seen = item.name if item.how in TAKES_VALUE else outcome if item.how == "on_exit" else None
        self.log("begin", item.name, seen)
        self.do(entry, closing)
        self.log("end", item.name)
        if item.style != "sync":
            self.waits(closing.flight)
        exc = raised_by(item.name, item.end)
        if exc is not None:
            closing.failed(item.name, exc)

    def do(self, entry: Entry, closing: Pass) -> None:
        """What a closer does besides."""
        item, holder = entry.item, entry.held_by
        if item.does in ("defer", "acquire", "host", "child") and holder is not None:
            kinds = {"host": Hosted(f"{item.name}+"), "child": Child("scope", (Plain(f"{item.name}+"),))}
            more = Entry(kinds.get(item.does, Plain(f"{item.name}+")))
            if item.does == "child":
                more.inner = Holder()
                more.inner.keep(Entry(Plain(f"{item.name}+")))
            holder.keep(more)
            closing.attempted += 1
        elif item.does == "enter":
            self.log("told", item.name, "ScopeClosedError")
        elif item.does == "close":
            target = self.entries[item.target]
            closes = target.state in ("open", "detached")
            self.log("told", item.name, self.close_now(target) if closes else None)
        elif item.does == "cancel":
            self.cancel(1 if item.style == "sync" else self.program.times)

    def close_child(self, entry: Entry, closing: Pass) -> None:
        """A child closes with its parent's outcome, and sees what its parent sees."""
        assert entry.inner is not None
        if entry.inner.state == "closed":
            return
        flight = closing.flight
        own = Pass(closing.outcome, flight)
        self.close_all(entry.inner, own)
        if own.error() is not None:
            failure = closing.failed(entry.name, own.error())
            if flight.flying in own.failures:
                flight.exc, flight.flying = own.error(), failure

    def exit(self, entry: Entry, closing: Pass) -> None:  # noqa: C901
        """Exit an entered manager, as a `with` statement would."""
        item, flight = entry.item, closing.flight
        seen = flight.exc
        self.log("begin", item.name, seen)
        if "async" in item.kind and item.steps and not flight.sheltered and (self.asked or self.scope_cancelled):
            self.asked = False
            self.log("cut", item.name)
            flight.take(CANCELLED)
            return
        self.log("end", item.name)
        new = item.name
        match item.act:
            case "suppress" if seen is not None:
                if flight.flying is not None:
                    flight.flying.exc = None
                flight.drop()
                if flight.waiting and self.scope_cancelled:
                    flight.waiting = False
                    flight.take(CANCELLED)
            case "raise":
                failure = closing.failed(item.name, new)
                if seen is None or flight.flying is not None:
                    flight.take(new, failure)
            case "wrap" if seen is not None:
                if flight.flying is not None:
                    flight.flying.exc = new
                    flight.exc = new
                else:
                    flight.drop()
                    flight.take(new)
            case "interrupt" | "stop":
                if seen == CANCELLED:  # as nested `with`s would
                    flight.drop()
                flight.take(f"{'KeyboardInterrupt' if item.act == 'interrupt' else 'Stop'} {new}")

    def exit_host(self, entry: Entry, closing: Pass) -> None:
        """Exit a hosted manager: it sees what is in flight, and can't change that."""
        item, flight = entry.item, closing.flight
        if entry.dead:
            closing.failed(item.name, f"HostDiedError {item.name}")
            return
        self.log("begin", item.name, flight.exc)
        self.log("end", item.name)
        if item.act == "interrupt":
            new: Any = f"KeyboardInterrupt {item.name}"
        else:
            new = item.name if item.act == "raise" else None
        self.waits(flight)
        if new is not None:
            closing.failed(item.name, new)

    def waits(self, flight: Flight) -> None:
        """The closing task waits: a cancellation reaches it, and is held off."""
        if flight.sheltered or not (self.asked or self.scope_cancelled):
            return
        self.asked = False
        if flight.exc is None or flight.flying is not None:
            flight.take(CANCELLED)
        elif urgent(flight.exc):
            pass
        elif self.program.cancel == "scope":
            flight.waiting = True
        else:
            flight.take(CANCELLED)


def raised_by(name: str, end: str) -> Any:
    """Say what a closer that ends so has failed with."""
    return {
        "raise": name,
        "raise secret": f"KeyError {name}",
        "err": name,
        "err value": f"CloseRejectedError {name}",
        "cancelled": f"CloseCancelledError {name}",
        "interrupt": f"KeyboardInterrupt {name}",
        "exit": f"SystemExit {name}",
        "stop": f"Stop {name}",
    }.get(end)
