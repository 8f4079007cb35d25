"""The dashboard over many captions, beside its page of an empty workspace."""

from __future__ import annotations

from collections.abc import Callable

from tests.benchmarks.harness import OURS, Contest
from tests.benchmarks.places import Place

TOKENS = 100_000
PAGES = {
    "the overview": "/",
    "the gallery": "/captions",
    "the gallery by a word": "/captions?words=beach",
    "its last page by name": "/captions?sort=path&page=9999",
}


def dashboard(place: Place) -> Contest:
    """How many times an empty page each page takes."""
    from starlette.testclient import TestClient

    from cutline.flows.dashboard.app import make_app
    from tests.support.histories import many_captions

    many_captions(place.scratch / "many", TOKENS)
    empty, many = (
        TestClient(make_app(place.scratch / name), base_url="http://127.0.0.1") for name in ("empty", "many")
    )

    def asked(client: TestClient, path: str) -> Callable[[], object]:
        return lambda: client.get(path).raise_for_status()

    return Contest(
        name="dashboard",
        title=f"the dashboard's page of an empty workspace, beside pages over {TOKENS:,} captions",
        count=1,
        thing="pages",
        sides={OURS: asked(empty, "/"), **{name: asked(many, path) for name, path in PAGES.items()}},
    )
