"""Numbers as people read them."""

from __future__ import annotations

import pytest

from cutline.tasks.runtime.formatting import change_in_form


@pytest.mark.parametrize(
    ("change", "form", "shown"),
    [
        (0.2, "share", "+20.0 points"),
        (-0.015, "share", "−1.5 points"),
        (0.0004, "share", "0.0 points"),
        (0.6, "score", "+0.600"),
        (-0.0001, "score", "0.000"),
        (0.0001, "score", "0.000"),
        (-1234, "count", "−1,234"),
    ],
)
def test_a_change_has_a_sign_where_it_is_seen_and_that_of_a_share_is_in_points(
    change: float, form: str, shown: str
) -> None:
    assert change_in_form(change, form) == shown
