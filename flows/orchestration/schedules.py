"""When deployments run: times as they are given to `cutline serve`, checked without Prefect."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from cronsim import CronSim, CronSimError

from cutline.schemas.errors import UsageError

NIGHTLY, TRAIN, REPROCESS = NAMES = ("nightly-captions", "train", "reprocess")
EVERY_NIGHT = "0 2 * * *"
LONGEST_S = 366 * 86_400


def parse_schedules(schedules: Sequence[str]) -> dict[str, str]:
    """["train=3600"] → {"train": "3600"}. Raises UsageError, also for a time that never comes."""
    found = {}
    for schedule in schedules:
        name, equals, when = schedule.partition("=")
        if name not in NAMES or not equals:
            raise UsageError(
                f"--schedule '{schedule}': expected NAME=WHEN with a name of {', '.join(NAMES)}, "
                "such as 'train=0 4 * * 6' or train=86400"
            )
        found[name] = check_time(when)
    return found


def check_time(when: str) -> str:
    """A number of seconds, or five fields of cron, as it came. Raises UsageError.

    Prefect would also take six fields, `@daily` and the 31st of February; what a schedule says is to be
    found in the README.
    """
    try:
        if when.strip().isdecimal():
            if not 0 < int(when) <= LONGEST_S:
                raise ValueError(f"a run every {when.strip()[:20]} seconds, of 1 to {LONGEST_S:,}")
        elif len(when.split()) != 5:
            raise ValueError(f"{len(when.split())} fields")
        else:
            CronSim(when.strip(), datetime(2024, 1, 1))
    except (ValueError, CronSimError) as error:
        raise no_schedule(when, error) from None
    return when


def no_schedule(when: str, found: Exception) -> UsageError:
    """What is said of a time that is none."""
    return UsageError(
        f"schedule '{when[:80]}': expected a number of seconds, or five fields of cron such as '0 2 * * *' "
        f"(every night at two); found: {found}"
    )
