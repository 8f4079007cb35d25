"""An object store behind a workspace: any address that fsspec knows, with bounded patience.

An object appears whole under its name or not at all: one PUT, or a multipart upload that is completed
last. Requests that fail in passing (slow answers, 503, resets) are repeated after growing pauses.
"""

from __future__ import annotations

import errno
import random
import re
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from cutline.schemas.errors import StoreFailed, UsageError

T = TypeVar("T")

TRIES = 5
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 20.0
AT_ONCE = 16  # requests for small objects, and transfers of files

# botocore repeats a single request by itself, with jitter; what is left over is repeated here, for it
# does not cover an answer that breaks off half way.
S3_OPTIONS: dict[str, Any] = {
    "config_kwargs": {
        "retries": {"mode": "standard", "total_max_attempts": 3},
        "connect_timeout": 10,
        "read_timeout": 60,
        "max_pool_connections": AT_ONCE,
    }
}
# Two letters at least: "C:/photographs" is no address. One slash is enough: a pathlib.Path drops the other.
_ADDRESS = re.compile(r"^([a-z][a-z0-9+.-]+):/+(.*)$", re.DOTALL)
_LIBRARIES = ("botocore", "aiobotocore", "aiohttp", "gcsfs", "adlfs", "requests", "urllib3", "httpx")
_OURS_TO_FIX = ("Credentials", "ParamValidation", "ProfileNotFound", "InvalidRegion", "UnknownService")


class Listed(NamedTuple):
    """One object of a listing: its size in bytes, and a stamp that another content does not have."""

    size: int
    stamp: str
    modified: str  # when, as the store tells it; only compared


def address_of(where: Path | str) -> str | None:
    """The address of a store; None where it is a folder. Raises UsageError for one with credentials.

    >>> address_of("s3://bucket/night/"), address_of("memory:/x"), address_of("data/workspace")
    ('s3://bucket/night', 'memory://x', None)
    """
    found = _ADDRESS.match(str(where))
    if not found or found[1] == "file":
        return None
    if re.search(r"[@?#]", found[2]):
        raise UsageError(
            f"workspace '{found[1]}://…': expected {found[1]}://BUCKET/PREFIX, found '@', '?' or '#' in it; "
            "an address is written into records, so credentials belong into the environment or a profile"
        )
    if not found[2].strip("/"):
        raise UsageError(f"workspace '{where}': expected {found[1]}://BUCKET/PREFIX, found no bucket")
    return f"{found[1]}://{found[2].rstrip('/')}"


def folder_of(where: Path | str) -> Path:
    """The folder that `where` names, also as file://FOLDER."""
    return Path(re.sub(r"^file:/+", "/", str(where)))


