"""Tars of samples are read in place, and a hostile member costs one reject."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.datasets import MAX_BYTES, bytes_of, photo, put, read


def tar_of(*members: tuple[str, Any]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", encoding="utf-8", errors="surrogateescape") as tar:
        for name, content in members:
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def test_webdataset_shards_are_read_in_place(root: Path) -> None:
    first = tar_of(
        ("a/1.jpg", photo(1)), ("a/1.txt", "One"), ("a/1.json", '{"caption": "One", "width": 8}'),
        ("2.PNG", photo(2, "PNG")), ("2.json", '{"captions": ["Two", "Three"], "key": "2"}'),
        ("4.jpg", photo(5)), ("4.json", '{"text": "Seven"}'), ("4.txt", "Seven\nEight"),
        ("3.webp", photo(3, "WEBP")), ("3.cls", "7"), ("._3.webp", b"x"), ("__MACOSX/3.webp", b"x"),
    )  # fmt: skip
    put(root, **{"flickr-train-0000.tar": first})
    put(
        root,
        **{
            "flickr-val-0000.tar": tar_of(("1.jpg", photo(4)), ("1.txt", "Four\nFive\n"), ("lone.txt", "Six"))
        },
    )
    found = read(root)
    train, val = "flickr-train-0000.tar", "flickr-val-0000.tar"
    assert found.captions == {
        f"{train}/a/1.jpg": ["One"],
        f"{train}/2.PNG": ["Two", "Three"],
        f"{train}/3.webp": [],
        f"{train}/4.jpg": ["Seven", "Eight"],
        f"{val}/1.jpg": ["Four", "Five"],
        None: ["Six"],
    }
    assert found.splits[f"{train}/2.PNG"] == {"train"}
    assert found.splits[f"{val}/1.jpg"] == {"dev"}
    assert found.missing == {f"{val}/lone": ["Six"]}
    assert found.reasons == [(f"{val}/lone", "missing_photo")]
    contents = {path: bytes_of(root, told) for path, told in found.photos.items()}
    assert contents[f"{train}/2.PNG"] == photo(2, "PNG")
    assert contents[f"{val}/1.jpg"] == photo(4)


def test_a_key_ends_at_the_first_dot_of_the_name_not_of_the_folder(root: Path) -> None:
    members = [("v1.0/x.left.jpg", photo(1)), ("v1.0/x.right.jpg", photo(2)), ("v1.0/x.left.txt", "Left")]
    members += [("v1.0/y.jpg", photo(3)), ("v1.0/y.mask.png", photo(4, "PNG")), ("v1.0/y.txt", "Whole")]
    put(root, **{"0.tar": tar_of(*members)})
    assert read(root).captions == {
        "0.tar/v1.0/x.left.jpg": ["Left"],
        "0.tar/v1.0/x.right.jpg": [],
        "0.tar/v1.0/y.jpg": ["Whole"],
        "0.tar/v1.0/y.mask.png": [],
    }


def test_photographs_and_texts_of_a_tar_need_not_stand_together(root: Path) -> None:
    put(
        root,
        **{"0.tar": tar_of(("1.txt", "One"), ("2.txt", "Two"), ("1.jpg", photo(1)), ("2.jpg", photo(2)))},
    )
    assert read(root).captions == {"0.tar/1.jpg": ["One"], "0.tar/2.jpg": ["Two"]}


def test_hostile_members_of_a_tar_cost_one_reject_each(root: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", errors="surrogateescape") as tar:
        for kind, name in [
            (tarfile.SYMTYPE, "link.jpg"),
            (tarfile.LNKTYPE, "hard.jpg"),
            (tarfile.CHRTYPE, "device.jpg"),
            (tarfile.FIFOTYPE, "pipe.jpg"),
            (tarfile.DIRTYPE, "folder.jpg"),
        ]:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        names = [
            "/etc/abs.jpg",
            "../up.jpg",
            "x/../../up2.jpg",
            "latin\udce9.jpg",
            "ok.jpg",
            "ok.jpg",
            "big.jpg",
        ]
        for seed, name in enumerate(names):
            data = b"x" * (MAX_BYTES + 1) if name == "big.jpg" else photo(seed)
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        info = tarfile.TarInfo("device.txt")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"One"))
    put(root, **{"0.tar": buffer.getvalue()})
    found = read(root)
    assert list(found.photos) == ["0.tar/ok.jpg"]
    assert found.captions == {"0.tar/ok.jpg": [], None: ["One"]}  # its photograph is not missed as well
    assert found.reasons == sorted(
        [(f"0.tar/{kind}.jpg", "not_a_file") for kind in ("link", "hard", "device", "pipe", "folder")]
        + [("0.tar//etc/abs.jpg", "outside_dataset"), ("0.tar/../up.jpg", "outside_dataset")]
        + [("0.tar/../up2.jpg", "outside_dataset"), ("0.tar/latin\\udce9.jpg", "bad_name")]
        + [("0.tar/ok.jpg", "malformed"), ("0.tar/big.jpg", "too_many_bytes")]
    )


def cut_in_data(tar: bytes) -> bytes:
    return tar[: 512 + 512 * 2 + 512 + 100]  # in the data of the second member


def damage_header(tar: bytes) -> bytes:
    second = 512 * (1 + -(-len(photo(1)) // 512))
    return tar[:second] + b"\xff" * 512 + tar[second + 512 :]


@pytest.mark.parametrize(
    ("damage", "kept", "reasons"),
    [
        (cut_in_data, ["0.tar/1.jpg"], [("0.tar", "malformed"), ("0.tar/2.jpg", "truncated")]),
        (damage_header, ["0.tar/1.jpg"], [("0.tar", "malformed")]),
        (lambda tar: b"\x1f\x8b\x08" + tar, [], [("0.tar", "malformed")]),
        (lambda tar: b"", [], [("0.tar", "malformed")]),
        (lambda tar: tar[:300], [], [("0.tar", "malformed")]),
    ],
)
def test_of_a_damaged_tar_what_comes_before_is_kept(
    root: Path, damage: Callable[[bytes], bytes], kept: list[str], reasons: list[tuple[str, str]]
) -> None:
    assert 512 < len(photo(1)) <= 1024  # or the places above are others
    tar = tar_of(("1.jpg", photo(1)), ("2.jpg", photo(2)), ("3.jpg", photo(3)))
    put(root, **{"0.tar": damage(tar), "1.tar": tar_of(("4.jpg", photo(4)))})
    found = read(root)
    assert sorted(found.photos) == [*kept, "1.tar/4.jpg"]
    assert found.reasons == reasons


def test_a_tar_whose_members_lead_back_ends(root: Path) -> None:
    tar = bytearray(tar_of(("1.jpg", photo(1)), ("2.jpg", photo(2))))
    at = 512 * (1 + -(-len(photo(1)) // 512))  # the second header
    header = tarfile.TarInfo.frombuf(bytes(tar[at : at + 512]), "utf-8", "strict")
    header.size = -512  # back to itself
    tar[at : at + 512] = header.tobuf(tarfile.GNU_FORMAT)
    found = read(put(root, **{"0.tar": bytes(tar)}))
    assert list(found.photos) == ["0.tar/1.jpg"]
    assert ("0.tar", "malformed") in found.reasons


def test_captions_in_json_are_found_by_any_of_their_names_and_two_texts_of_a_name_are_told(
    root: Path,
) -> None:
    texts = {"a.json": b'{"captions": null, "TEXT": "One"}', "b.txt": b"Two", "b.TXT": b"Three"}
    put(root, **{"x.tar": tar_of(("a.jpg", photo()), ("b.jpg", photo(1)), *texts.items())})
    found = read(root)
    assert found.captions == {"x.tar/a.jpg": ["One"], "x.tar/b.jpg": ["Two"]}
    assert found.reasons == [("x.tar/b.TXT", "malformed")]
