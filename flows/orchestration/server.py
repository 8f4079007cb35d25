"""Prefect's server: starting one for a workspace, and which one a run uses.

A run uses the server that answers, else Prefect's embedded one. Prefect reads its settings when it
is imported, so this comes first.

Who can send requests to a server can have it run programs, so each one has a password
(`cutline.flows.orchestration.password`) and a guard (`cutline.flows.orchestration.guard`).
"""

from __future__ import annotations

import atexit
import gzip
import ipaddress
import json
import os
import secrets
import socket
import sqlite3
import subprocess
import sys
import time
import tomllib
import urllib.request
from contextlib import closing, suppress
from http.client import HTTPException
from pathlib import Path
from typing import NoReturn

from cutline.flows.orchestration.password import (
    CHALLENGE,
    PROOF,
    basic_auth,
    new_password,
    password_in,
    password_of,
    proof_of,
    read_password,
    remove_password,
)
from cutline.schemas.errors import ServerLost, UsageError
from cutline.schemas.safe_text import for_terminal
from cutline.schemas.settings import expanded
from cutline.tasks.storage.disk import make_folder, move_aside
from cutline.tasks.storage.workspace import Workspace

ANSWER_WITHIN_S = 10.0  # on a busy machine it takes a while; where nothing listens, that is told at once
WAIT_S = 60.0  # for a server that is starting
DATABASE = "prefect.db"  # where Prefect looks for it in its home
EMPTY_DATABASE = Path(__file__).with_name("prefect.db.gz")  # written by `make database`
START_WITHIN_S, END_WITHIN_S = 120.0, 5.0  # the embedded server
EMBEDDED = Path(__file__).with_name("embedded_server.py")  # its program
STAYING = Path(__file__).with_name("prefect_server.py")  # the program of `cutline server`
SERVER_PASSWORD, CLIENT_PASSWORD = "PREFECT_SERVER_API_AUTH_STRING", "PREFECT_API_AUTH_STRING"
# A run needs none of the fifty kinds of blocks that a server writes down when it first starts. That takes
# over a second, and of two runs that begin on a new workspace at once one would find the other's, and fail.
OF_EMBEDDED = {
    "PREFECT_UI_ENABLED": "false",
    "PREFECT__SERVER_EPHEMERAL": "1",
    "PREFECT__SERVER_FINAL": "1",
    "PREFECT_SERVER_REGISTER_BLOCKS_ON_START": "false",
    "PREFECT_SERVER_MEMOIZE_BLOCK_AUTO_REGISTRATION": "false",  # so that a server that stays does it
}
ADDRESS = "address"  # in the workspace's prefect folder: where its server was last started

# For every server and client: stay at home, and record each task run (the recorder of the embedded
# server drops what it has not yet written when a run ends, unless it writes in batches). And run no Python
# file of the current folder in place of a library's, as `python -m`, by which servers are started, would.
ALWAYS = {
    "PYTHONSAFEPATH": "1",
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
    "PREFECT_LOGGING_LEVEL": "WARNING",
}


def start_server(workspace: Path, host: str, port: int) -> NoReturn:
    """Become Prefect's server, with its state in the workspace; Ctrl-C and SIGTERM end it.

    Its password is that of PREFECT_SERVER_API_AUTH_STRING, else the one in the workspace. Raises UsageError
    where the port is taken, and where other machines would reach the server and no password is set.
    """
    chosen = os.environ.get(SERVER_PASSWORD)
    if not is_loopback(host) and not chosen:
        raise UsageError(
            f"--host {host}: other machines would reach the server without a password of your choice; "
            "set PREFECT_SERVER_API_AUTH_STRING=NAME:PASSWORD first, or leave --host out"
        )
    _check_free(host, port)
    home = home_with_database(workspace)
    if chosen:
        remove_password(home)
    page = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    environment = {
        **ALWAYS,
        "PREFECT_API_URL": f"{page}/api",
        "PREFECT_UI_API_URL": f"{page}/api",
        # The pages that may talk to the server (see cutline.flows.orchestration.guard); all others may not.
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": f"{page},http://localhost:{port}",
        # Which run holds its deployment's only place: in memory a restart would forget that for good.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        **os.environ,
        SERVER_PASSWORD: chosen or password_of(home),
        "PREFECT_HOME": str(home),
        "PREFECT_PROFILES_PATH": str(home / "profiles.toml"),
    }
    Workspace(workspace).write_text(home / ADDRESS, f"{page}/api")
    where = "that of PREFECT_SERVER_API_AUTH_STRING" if chosen else f"in {password_in(home)}"
    print(
        for_terminal(f"Prefect's page: {page} (its state: {home}); Ctrl-C ends the server"),
        for_terminal(f"The page asks for a password: {where}"),
        sep="\n",
        file=sys.stderr,
        flush=True,
    )
    command = [sys.executable, "-P", str(STAYING), host, str(port)]
    os.execve(sys.executable, command, environment)  # noqa: S606 the command is ours, without a shell