class Store:
    """The objects below one address; connects on first use. Raises StoreFailed, with what was tried."""

    def __init__(self, address: str) -> None:
        self.address = address

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        """The file system and the path on it."""
        protocol = self.address.partition("://")[0]
        package = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}
        try:
            from fsspec.core import url_to_fs

            options = S3_OPTIONS if protocol in ("s3", "s3a") else {}
            file_system, path = url_to_fs(self.address, use_listings_cache=False, **options)
        except ImportError as error:
            wanted = package.get(protocol, "the fsspec package for it")
            raise UsageError(
                f"workspace '{self.address}': expected a package that reads {protocol}://, found none "
                f"({error}); pip install '{wanted}'"
            ) from None
        except ValueError as error:
            raise UsageError(f"workspace '{self.address}': {error}") from None
        if protocol in ("s3", "s3a"):
            file_system.retries = 1  # botocore's are enough, and ours around them
        return file_system, path.rstrip("/")

    @property
    def _small(self) -> dict[str, int]:
        """Spares a request for the size of an object that is small."""
        return {"max_concurrency": 1} if self.address.startswith(("s3:", "s3a:")) else {}

    def _full(self, path: str) -> str:
        return f"{self._opened[1]}/{path}" if path else self._opened[1]

    def listing(self, folder: str) -> dict[str, Listed]:
        """What lies below a folder, by path: one request for each 1,000 objects."""
        file_system, base = self._opened

        def find() -> dict[str, Any]:
            return file_system.find(self._full(folder), detail=True)

        nothing: dict[str, Any] = {}
        found = self._patiently("list", folder, find, missing=nothing)
        return {
            path[len(base) + 1 :]: Listed(int(info["size"] or 0), _stamp(info), str(_modified(info)))
            for path, info in found.items()
            if path.startswith(f"{base}/")
        }

    def size(self, path: str) -> int | None:
        """Bytes of an object; None where there is none."""
        info = self._patiently("look up", path, lambda: self._opened[0].info(self._full(path)), missing=None)
        return None if info is None or info["type"] != "file" else int(info["size"])

    def read(self, path: str) -> bytes | None:
        """A small object; None where there is none."""
        return self._patiently(
            "read", path, lambda: self._opened[0].cat_file(self._full(path), **self._small), missing=None
        )

    def read_all(self, paths: Iterable[str]) -> list[bytes | None]:
        """Small objects, several at once."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(self.read, paths))

    def write(self, path: str, data: bytes) -> None:
        """Put a small object, in one request."""
        self._patiently("write", path, lambda: self._opened[0].pipe_file(self._full(path), data))

    def download(self, path: str, to: Path) -> bool:
        """Copy an object into a file; False where there is none."""

        def get() -> bool:
            self._opened[0].get_file(self._full(path), str(to))
            return True

        return self._patiently("read", path, get, missing=False)

    def upload(self, file: Path, path: str) -> None:
        """Put a file: one request, or several of 50 MiB that count for nothing before the last."""
        self._patiently("write", path, lambda: self._opened[0].put_file(str(file), self._full(path)))

    def remove(self, paths: list[str]) -> None:
        """Delete objects; those that are gone already are none the worse."""
        if paths:
            full = [self._full(path) for path in paths]
            self._patiently("remove", paths[0], lambda: self._opened[0].rm(full), missing=None)

    def _patiently(self, verb: str, path: str, call: Callable[[], T], **missing: T) -> T:
        """Call, and call again while it fails in passing; `missing` is the answer where there is nothing."""
        started = time.monotonic()
        what = f"{verb} {self.address}/{path}".rstrip("/")
        for tried in range(1, TRIES + 1):
            try:
                return call()
            except FileNotFoundError:
                if "missing" in missing:
                    return missing["missing"]
                raise StoreFailed(
                    f"could not {what}: expected its bucket, found none; create it first"
                ) from None
            except Exception as error:
                told = f"{type(error).__name__}: {error}"
                if _is_of_this_machine(error):
                    raise
                if isinstance(error, PermissionError) or _is_ours_to_fix(error):
                    raise StoreFailed(
                        f"could not {what}: the store refused ({told}); "
                        "check the credentials in the environment or the profile, and their rights"
                    ) from None
                if not _passes(error):
                    raise
                if tried == TRIES:
                    took_s = time.monotonic() - started
                    raise StoreFailed(
                        f"could not {what}: {TRIES} tries in {took_s:.0f} s, with growing pauses between, "
                        f"the last one ended in {told}; run it again when the store answers: "
                        "what was made is kept"
                    ) from None
            time.sleep(random.uniform(0.5, 1) * min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (tried - 1)))
        raise AssertionError("unreachable")


def _passes(error: Exception) -> bool:
    """Whether an error may be gone next time: of the network or the store, not of the program."""
    return isinstance(error, OSError | EOFError) or type(error).__module__.partition(".")[0] in _LIBRARIES


def _is_of_this_machine(error: Exception) -> bool:
    """Whether it was the disk here that failed, to which something is copied, and not the store."""
    full = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
    return isinstance(error, OSError) and (error.errno in full or error.filename is not None)


def _is_ours_to_fix(error: Exception) -> bool:
    return any(name in type(error).__name__ for name in _OURS_TO_FIX)


def _modified(info: dict[str, Any]) -> object:
    return next(
        (info[name] for name in ("LastModified", "updated", "mtime", "created") if info.get(name)), ""
    )


def _stamp(info: dict[str, Any]) -> str:
    return str([info["size"], info.get("ETag") or info.get("etag") or "", str(_modified(info))])
