"""Our own programs, run to their end in a process of their own, and the examples among them."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"

every_backend = pytest.mark.parametrize("backend", ["asyncio", *(["trio"] if importlib.util.find_spec("trio") else [])])
"""What an example takes for `--backend`."""


def run_python(
    *args: str, env: Mapping[str, str] | None = None, cwd: Path | None = None, timeout: float = 60
) -> subprocess.CompletedProcess[str]:
    """Run our interpreter with these arguments; `env` is added to the environment."""
    return subprocess.run(  # noqa: S603 (the programs are our own)
        [sys.executable, *args],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONIOENCODING": "utf-8", **(env or {})},
        cwd=cwd,
        timeout=timeout,
        check=False,
    )


def run_example(
    name: str, *args: str, env: Mapping[str, str] | None = None, cwd: Path | None = None, timeout: float = 60
) -> subprocess.CompletedProcess[str]:
    """Run an example as a user would, but that a warning is an error."""
    return run_python("-W", "error", str(EXAMPLES / name), *args, env=env, cwd=cwd, timeout=timeout)


def load_example(name: str) -> ModuleType:
    """Import an example, of which a test needs a part."""
    path = EXAMPLES / name
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look themselves up there
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[path.stem]
    return module
