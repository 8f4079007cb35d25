"""The dashboard's pages, asked for as a browser or an attacker asks for them."""

from __future__ import annotations

import html
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import httpx
import polars as pl
import pytest
from click.testing import CliRunner
from starlette.testclient import TestClient

from cutline.flows.cli.main import main
from cutline.flows.dashboard.app import HERE, make_app
from cutline.flows.dashboard.guesses import without_guesses
from cutline.flows.dashboard.views import _score_rows
from cutline.tasks.report.gallery import Wish, captions_page
from cutline.tasks.report.html import ABOUT_DISTANCES, ABOUT_SCORES
from cutline.tasks.storage.runs import Captions
from cutline.tasks.storage.tables import empty_table
from tests import REPOSITORY
from tests.flows.conftest import Ran
from tests.support.colours import contrast
from tests.support.datasets import an_id
from tests.support.histories import LATER, RUN, SCRIPT, many_captions, small_history

PAGES = ["/", "/datasets", "/runs", "/captions", "/curves", "/stale", "/disk", f"/runs/{RUN}", "/compare"]
NO_ID = "0" * 32


def browse(workspace: Path) -> TestClient:
    return TestClient(make_app(workspace), base_url="http://127.0.0.1:4280", follow_redirects=False)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> TestClient:
    """A browser before the dashboard of a small workspace that nobody changes."""
    folder = tmp_path_factory.mktemp("small")
    return browse(small_history(folder / "workspace", folder / "dataset").workspace.root)


