"""The password of a workspace's Prefect server: a line `cutline:…` in a file of its owner's alone."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import secrets
from contextlib import suppress
from pathlib import Path

FILE = "password"  # in the workspace's prefect folder
CHALLENGE, PROOF = "Cutline-Challenge", "Cutline-Proof"  # headers, see `proof_of`
OTHERS = 0o077  # the bits of a file's mode that let other users at it


def new_password() -> str:
    """Name and password as Prefect takes them, the password of 256 random bits."""
    return f"cutline:{secrets.token_urlsafe(32)}"


def password_in(home: Path) -> Path:
    """The file that holds the password of the server with this home."""
    return home / FILE


def password_of(home: Path) -> str:
    """The password of the server with this home; a new one where there is none that others cannot know."""
    file = password_in(home)
    known = read_password(home)
    if known is None or file.stat().st_mode & OTHERS:
        return _write(file)
    return known


def read_password(home: Path) -> str | None:
    """The password of the server with this home; None where there is none, or this user cannot read it."""
    try:
        descriptor = os.open(password_in(home), os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return None
    with os.fdopen(descriptor, encoding="utf-8", errors="replace") as opened:
        password = opened.read(1_000).strip()
    return password if ":" in password else None


def remove_password(home: Path) -> None:
    """Remove the file: the server has another password, which is not written down."""
    password_in(home).unlink(missing_ok=True)


def _write(file: Path) -> str:
    """A new password, in a file that is its owner's alone from the beginning."""
    password = new_password()
    beside = file.with_name(f"{FILE}-{secrets.token_hex(8)}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as opened:
            opened.write(f"{password}\n")
            opened.flush()
            os.fsync(descriptor)
        beside.replace(file)
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
    return password


def basic_auth(password: str) -> str:
    """The header Authorization for a name and password."""
    return f"Basic {base64.b64encode(password.encode()).decode()}"


def proof_of(secret: str, challenge: str, port: int) -> str:
    """What only a server at this port that knows the secret can answer: HMAC-SHA-256, hexadecimal.

    A client asks for it before it sends a password to a port that any user of the machine could have taken.
    """
    return hmac.new(secret.encode(), f"{challenge} {port}".encode(), hashlib.sha256).hexdigest()