def is_loopback(host: str | None) -> bool:
    """Whether a host's name or address means this machine alone; a name is not looked up.

    >>> is_loopback("localhost"), is_loopback("127.0.0.1"), is_loopback("127.example.com")
    (True, True, False)
    """
    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return host == "localhost"


def _check_free(host: str, port: int) -> None:
    try:
        group = socket.getaddrinfo(host, port)[0][0]
        with socket.socket(group) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        raise UsageError(
            f"expected to listen at {host}:{port}, found: {error.strerror or error}; "
            "end what listens there, or take another port with --port"
        ) from None


def demand_server(workspace: Path) -> str:
    """As `choose_server`, for what needs a server that stays; waits for one that is starting.

    Raises UsageError where none answers.
    """
    deadline = time.monotonic() + WAIT_S
    waiting = False
    while (url := _server_that_answers(workspace)) is None:
        found = _address_to_ask(workspace)
        if time.monotonic() > deadline:
            where = (
                f"answers at {found} with this workspace's password"
                if found
                else f"was started with --workspace {workspace}"
            )
            raise UsageError(
                f"expected a Prefect server that {where}, found none; start `cutline server` first, or set "
                "PREFECT_API_URL and PREFECT_API_AUTH_STRING to those of another server"
            )
        if not waiting:
            print(
                for_terminal(f"waiting for a Prefect server at {found or workspace}"),
                file=sys.stderr,
                flush=True,
            )
        waiting = True
        time.sleep(1)
    return url


def choose_server(workspace: Path) -> str | None:
    """Set Prefect up for this process; the address of the server that answered, None if embedded.

    It is the one that the environment or Prefect's profile names, else the workspace's own. The embedded
    server keeps its state in the workspace, and has a password that nobody else learns.
    """
    if url := _server_that_answers(workspace):
        return url
    if named := configured("PREFECT_API_URL"):
        where = for_terminal(named)
        print(
            f"Prefect: expected a server at {where}, none answered; this run uses the embedded one",
            file=sys.stderr,
        )
    os.environ.pop("PREFECT_API_URL", None)
    set_own_password()
    home = home_with_database(workspace)
    os.environ["PREFECT_HOME"] = str(home)
    os.environ["PREFECT_PROFILES_PATH"] = str(home / "profiles.toml")
    # It ends with the run, now and then in the middle of a write, and would tell of that in a hundred lines.
    os.environ.setdefault("PREFECT_SERVER_LOGGING_LEVEL", "CRITICAL")
    os.environ.setdefault("PREFECT_LOGGING_ROOT_LEVEL", "CRITICAL")
    return None


def set_own_password() -> None:
    """Give the server that this process starts, and the client in this process, a new password."""
    os.environ[SERVER_PASSWORD] = os.environ[CLIENT_PASSWORD] = new_password()


def start_embedded() -> str:
    """Start Prefect's server beside this process, as `choose_server` set it up; its address.

    It takes seconds until it answers (see `wait_for_embedded`), and ends with this process. In a session of
    its own it hears nothing of Ctrl-C, so that this process can still write down there how the run ended.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/api"
        process = subprocess.Popen(  # noqa: S603 the command is ours
            [sys.executable, "-P", EMBEDDED, str(listener.fileno())],
            stdin=subprocess.PIPE,
            pass_fds=[listener.fileno()],
            start_new_session=True,
            env={**os.environ, **OF_EMBEDDED},
        )
    atexit.register(_end, process)  # before Prefect is imported: what that does at the end comes first
    os.environ["PREFECT_API_URL"] = url
    return url


def wait_for_embedded(url: str) -> None:
    """Wait until an embedded server answers. Raises ServerLost where it ended, or takes too long, and as
    `answers` does."""
    password = os.environ.get(CLIENT_PASSWORD)
    if not answers(
        url, START_WITHIN_S, password
    ):  # asked once: until the server is there, the system holds the line
        raise ServerLost(
            "expected Prefect's server to start, which watches a run, found that it did not; run it again, "
            "or call `cutline server`, which says what is wrong"
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(END_WITHIN_S)
    except subprocess.TimeoutExpired:
        process.kill()


def _server_that_answers(workspace: Path) -> str | None:
    """The address of the server that answers, which Prefect uses from now on; None where none does.

    The password of the workspace goes to a server alone that proves to know it: while the workspace's own
    is away, any user of this machine may listen at its port.
    """
    for name, value in ALWAYS.items():
        os.environ.setdefault(name, value)
    _ask_no_proxy()
    url = _address_to_ask(workspace)
    if url is None:
        return None
    password = configured(CLIENT_PASSWORD)
    if url == _address_of(workspace) and (written := read_password(_home(workspace))):
        if not _knows(url, written):
            return None
        password = written
    if not answers(url, password=password):
        return None
    if password is None and not configured("PREFECT_API_URL"):
        return None  # a server of `cutline server` always wants one
    os.environ["PREFECT_API_URL"] = url
    if password:
        os.environ[CLIENT_PASSWORD] = password
    return url


def _knows(url: str, password: str) -> bool:
    """Whether a server proves that it knows the workspace's password, which it is not told."""
    challenge = secrets.token_hex(16)
    request = urllib.request.Request(f"{url}/health", headers={CHALLENGE: challenge})  # noqa: S310 as below
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_WITHIN_S) as answer:  # noqa: S310
            expected = proof_of(password, challenge, urllib.parse.urlsplit(url).port or 80)
            return secrets.compare_digest(answer.headers.get(PROOF, ""), expected)
    except (OSError, ValueError, TypeError, HTTPException):
        return False


