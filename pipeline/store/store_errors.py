"""What a store answered or holds, as one line for a person:
its own errors are pages of XML and of library internals."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import obstore

NO_BUCKET = ("NoSuchBucket", "ContainerNotFound")
"""Codes by which stores say that the bucket itself is not there."""


class StoreError(OSError):
    """An object store cannot be used. The message says where, why, and what to look at."""


class RunUnreadableError(ValueError):
    """A directory is not a readable run directory. The message says which, why, and what to do."""


@contextlib.contextmanager
def explained(directory: str) -> Iterator[None]:
    """Errors of the store that ``directory`` is a URL of, raised as StoreError."""
    try:
        yield
    except (obstore.exceptions.BaseError, OSError) as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(f"{directory}: {_reason(str(error))}") from error


def _reason(text: str) -> str:
    """Only the code and message of the answer are repeated:
    the rest of it can hold a key's name or what was signed."""
    said = " ".join(
        match[1].splitlines()[0]
        for name in ("Code", "Message")
        if (match := re.search(rf"<{name}>([^<]{{1,200}})", text))
    )
    status = re.search(r"status code: (\d{3})", text)

    if any(code in said for code in NO_BUCKET):
        return "there is no such bucket; create it or correct the address"
    if status and status[1] in ("401", "403"):
        hint = (
            "check the credentials (such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY) and what they may do"
        )
        return f"the store refuses access ({said or status[1]}); {hint}"
    if status and status[1].startswith("5"):
        return f"the store fails ({said or status[1]}{_tries(text)}); try again later, what is stored is kept"
    if status or said:
        return f"the store refuses the request ({said or (status and status[1])})"

    if "builder error" in text:
        return "the endpoint cannot be used; plain http needs AWS_ALLOW_HTTP=true"
    if "HTTP error" in text:
        hint = "check the endpoint (such as AWS_ENDPOINT_URL), the credentials and the network"
        return f"the store cannot be reached{_tries(text)}; {hint}"
    return next(iter(text.splitlines()), "unknown error")


def first_line_of(error: object) -> str:
    """The first line of a message, without the name that a library gives to local disks; of a stored one that
    may be missing."""
    line = next(iter(str(error or "").splitlines()), "") or "no message"
    return line.removeprefix("Generic LocalFileSystem error: ")


def _tries(text: str) -> str:
    return f", asked {repeats(text) + 1} times" if repeats(text) else ""


def repeats(text: str) -> int:
    """How often obstore itself asked again before this error."""
    match = re.search(r"after (\d+) retries", text)
    return int(match[1]) if match else 0
