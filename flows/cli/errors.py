"""Exit codes, and how errors become messages."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Any

import click

from cutline.schemas.errors import CutlineError, UnknownDataset, UsageError
from cutline.schemas.safe_text import for_terminal, written_out

DONE, FAILED, WRONG_USAGE, TOO_MANY_REJECTS = 0, 1, 2, 3
RESUMABLE = ("run", "reprocess", "caption", "rejects")  # when they are called again after Ctrl-C
FREE_SOME = "on the disk of '{where}': free some and run it again; what was made is kept"
ELSEWHERE = "--workspace and --out name other places"
DISK_ERRORS = {  # of a disk, by the system's number: what was expected, what was found, what to do
    errno.ENOSPC: f"no space is left {FREE_SOME}",
    errno.EDQUOT: f"no space of your quota is left {FREE_SOME}",
    errno.EROFS: f"'{{where}}': expected a disk that can be written, found a read-only one; {ELSEWHERE}",
    errno.EACCES: f"'{{where}}': expected to be let at it, found no permission; change who may "
    f"(chmod, chown); {ELSEWHERE}",
    errno.ENOTDIR: f"'{{where}}': expected a folder, found a file; {ELSEWHERE}",
    errno.EEXIST: f"'{{where}}': expected a folder, found a file; {ELSEWHERE}",
    errno.ENOENT: f"'{{where}}': expected a place where a file can be made, found none; {ELSEWHERE}",
    errno.EIO: "'{where}': expected a disk that works, found an input/output error; check the disk, and run "
    "it again: what was made is kept",
    errno.EMFILE: "'{where}': expected to open a file, found too many open; raise the limit (ulimit -n), and "
    "run it again: what was made is kept",
}
WORKSPACE = "cutline.workspace"  # the command's, where a message needs it


class Commands(click.Group):
    """Turns Cutline's errors into one message and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (UsageError, UnknownDataset) as error:
            click.echo(f"cutline: {error}", err=True)
            ctx.exit(WRONG_USAGE)
        except CutlineError as error:
            click.echo(f"cutline: {error}", err=True)
            ctx.exit(FAILED)
        except click.ClickException as error:
            error.message = written_out(error.message)  # type: ignore[misc]  # names what was on the line
            raise
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(DONE)
        except Exception as error:
            told = _disk_error(error, ctx.meta.get(WORKSPACE, "where it works"))
            if told is None:
                raise
            click.echo(for_terminal(f"cutline: {told}"), err=True)
            ctx.exit(FAILED)
        except KeyboardInterrupt:
            if ctx.invoked_subcommand not in RESUMABLE:
                raise
            from cutline.flows.orchestration.runners import STOPPED

            click.echo(STOPPED, err=True)
            ctx.exit(FAILED)


def _disk_error(error: Exception, workspace: object) -> str | None:
    """What to tell of an error that a disk or its permissions are to blame for, else None."""
    named = getattr(error, "filename", None)
    where = _there(Path(named)) if isinstance(named, str) else workspace
    if isinstance(error, PermissionError) and named:
        return DISK_ERRORS[errno.EACCES].format(where=where)
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        return DISK_ERRORS[error.errno].format(where=where)
    for number, told in DISK_ERRORS.items():
        if os.strerror(number) in str(error):  # in whatever a library makes of it
            return told.format(where=where)
    return None


def _there(path: Path) -> Path:
    """A path, or the folder above it that is there: what was to be made has a name that says nothing."""
    return next((above for above in (path, *path.parents) if os.path.exists(above)), path)  # noqa: PTH110
