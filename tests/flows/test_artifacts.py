"""What goes onto the run's page is shown, not read as Markdown or HTML."""

from __future__ import annotations

import numpy as np

from flows.artifacts import sample_table
from tasks.samples import Sample


def test_a_name_or_caption_that_is_markup_stays_text_within_its_cell() -> None:
    square = np.full((8, 8, 3), 200, np.uint8)
    name = "<script>alert(1)</script>|![x](http://e.example)`_*\n.png"
    table = sample_table([Sample(name, "test", square, "a [dog](javascript:1) & <b>", -1.0)])
    row = table.splitlines()[2]
    assert len(table.splitlines()) == 3
    assert row.count("|") == 5
    assert row.count("](") == 1  # the picture of ours
    assert "<" not in row
    assert "data:image/jpeg;base64," in row