class Parsed(HTMLParser):
    """Tags with their attributes, and the text outside of them; fails where a tag is not closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.text += " "
        if tag not in {"meta", "link", "img", "br", "input", "rect"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag != "rect":
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str, attribute: str) -> list[str]:
        return [str(found[attribute]) for name, found in self.tags if name == tag and attribute in found]


def seen(answer: httpx.Response, code: int = 200) -> Parsed:
    assert answer.status_code == code, answer.text
    return Parsed(answer.text)


def links(page: Parsed) -> set[str]:
    return {path for path in (*page.all("a", "href"), *page.all("img", "src")) if path.startswith("/")}


def test_every_page_and_picture_that_is_linked_to_is_there_and_says_what_it_may_do(
    client: TestClient,
) -> None:
    waiting, known = set(PAGES), set()
    while waiting:
        path = waiting.pop()
        known.add(path)
        answer = client.get(path)
        assert answer.status_code == 200, path
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'"), path
        assert "script-src" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        if answer.headers["content-type"].startswith("text/html"):
            page = Parsed(answer.text)
            assert "'unsafe-inline'" not in policy
            assert not [tag for tag, found in page.tags if tag in ("script", "style", "iframe", "object")]
            assert not [
                found for _, found in page.tags if any(name == "style" or name[:2] == "on" for name in found)
            ]
            assert [tag for tag, _ in page.tags if tag in ("main", "header", "h1")] == [
                "header",
                "main",
                "h1",
            ]
            waiting |= links(page) - known
    assert len(known) > 40
    assert any(path.startswith("/rejected/") for path in known)
    assert any(path.startswith("/pictures/") for path in known)


def test_names_and_captions_that_hold_markup_are_shown_as_text(client: TestClient) -> None:
    for path in (f"/captions?run={RUN}", f"/datasets?run={RUN}", f"/captions?words={'<script>'}"):
        assert "<script" not in client.get(path).text
    page = seen(client.get(f"/captions?run={RUN}"))
    assert SCRIPT in page.text
    assert "<b>a dog</b> & <script>alert(2)</script>" in page.text
    assert "<img src=x onerror=alert(3)>.jpg" in seen(client.get("/datasets")).text
    photo = next(path for path in page.all("a", "href") if path.startswith("/photos/"))
    assert SCRIPT in seen(client.get(photo)).text


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/nowhere", 404),
        ("/runs/20990101-000000-abcdef", 404),
        ("/runs/..%2f..%2fetc%2fpasswd", 404),
        ("/datasets?run=../../x", 404),
        ("/datasets?run=%00", 404),
        ("/captions?page=0", 400),
        ("/captions?page=-1", 400),
        ("/captions?page=1e3", 400),
        ("/captions?page=99999999999999999999", 400),
        ("/captions?page=%D9%A1", 400),  # a digit, but none of ours
        ("/captions?page=9999999", 200),
        ("/captions?sort=score;drop", 400),
        ("/captions?split=%3Cscript%3E", 400),
        (f"/captions?words={'x' * 101}", 400),
        ("/captions?words=%00%ff%f0%9f%98%80", 200),
        ("/captions?words=(%5B*%2B%5C", 200),
        (f"/captions?file={'x' * 101}", 400),
        ("/captions?file=%00%ff(%5B*%2B%5C", 200),
        ("/rejects?reason=nonsense", 404),
        ("/rejects?reason=leak&page=x", 400),
        ("/compare?run=a&run=b", 404),
        ("/compare?run=a", 404),
        (f"/compare?{'run=' + RUN}", 200),
        ("/compare?run=1&run=2&run=3&run=4&run=5", 400),
        (f"/changes?before={RUN}", 404),
        (f"/changes?before={RUN}&after={LATER}&sort=x", 400),
        (f"/photos/{RUN}/{NO_ID}", 404),
        (f"/photos/{RUN}/{NO_ID}x", 404),
        (f"/photos/{RUN}/..%2f..%2fsecret", 404),
        (f"/pictures/{RUN}/{NO_ID}/small", 404),
        (f"/pictures/{RUN}/{NO_ID}/../../style.css", 404),
        (f"/pictures/x/{NO_ID}/small", 404),
        (f"/rejected/{RUN}/99999", 404),
        (f"/rejected/{RUN}/99999999999999999999", 404),
        (f"/rejected/{RUN}/-1", 404),
        (f"/drawn/{RUN}/ingest", 404),
        (f"/drawn/{RUN}/..%2f", 404),
        ("/style.css/../../app.py", 404),
    ],
)
def test_hostile_addresses_get_a_page_that_says_so(client: TestClient, path: str, code: int) -> None:
    answer = client.get(path)
    assert answer.status_code == code
    page = Parsed(answer.text)
    assert "<script" not in answer.text
    assert "Traceback" not in page.text
    assert page.all("a", "href")


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:4280", "127.0.0.1.evil.example", "[::1]:4280", ""]
)
def test_a_request_under_another_hosts_name_is_refused(client: TestClient, host: str) -> None:
    assert client.get("/", headers={"host": host}).status_code == 400
    assert client.get(f"/pictures/{RUN}/{NO_ID}/small", headers={"host": host}).status_code == 400


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:9", "localhost:4280"])
def test_a_request_under_this_machines_name_is_answered(client: TestClient, host: str) -> None:
    assert client.get("/", headers={"host": host}).status_code == 200


def test_a_page_elsewhere_may_link_here_but_have_nothing_made(client: TestClient) -> None:
    path = seen(client.get("/captions")).all("img", "src")[0]
    embedded = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}
    assert client.get(path, headers=embedded).status_code == 403
    assert client.get("/search?words=dog", headers=embedded).status_code == 403
    assert client.get("/", headers={**embedded, "sec-fetch-mode": "navigate"}).status_code == 200
    assert client.get(path, headers={**embedded, "sec-fetch-site": "same-origin"}).status_code == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_it_only_shows(client: TestClient, method: str) -> None:
    assert client.request(method, "/captions").status_code == 405


def test_an_empty_workspace_says_what_to_do_on_every_page(tmp_path: Path) -> None:
    client = browse(tmp_path / "nothing")
    for path in ("/", "/datasets", "/runs", "/captions", "/curves", "/stale"):
        assert f"cutline run data/sample --workspace {tmp_path / 'nothing'}" in seen(client.get(path)).text
    assert "holds no file yet" in seen(client.get("/disk")).text
    assert "expected an index" in seen(client.get("/search")).text
    assert "Two runs are needed" in seen(client.get("/compare")).text
    assert not (tmp_path / "nothing").exists()


def test_a_workspace_of_captions_alone_has_nothing_that_could_be_stale_and_says_why(tmp_path: Path) -> None:
    workspace = small_history(tmp_path / "workspace", tmp_path / "dataset").workspace
    for run in list(workspace.runs()):
        workspace.write_run(run.model_copy(update={"command": "caption"}))
    text = seen(browse(workspace.root).get("/stale")).text
    assert "captioned photographs with a model" in text
    assert "holds no run yet" not in text


def test_scores_that_read_the_same_have_no_best_and_no_change_of_a_sign() -> None:
    tables = [
        pl.DataFrame({"split": ["test"], "metric": ["CIDEr"], "value": [value]}) for value in (0.0002, 0.0001)
    ]
    (row,) = _score_rows(tables)
    assert (row.values, row.best, row.moved) == (["0.000", "0.000"], [False, False], "0.000")


def test_a_damaged_file_costs_the_part_that_needs_it(tmp_path: Path) -> None:
    root = small_history(tmp_path / "workspace", tmp_path / "dataset").workspace.root
    client = browse(root)
    (root / "runs" / "20260201-000000-00000a.json").write_text('{"run": "2026')
    for path in (root / "reports").rglob("captions.parquet"):
        path.write_bytes(path.read_bytes()[:100])
    for path in (root / "shards" / "fusion").glob("*.parquet"):
        path.unlink()
    page = seen(client.get("/"))
    assert "1 record of runs cannot be read" in page.text
    assert "20260201-000000-00000a.json" in page.text
    assert "captions.parquet: expected" in page.text
    assert "photo" in page.text  # the counts by split are there all the same
    for path in PAGES:
        assert client.get(path).status_code == 200, path
    assert "found 100" in seen(client.get("/captions")).text
    assert "expected a file, found none" in seen(client.get("/curves")).text
    assert "people wrote" not in seen(client.get("/runs/20260201-000000-00000a")).text.lower()


def test_runs_side_by_side_mark_what_differs_and_how_the_scores_moved(client: TestClient) -> None:
    page = client.get(f"/compare?run={RUN}&run={LATER}").text
    changed = re.findall(r'<tr class="changed"><th scope="row"><code>(.*?)</code>.*?</tr>', page)
    assert set(changed) == {"predictions.beam"}
    text = " ".join(Parsed(page).text.split())
    assert "1 setting of" in text
    assert "CIDEr 0.300 0.900 (best) +0.600" in text
    assert "reason 0" in text
    assert "reason 1" in text
    changes = " ".join(seen(client.get(f"/changes?before={RUN}&after={LATER}")).text.split())
    assert "1 of 6 photographs that both runs captioned have another caption now" in changes
    assert "before: c++ is no dog's life" in changes
    assert "after: a dog's life" in changes


def words_of(answer: httpx.Response) -> str:
    return " ".join(seen(answer).text.split())


def test_a_caption_of_a_photograph_unlike_all_that_was_learned_from_is_marked_as_a_guess(
    client: TestClient,
) -> None:
    captions = words_of(client.get("/captions"))
    assert "a dog on the beach −0.20 · distance 1.30 a guess · train" in captions
    assert "A hotdog, please −0.30 · distance 0.80 · train" in captions
    assert ABOUT_DISTANCES in captions
    page = seen(client.get("/captions?words=beach"))
    (photo,) = {path for path in page.all("a", "href") if path.startswith("/photos/")}
    assert "score −0.20 · distance 1.30 a guess, by the run" in words_of(client.get(photo))


def test_captions_of_one_file_are_found_by_its_name(client: TestClient) -> None:
    text = words_of(client.get("/captions?file=PHOTO4"))
    assert "1 caption of files with PHOTO4 in their path" in text
    assert "a cat −0.50" in text
    assert "hotdog" not in text


def test_the_surest_captions_on_the_overview_are_no_guesses(client: TestClient) -> None:
    surest = words_of(client.get("/")).partition("Surest captions")[2].partition("Newest runs")[0]
    assert "A hotdog, please" in surest
    assert "a cat" in surest, "five others are shown all the same"
    assert "a dog on the beach" not in surest
    assert "All captions" in surest


def test_captions_of_a_version_that_told_no_distance_are_shown_without_one() -> None:
    rows = pl.LazyFrame({"photo_id": [an_id(1)], "path": "a", "split": "dev", "caption": "b", "score": -1.0})
    page = captions_page(without_guesses(Captions(rows)), Wish(sort="far"), 10)
    assert [(row["caption"], row["distance"]) for row in page.rows] == [("b", None)]


def test_wherever_a_score_stands_it_is_told_what_it_is(client: TestClient) -> None:
    photo = next(path for path in links(seen(client.get("/captions"))) if path.startswith("/photos/"))
    for path in ("/", "/captions", f"/changes?before={RUN}&after={LATER}", photo):
        text = words_of(client.get(path))
        assert text.count(ABOUT_SCORES) == 1, path
        assert "the surer" not in text


def test_the_epoch_that_was_kept_is_named_as_such(client: TestClient) -> None:
    text = words_of(client.get("/curves"))
    assert "fusion: 2 epochs in numbers, kept: epoch 2" in text
    assert "best" not in text


CAPTIONED = "20260103-000000-000003"


@pytest.fixture
def captioned(tmp_path: Path) -> TestClient:
    """A browser before a workspace whose newest run captioned with a bundle; it and another have an index."""
    written = small_history(tmp_path / "workspace", tmp_path / "dataset")
    index = [written.shard("index", an_id(70), {})]
    leaks = [("photo", "test", "b.jpg", "train", "a.jpg", 0.95)] * 2
    leaks += [("caption", "test", "A dog", "train", "a dog", 1.0)]
    table = pl.DataFrame(leaks, schema=empty_table("leaks").schema, orient="row")
    found = [written.shard("leaks", an_id(71), {"leaks": table})]
    shards = {"ingest": [an_id(10)], "predictions": [an_id(40)], "index": index}
    curves = {"fusion": [an_id(31)], "language_model": [an_id(30)]}
    written.run("20260102-000000-00000a", shards | curves | {"leaks": found})
    written.run(CAPTIONED, shards)
    return browse(written.workspace.root)


def test_curves_are_offered_of_runs_alone_that_trained_something(captioned: TestClient) -> None:
    assert f"/curves?run={CAPTIONED}" not in links(seen(captioned.get(f"/runs/{CAPTIONED}")))
    assert f"/curves?run={RUN}" in links(seen(captioned.get(f"/runs/{RUN}")))
    assert f"/curves?run={CAPTIONED}" not in links(seen(captioned.get("/")))
    page = seen(captioned.get("/curves"))
    assert "fusion: 2 epochs" in page.text, "of the newest run that trained, not of the newest"
    assert CAPTIONED not in page.all("option", "value")
    assert "This run trained nothing" in seen(captioned.get(f"/curves?run={CAPTIONED}")).text


def test_the_run_to_search_in_can_be_chosen_among_those_with_an_index(captioned: TestClient) -> None:
    page = seen(captioned.get("/search"))
    assert page.all("option", "value") == [CAPTIONED, "20260102-000000-00000a"]
    assert chosen(page) == [CAPTIONED]
    newest = "Photographs that fit a sentence, in dataset (the newest run that can be searched)."
    assert newest in " ".join(page.text.split())
    other = seen(captioned.get("/search?run=20260102-000000-00000a"))
    assert chosen(other) == ["20260102-000000-00000a"]
    assert "Photographs that fit a sentence, in dataset." in " ".join(other.text.split())
    assert "has no index" in seen(captioned.get(f"/search?run={RUN}")).text
    assert captioned.get("/search?run=20990101-000000-abcdef").status_code == 404


def chosen(page: Parsed) -> list[str | None]:
    return [found["value"] for tag, found in page.tags if tag == "option" and "selected" in found]


def test_what_two_splits_share_by_likeness_is_called_near_duplicates(captioned: TestClient) -> None:
    text = words_of(captioned.get("/datasets?run=20260102-000000-00000a"))
    assert "Near-duplicates between splits 2 pairs of photographs, by their features" in text
    assert "and 1 pair of captions, by their words" in text
    assert "leaks between splits" not in text


def test_how_many_runs_fit_side_by_side_is_told_in_one_way(client: TestClient) -> None:
    assert "Choose two to four runs" in words_of(client.get("/runs"))


def test_a_gallery_is_as_large_over_many_captions_as_over_few(tmp_path: Path) -> None:
    sizes = {}
    for count in (500, 20_000):
        client = browse(many_captions(tmp_path / str(count), count).workspace.root)
        for path in ("/", "/captions", "/captions?words=dog", "/datasets"):
            page = client.get(path)
            assert page.status_code == 200
            sizes.setdefault(path, []).append(len(page.content))
            assert page.text.count("<img") <= 48
    assert all(large < small * 1.2 + 500 for small, large in sizes.values()), sizes


def test_a_photograph_that_is_gone_has_a_placeholder_that_says_why(tmp_path: Path) -> None:
    client = browse(many_captions(tmp_path / "w", 3).workspace.root)
    for path in seen(client.get("/captions")).all("img", "src"):
        answer = client.get(path)
        assert answer.headers["content-type"] == "image/svg+xml"
        assert answer.headers["cache-control"] == "no-cache"  # it may come back
        title = ElementTree.fromstring(answer.content)[0].text
        assert title == "vanished: the file was listed and is gone"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_colour_of_text_stands_out_from_its_ground(scheme: str) -> None:
    style = (HERE / "style.css").read_text()
    blocks = re.findall(r":root \{(.*?)\}", style, flags=re.S)
    colours = dict(re.findall(r"--(\w+): (#\w+)", blocks[0 if scheme == "light" else 1]))
    for ink in ("ink", "soft", "press"):
        for ground in ("paper", "wash"):
            assert contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)
    for edge in ("edge", "bar"):
        assert contrast(colours[edge], colours["paper"]) >= 3, edge


def test_a_taken_port_is_told_as_wrong_usage(tmp_path: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        result = CliRunner().invoke(main, ["dashboard", "--workspace", str(tmp_path), "--port", port])
    assert result.exit_code == 2
    assert "--port 0 takes a free one" in result.output


def test_over_a_real_run_it_changes_nothing_and_needs_neither_tensorflow_nor_prefect(
    ran: Ran, tmp_path: Path
) -> None:
    """In a process of its own, since this one may have imported them; only a search loads the model."""
    copy = ran.copy(tmp_path)
    before = state_of(copy.workspace)
    program = (
        "import json, sys\nfrom pathlib import Path\nfrom starlette.testclient import TestClient\n"
        "from cutline.flows.dashboard.app import make_app\n"
        "client = TestClient(make_app(Path(sys.argv[1])), base_url='http://localhost')\n"
        "pages = {path: client.get(path).text for path in sys.argv[2:]}\n"
        "heavy = [name for name in ('tensorflow', 'keras', 'prefect') if name in sys.modules]\n"
        "pages['/search'] = client.get('/search?words=a+red+circle').text\n"
        "print(json.dumps([pages, heavy]))"
    )
    run = copy.record["run"]
    paths = ["/", "/datasets", "/captions", "/curves", "/stale", "/disk", f"/runs/{run}"]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, str(copy.workspace), *paths],
        cwd=REPOSITORY, capture_output=True, text=True, check=True,
    )  # fmt: skip
    found: tuple[dict[str, str], list[str]] = json.loads(done.stdout)
    pages, heavy = found
    assert heavy == []
    assert state_of(copy.workspace) == before
    texts = {path: " ".join(html.unescape(Parsed(page).text).split()) for path, page in pages.items()}
    assert "31 captions" in texts["/captions"]
    assert "Up to date" in texts["/stale"]
    assert "1 × truncated" in texts["/datasets"]
    assert "train 20 40 1" in texts["/datasets"]
    assert "shards/images" in texts["/disk"]
    assert pages["/search"].count('loading="lazy"') == 24
    for path, text in texts.items():
        assert "Cannot be shown" not in text, path


def state_of(folder: Path) -> dict[str, Any]:
    """Bytes and times of every file of a folder."""
    return {
        str(path): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
