"""What ingest makes of a hostile data set, for tests that call it in a child under limits."""

from __future__ import annotations

from pathlib import Path

from cutline.schemas.errors import CutlineError
from cutline.schemas.settings import IngestSettings
from cutline.tasks.ingest.ingest import ingest


def ingested(root: str) -> dict[str, object]:
    """Captions that found a photograph, rejects by name, and the number of all rejects."""
    folder = Path(root)
    try:
        found = ingest(folder, IngestSettings(), folder.parent / "packs", None, lambda _: None)
    except CutlineError as error:
        return {"error": str(error), "captions": [], "rejects": [], "count": 0}
    captions = found.captions.filter(found.captions["photo_id"].is_not_null())
    return {
        "error": "",
        "captions": sorted(captions["text"].head(10)),
        "rejects": found.rejects.select("name", "reason", "detail").head(10).rows(),
        "count": found.rejects.height,
    }
