"""Packs: the image bytes of Parquet files, addressed in the same way in every workspace."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cutline.schemas.errors import BadPhoto
from cutline.schemas.settings import IngestSettings
from cutline.tasks.images.files import read_bytes
from cutline.tasks.ingest.ingest import ingest
from cutline.tasks.storage.packs import files_of, located
from tests.support.datasets import bytes_of, photo, put, read

NAME = "0123456789abcdef" * 2 + ".pack"


def test_a_pack_is_made_once_and_again_when_it_is_damaged(root: Path) -> None:
    pq.write_table(
        pa.table({"image": [photo(1), photo(2), photo(1)], "text": ["x", "y", "z"]}), root / "t.parquet"
    )
    address = read(root).photos["t.parquet/row-1"]
    pack, index = files_of(address.container or "", root.parent / "packs")
    assert pack.stat().st_size == len(photo(1)) + len(photo(2))
    made = pack.stat().st_mtime_ns, pack.stat().st_ino
    assert read(root).photos["t.parquet/row-1"] == address
    assert (pack.stat().st_mtime_ns, pack.stat().st_ino) == made
    pack.write_bytes(b"cut")
    assert bytes_of(root, read(root).photos["t.parquet/row-1"]) == photo(2)
    index.write_bytes(b"")
    assert bytes_of(root, read(root).photos["t.parquet/row-1"]) == photo(2)
    assert sorted(pack.parent.iterdir()) == [index, pack]


def test_the_tables_are_the_same_whatever_folder_the_packs_are_in(root: Path, tmp_path: Path) -> None:
    put(root, **{"a.jpg": photo(3)})
    pq.write_table(pa.table({"image": [photo(1), photo(2)], "text": ["x", "y"]}), root / "t.parquet")
    one, other = (
        ingest(root, IngestSettings(), tmp_path / name, None, lambda rows: None) for name in ("one", "other")
    )
    assert one.photos.equals(other.photos)
    assert str(tmp_path) not in str(one.photos.rows())
    (tmp_path / "one").rename(tmp_path / "moved")
    rows = located(one.photos, tmp_path / "moved").select("path", "container", "offset", "size")
    read_back = {path: read_bytes(root, path, *place) for path, *place in rows.iter_rows()}
    assert read_back == {"a.jpg": photo(3), "t.parquet/row-0": photo(1), "t.parquet/row-1": photo(2)}


@pytest.mark.parametrize(
    "container",
    ["x/0.tar", "pack:x.tar", f"x/pack:{NAME}", f"pack:../{NAME}", f"pack:x/{NAME}", f"pack:{NAME}\n"],
)
def test_no_other_container_is_taken_for_a_pack(container: str) -> None:
    photos = pl.DataFrame({"container": [container, None]})
    assert located(photos, Path("/packs")).equals(photos)
    assert files_of(container, Path("/packs")) == []


def test_a_pack_is_found_in_the_folder_of_packs() -> None:
    photos = pl.DataFrame({"container": [f"pack:{NAME}"]})
    assert located(photos, Path("/packs"))["container"].to_list() == [f"/packs/{NAME}"]
    assert files_of(f"pack:{NAME}", Path("/packs"))[0] == Path("/packs", NAME)


def test_a_pack_that_is_gone_is_told_with_what_to_do(root: Path) -> None:
    with pytest.raises(BadPhoto, match=r"vanished: .*`cutline rejects --retry`"):
        read_bytes(root, "t.parquet/row-0", str(root.parent / "packs" / NAME), 0, 9)
