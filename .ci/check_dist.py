"""Check what is in the wheel and in the sdist of a folder: `check_dist.py dist`.

The wheel holds the package and its licence, the sdist the whole project, and neither holds anything else.
"""

from __future__ import annotations

import runpy
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path, PurePath

ROOT = Path(__file__).parents[1]
NAME = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["name"]
VERSION = runpy.run_path(str(ROOT / "src" / NAME / "_version.py"))["__version__"]
ABOUT = ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE")
IGNORED = [".git", *(line.rstrip("/") for line in (ROOT / ".gitignore").read_text(encoding="utf-8").split())]


def files(folder: Path) -> set[str]:
    """Name the files below a folder of the project, but those that git ignores."""
    paths = [path.relative_to(ROOT) for path in folder.rglob("*") if path.is_file()]
    return {path.as_posix() for path in paths if not is_ignored(path)}


def is_ignored(path: PurePath) -> bool:
    """Tell whether the file or a folder that it is in is ignored."""
    return any(part.match(pattern) for part in (path, *path.parents) for pattern in IGNORED)


def in_wheel(path: Path) -> set[str]:
    """Name the files in a wheel."""
    with zipfile.ZipFile(path) as wheel:
        return set(wheel.namelist())


def in_sdist(path: Path) -> set[str]:
    """Name the files in an sdist, without the folder that all of them are in."""
    with tarfile.open(path) as sdist:
        return {member.name.removeprefix(f"{NAME}-{VERSION}/") for member in sdist.getmembers() if member.isfile()}


def report(what: Path, found: set[str], expected: set[str]) -> bool:
    """Say which files are missing, and which should not be there."""
    print(f"{what.name}: {len(found)} files")
    for name in sorted(expected - found):
        print(f"  missing: {name}")
    for name in sorted(found - expected):
        print(f"  not expected: {name}")
    return found == expected


def main(dist: Path) -> int:
    """Compare both with the project."""
    wheel, sdist = dist / f"{NAME}-{VERSION}-py3-none-any.whl", dist / f"{NAME}-{VERSION}.tar.gz"
    if {*dist.iterdir()} != {wheel, sdist}:
        print(f"expected {wheel.name} and {sdist.name}, found: {', '.join(path.name for path in dist.iterdir())}")
        return 1
    package = {path.removeprefix("src/") for path in files(ROOT / "src")}
    about = {f"{NAME}-{VERSION}.dist-info/{name}" for name in ABOUT}
    marker = f"{NAME}/py.typed"
    fine = [
        report(wheel, in_wheel(wheel), package | about | {marker}),
        report(sdist, in_sdist(sdist), files(ROOT) | {"PKG-INFO"}),
    ]
    return 0 if all(fine) else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
