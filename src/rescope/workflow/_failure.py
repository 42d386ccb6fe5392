"""What is kept of a failure, for whoever reads of it later: the type of the error and its message, and nothing else."""

from __future__ import annotations

from rescope import ResourceCleanupError

__all__ = ["told"]


def told(error: object) -> tuple[str | None, str]:
    """Give the name of an error's type and its message; `None` and the text where a text is what there is.

    The message of a group is followed by those of what it holds, since its own says how many those are, and no more.
    Raises `TypeError` for what is neither an exception nor a text.
    """
    if isinstance(error, str):
        return None, error
    if isinstance(error, BaseException):
        return type(error).__qualname__, _message(error)
    what = f"the class {error.__qualname__}" if isinstance(error, type) else f"a {type(error).__qualname__}"
    msg = f"`error` must be an exception or a text, not {what}"
    raise TypeError(msg)


def _message(error: BaseException) -> str:
    try:
        message = str(error)
    except Exception:  # its `__str__` is foreign code
        return ""
    if isinstance(error, BaseExceptionGroup) and not isinstance(error, ResourceCleanupError):
        return f"{message}: {', '.join(map(_line, error.exceptions))}"
    return message


def _line(error: BaseException) -> str:
    kind, message = type(error).__qualname__, _message(error)
    return f"{kind}: {message}" if message else kind