def _ask_no_proxy() -> None:
    """Reach what listens on this machine directly, also where the environment names a proxy (HTTP_PROXY)."""
    excepted = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    if excepted != "*":
        names = dict.fromkeys([*filter(None, excepted.split(",")), "localhost", "127.0.0.1", "::1"])
        os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(names)
    for name in ("ALL_PROXY", "all_proxy"):
        if os.environ.get(name, "").startswith("socks"):
            del os.environ[name]  # Prefect's client refuses to start with it, and nothing else would use it


def _address_to_ask(workspace: Path) -> str | None:
    """Where a server may be: the configured address, else where the workspace's own was last started."""
    return configured("PREFECT_API_URL") or _address_of(workspace)


def _home(workspace: Path) -> Path:
    return Workspace(workspace).root / "prefect"


def home_of(workspace: Path) -> Path:
    """Where Prefect keeps the state of a workspace's runs."""
    Workspace(workspace).mark()
    home = _home(workspace)
    make_folder(home, Workspace(workspace).root)
    return home


def home_with_database(workspace: Path) -> Path:
    """As `home_of`; a new one begins with an empty database, as Prefect makes it.

    Prefect itself goes through all versions that its tables ever had, which takes ten seconds, and does so
    where this database is of an earlier version than its own.
    """
    home = home_of(workspace)
    elsewhere = os.environ.get("PREFECT_SERVER_DATABASE_CONNECTION_URL")
    if not elsewhere and (home / DATABASE).exists() and is_damaged(home / DATABASE):
        move_aside(home / DATABASE, "the database of Prefect's history")
        for ending in ("-wal", "-shm"):  # of the same database
            (home / f"{DATABASE}{ending}").unlink(missing_ok=True)
    if not elsewhere and not (home / DATABASE).exists():
        with Workspace(workspace).scratch() as folder, suppress(OSError):
            whole = folder / DATABASE
            whole.write_bytes(gzip.decompress(EMPTY_DATABASE.read_bytes()))
            # Not over one that another run has begun with. Where there are no links, Prefect makes its own.
            (home / DATABASE).hardlink_to(whole)
    return home


def is_damaged(database: Path) -> bool:
    """Whether a file is no database of SQLite's, or a damaged one. One that is in use is not damaged."""
    if not database.is_file() or not database.stat().st_size:
        return True
    try:
        with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as opened:
            (found,) = opened.execute("PRAGMA quick_check(1)").fetchone()
            return str(found) != "ok"
    except sqlite3.OperationalError:
        return False
    except sqlite3.DatabaseError:
        return True


def _address_of(workspace: Path) -> str | None:
    """The address that the workspace's server was last started at; None if it never was."""
    try:
        return (_home(workspace) / ADDRESS).read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def configured(name: str) -> str | None:
    """A setting of Prefect's from the environment, else from the user's active profile."""
    if value := os.environ.get(name):
        return value
    home = expanded(os.environ.get("PREFECT_HOME") or "~/.prefect")
    try:
        profiles = tomllib.loads((home / "profiles.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    active = os.environ.get("PREFECT_PROFILE") or profiles.get("active")
    value = profiles.get("profiles", {}).get(active, {}).get(name)
    return value if isinstance(value, str) else None


def answers(url: str, within_s: float = ANSWER_WITHIN_S, password: str | None = None) -> bool:
    """Whether a healthy Prefect server of a version that this client speaks to is there.

    Raises UsageError where it answers and refuses the password.
    """
    if not url.startswith(("http://", "https://")):
        return False
    request = urllib.request.Request(f"{url}/admin/version")  # noqa: S310 http or https
    if password:
        request.add_header("Authorization", basic_auth(password))
    try:
        with urllib.request.urlopen(request, timeout=within_s) as answer:  # noqa: S310
            return str(json.load(answer)).startswith("3.")
    except urllib.error.HTTPError as error:
        if error.code not in (401, 403):
            return False
        if configured("PREFECT_API_KEY"):
            return True  # Prefect's cloud, which Prefect itself knows how to ask
        raise UsageError(
            f"the Prefect server at {url} answers {error.code}: it wants another name and password; "
            "set PREFECT_API_AUTH_STRING=NAME:PASSWORD to what it was started with: the line in the file "
            "prefect/password of its workspace, or its PREFECT_SERVER_API_AUTH_STRING"
        ) from None
    except (OSError, ValueError, HTTPException):  # the last where it does not speak HTTP
        return False
