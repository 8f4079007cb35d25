"""The one exception tree of Cutline.

CutlineError
├── UsageError          the command or a setting is wrong (exit code 2)
├── UnknownDataset      no layout fits the files that were found
├── BadRow              one row of input cannot be used; becomes a row of the rejects table
│   ├── BadPhoto
│   └── BadCaption
├── SchemaMismatch      a table breaks its schema
├── MissingWeights      a network's weights are not to be had
├── DamagedFile         a file of the workspace is missing, or is not what its record says
├── StaleModel          a bundle and the features it is given do not fit together
├── StoreFailed         an object store did not answer, or not as it should
├── ServerLost          Prefect's server stopped answering
└── ClusterFailed       the workers of a cluster cannot do what they are asked
"""

from __future__ import annotations

from cutline.schemas.safe_text import written_out


class CutlineError(Exception):
    """Base of every error that Cutline raises on purpose; its text is written for the user.

    It names files of strangers, and ends up in terminals, logs and on Prefect's page: it is safe in all.
    """

    def __str__(self) -> str:
        return written_out(super().__str__())


class UsageError(CutlineError):
    """The command line or a setting asks for something that does not exist."""


class UnknownDataset(CutlineError):
    """No layout fits the files of a data set."""


class BadRow(CutlineError):
    """One row of input cannot be used.

    `reason` is a code of `schemas.tables.REASONS`, `detail` a sentence for a person.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class BadPhoto(BadRow):
    """One photograph cannot be used."""


class BadCaption(BadRow):
    """One caption cannot be used."""


class SchemaMismatch(CutlineError):
    """A table breaks its schema; the text holds counts by check and up to ten rows."""


class MissingWeights(CutlineError):
    """A network's weights cannot be found or downloaded, or are not what they claim to be."""


class DamagedFile(CutlineError):
    """A record or table of the workspace is missing or cannot be read."""


class StaleModel(CutlineError):
    """A bundle refuses features that were made with other settings than its own."""


class StoreFailed(CutlineError):
    """An object store did not answer, refused, or holds other bytes than were put there."""


class ServerLost(CutlineError):
    """Prefect's server stopped answering while it watched a run."""


class ClusterFailed(CutlineError):
    """There is no worker, or a worker that cannot see what it needs."""
