"""Write the corpus from generated inputs: `python -m tests.fuzz.make_corpus`. Findings are kept beside
them."""

from __future__ import annotations

import io
import json
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests.fuzz.__main__ import CORPUS
from tests.support.datasets import photo
from tests.tasks.ingest.layouts.test_webdataset import tar_of


def images() -> dict[str, bytes]:
    found = {form.lower(): photo(1, form) for form in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")}
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.new("RGB", (6, 4), "red").save(buffer, "JPEG", exif=exif)
    return found | {"exif": buffer.getvalue()}


def npz() -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, a=np.arange(6.0).reshape(2, 3), b=np.array(["dog", "cat"]))
    return buffer.getvalue()


def h5() -> bytes:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.create_dataset("layers/a/vars/0", data=np.arange(100, dtype=np.float16))
    return buffer.getvalue()


def parquet() -> dict[str, bytes]:
    found = {}
    image = {"image": [{"bytes": photo(1), "path": "1.jpg"}], "caption": [["One", "Two"]]}
    named = {"file_name": ["a.jpg"] * 3, "text": ["One", "Two", None], "split": ["train"] * 3}
    for name, table in (("image", image), ("named", named)):
        for compression in ("NONE", "zstd"):
            buffer = io.BytesIO()
            pq.write_table(pa.table(table), buffer, compression=compression)
            found[f"{name}_{compression.lower()}"] = buffer.getvalue()
    return found


def corpus() -> dict[str, dict[str, bytes]]:
    """Inputs by target and name."""
    coco = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 1, "caption": "One"}]}
    record = {"stage": "images", "key": "0" * 32, "place": "", "inputs": {}, "settings": {}, "outputs": []}
    return {
        "image_header": images(),
        "image": images(),
        "tar": {"sample": tar_of(("1.jpg", photo(1)), ("1.txt", "One"), ("1.json", '{"caption": "Two"}'))},
        "parquet": parquet(),
        "json": {"coco": json.dumps(coco).encode()},
        "jsonl": {"rows": b'{"file_name": "a.jpg", "text": "One"}\n'},
        "csv": {"rows": b'file_name,text,text\na.jpg,"One\ntwo",["Three"]\n'},
        "kaggle": {"rows": b'image,caption\na.jpg,"One, two"\n'},
        "yaml": {
            "merge": b"images: {<<: {side_px: 0224}, crop: pad}\n",
            "alias": b"a: &a [1]\nb: [*a, *a]\n",
        },
        "npz": {"arrays": npz(), "brackets": npz().replace(b"descr", b"((((((")},
        "h5": {"weights": h5()},
        "record": {"record": json.dumps(record).encode()},
    }


def main() -> None:
    for target, inputs in corpus().items():
        folder = Path(CORPUS, target)
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in inputs.items():
            (folder / name).write_bytes(data)


if __name__ == "__main__":
    main()
