"""Each check as a session: `nox -l` lists them, `nox -s types` runs one."""

from __future__ import annotations

import nox

nox.needs_version = ">=2024.10.9"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.sessions = ["tests", "coverage", "lint", "types", "docs"]

PYTHONS = ["3.11", "3.12", "3.13"]


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run the tests and every snippet of the docs."""
    session.install("-e", ".[test]")
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session(python=PYTHONS[-1])
def coverage(session: nox.Session) -> None:
    """Run the tests, and fail where a branch was not taken."""
    session.install("-e", ".[test]")
    session.run("coverage", "run", "-m", "pytest", "tests", *session.posargs)
    session.run("coverage", "report")


@nox.session(python=PYTHONS[-1])
def lint(session: nox.Session) -> None:
    """Check style and form."""
    session.install("-e", ".[lint]")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")


@nox.session(python=PYTHONS[-1])
def types(session: nox.Session) -> None:
    """Check the types with mypy and pyright."""
    session.install("-e", ".[lint,test]")
    session.run("mypy")
    session.run("pyright")


@nox.session(python=PYTHONS[-1])
def docs(session: nox.Session) -> None:
    """Build the docs, warnings being errors, and run their snippets."""
    session.install("-e", ".[docs,test]")
    session.run("sphinx-build", "-W", "--keep-going", "-b", "html", "docs", "docs/_build/html")
    session.run("python", "-m", "pytest", "docs", "README.md")


@nox.session(python=PYTHONS[-1])
def bench(session: nox.Session) -> None:
    """Measure what rescope costs."""
    session.install("-e", ".[bench]")
    session.run("python", "-m", "benchmarks", *session.posargs)
