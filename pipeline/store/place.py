"""Where a run may lie and how that is written: a path of this machine, or a URL of an object store that keeps
what it gets."""

from __future__ import annotations

import os
import re
import unicodedata
from pathlib import Path
from urllib.parse import unquote, urlsplit

STORES = ("s3", "gs", "az")
"""Schemes of object stores. Others that the libraries beneath know (``memory://``, ``http://``) keep nothing,
or take nothing."""

ALLOWED = "a path, file:///PATH, s3://BUCKET/NAME, gs://BUCKET/NAME or az://CONTAINER/NAME"

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")
_NO_LETTERS = {"Cc", "Cs", "Zl", "Zp"}
"""Unicode's categories of control characters, of bytes that
are no UTF-8 as Python holds them, and of line breaks."""


class PlaceError(ValueError):
    """A run cannot lie there. The message names the place, what is wrong with it, and what is allowed."""


def is_remote(place: str) -> bool:
    """Whether a place as ``placed`` gives it is a URL of an object store."""
    return place.startswith(tuple(f"{scheme}://" for scheme in STORES))


def placed(text: str) -> str:
    """A place as it is used everywhere: an absolute path without links, or a URL without a slash at its end.

    ``~`` is the home directory, and ``file://`` a path. Raises PlaceError.
    """
    shown = repr(text)[1:-1]
    if not text.strip():
        raise PlaceError(f"an empty name is no place; give {ALLOWED}")
    if any(unicodedata.category(sign) in _NO_LETTERS for sign in text):
        raise PlaceError(
            f"{shown}: holds a newline, a control character or bytes that are no text; give a plain name"
        )

    scheme = _SCHEME.match(text)
    if scheme is None:
        return local(text)
    if not text.startswith(f"{scheme[1]}://"):
        raise PlaceError(
            f"{shown}: write two slashes behind {scheme[1]}: for a URL, or ./{text} for a path of that name"
        )
    if scheme[1] == "file":
        return local(_path_of(text))
    if scheme[1] not in STORES:
        raise PlaceError(f"{shown}: {scheme[1]}:// is no place that keeps a run; give {ALLOWED}")
    return _url(text)


def local(text: str) -> str:
    """A path of this machine, absolute and without links.

    Raises PlaceError where its links go round or lead nowhere.
    """
    try:
        path = Path(os.path.expanduser(text))  # which, unlike pathlib, leaves ./~ as it is
        if text.startswith("~") and str(path).startswith("~"):
            raise PlaceError(
                f"{text}: there is no home directory of that user; write ./{text} for a path of that name"
            )
        found = path.resolve()
        dangling = path.is_symlink() and not path.exists()
    except (OSError, RuntimeError) as error:  # the second: links that go round
        reason = (
            error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
        )
        raise PlaceError(f"{text}: {reason}") from error

    if dangling:
        raise PlaceError(
            f"{text}: is a symbolic link to {found}, which is not there; make that, or give another name"
        )
    return str(found)


def _path_of(text: str) -> str:
    """The path of a ``file://`` URL. Raises PlaceError where it is one of another machine."""
    parts = urlsplit(text)
    if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
        raise PlaceError(
            f"{text}: names the machine {parts.netloc!r}; write file:///PATH, with three slashes"
        )
    return unquote(parts.path)


def _url(text: str) -> str:
    """A store's URL. Raises PlaceError where it names no bucket, or holds what would be read as something
    else than a name."""
    parts = urlsplit(text)
    if not parts.netloc:
        raise PlaceError(f"{text}: names no bucket; write {parts.scheme}://BUCKET/NAME")
    if "@" in parts.netloc:
        raise PlaceError(
            f"{parts.scheme}://...: holds a user or a password; take it out of the name, "
            "and use the environment"
        )

    if parts.query or parts.fragment:
        raise PlaceError(f"{text}: holds ? or #, which are no letters of a name in a URL; give a plain name")
    steps = parts.path.rstrip("/").split("/")[1:]
    if any(step in ("", ".", "..") for step in steps):
        raise PlaceError(
            f"{text}: holds an empty step, '.' or '..', which mean nothing in an object store; "
            "write the whole name"
        )
    return text.rstrip("/")
