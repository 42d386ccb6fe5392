"""Each check as a session: `nox -l` lists them, `nox -s types` runs one."""

from __future__ import annotations

import shutil
from pathlib import Path

import nox

nox.needs_version = ">=2024.10.9"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.sessions = ["tests", "coverage", "lint", "types", "docs", "package", "oldest", "without"]

PYTHONS = ["3.11", "3.12", "3.13"]
CORE = ["tests", "--ignore=tests/clients", "-m", "not long"]


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run the tests and every snippet of the docs."""
    session.install("-e", ".[test]")
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session(python=PYTHONS[-1])
def coverage(session: nox.Session) -> None:
    """Run the tests, and fail where a branch was not taken."""
    session.install("-e", ".[test]")
    session.run("coverage", "run", "-m", "pytest", *CORE, *session.posargs)
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


@nox.session(python=PYTHONS)
def package(session: nox.Session) -> None:
    """Build wheel and sdist, check what is in them, and run the sdist's tests with the wheel installed."""
    folder = Path(session.create_tmp()).resolve()
    dist, project = folder / "dist", folder / "project"
    for old in (dist, project):
        shutil.rmtree(old, ignore_errors=True)
    session.install("-e", ".[lint,package]")
    session.run("python", "-m", "build", "--outdir", str(dist))
    session.run("twine", "check", "--strict", *map(str, dist.iterdir()))
    session.run("python", ".ci/check_dist.py", str(dist))

    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    shutil.unpack_archive(sdist, project, filter="data")
    (unpacked,) = project.iterdir()
    shutil.rmtree(unpacked / "src")
    session.install(f"rescope[test] @ {wheel.as_uri()}")
    session.run("pyright", "--verifytypes", "rescope", "--ignoreexternal")
    session.chdir(unpacked)
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session(python=PYTHONS[0])
def oldest(session: nox.Session) -> None:
    """Run the tests with the oldest dependencies that are allowed."""
    constraints = Path(session.create_tmp()) / "oldest.txt"
    oldest = session.run("python", ".ci/oldest.py", silent=True)
    constraints.write_text(str(oldest), encoding="utf-8")
    session.install("-e", ".[test-core]", "--constraint", str(constraints))
    session.run("python", "-m", "pytest", *CORE, *session.posargs)


@nox.session(python=PYTHONS[-1])
@nox.parametrize("more", ["", ",trio"], ids=["trio and uvloop", "uvloop"])
def without(session: nox.Session, more: str) -> None:
    """Run the tests where optional packages are not installed."""
    test = nox.project.load_toml("pyproject.toml")["project"]["optional-dependencies"]["test-core"]
    session.install(
        "-e",
        f".[cli,durable,otel,postgres,redis{more}]",
        *(one for one in test if not one.startswith(("rescope", "uvloop"))),
    )
    session.run("python", "-m", "pytest", *CORE, *session.posargs)


@nox.session(python=PYTHONS)
def laws(session: nox.Session) -> None:
    """Try the laws on many more random programs than the tests do."""
    session.install("-e", ".[test]")
    session.env["HYPOTHESIS_PROFILE"] = "thorough"
    session.run("python", "-m", "pytest", *map(str, Path("tests").glob("test_laws*.py")), *session.posargs)


@nox.session(python=PYTHONS[-1])
def soak(session: nox.Session) -> None:
    """Put a million resources through scopes, and see that nothing is left of them."""
    session.install("-e", ".[test]")
    session.run("python", "tests/soak.py", *session.posargs)


@nox.session(python=[PYTHONS[-1], PYTHONS[0]])
def mutation(session: nox.Session) -> None:
    """Break the code in every place, and see that a test notices; on the oldest Python what is for that alone."""
    session.install("-e", ".[mutation]")
    rooms = ["--only", "asyncio"] if session.python == PYTHONS[0] else []
    session.run("python", "tests/mutation.py", *(session.posargs or rooms))


@nox.session(python=PYTHONS[-1])
def bench(session: nox.Session) -> None:
    """Measure what rescope costs."""
    session.install("-e", ".[bench]")
    session.run("python", "-m", "benchmarks", *session.posargs)
