"""What libraries say and write of themselves, and read of the user."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

COMPUTE = """
from cutline.tasks.runtime.tensorflow import load_tensorflow
load_tensorflow()
import tensorflow as tf
for dtype in (tf.float32, tf.float16):
    tf.function(lambda x: tf.reduce_mean(tf.matmul(x, x), 1))(tf.zeros((4, 8, 8), dtype))
"""


def test_what_tensorflow_says_of_its_build_and_the_processor_reaches_nobody() -> None:
    done = subprocess.run([sys.executable, "-c", COMPUTE], capture_output=True, text=True, check=True)
    assert done.stderr == ""


SETTINGS = """
from cutline.tasks.runtime.tensorflow import load_tensorflow
load_tensorflow()
import keras
config, layer = keras.config, keras.layers.Dense(2)
print(config.backend(), config.floatx(), config.epsilon(), config.image_data_format(), layer.compute_dtype)
"""


def test_numbers_do_not_depend_on_what_a_user_says_to_keras(tmp_path: Path) -> None:
    told = {"backend": "jax", "floatx": "float16", "epsilon": 0.1, "image_data_format": "channels_first"}
    (tmp_path / "keras.json").write_text(json.dumps(told))
    environment = {**os.environ, "KERAS_HOME": str(tmp_path)}
    command = [sys.executable, "-c", SETTINGS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "tensorflow float32 1e-07 channels_last float32\n"


DRAWN = """
import polars as pl
from cutline.tasks.report.curves import draw_curve
losses = {"epoch": [1, 2], "train_loss": [2.0, 1.0], "dev_loss": [2.0, 1.5], "dev_cider": [0.1, 0.2]}
draw_curve(pl.DataFrame({**losses, "best": [False, True]}), "fusion")
"""


@pytest.mark.parametrize("does", [SETTINGS, DRAWN])
def test_libraries_write_nothing_into_the_users_home(does: str, tmp_path: Path) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("XDG", "KERAS", "MPL"))}
    command = [sys.executable, "-c", does]
    subprocess.run(command, env={**kept, "HOME": str(tmp_path)}, capture_output=True, check=True)
    assert list(tmp_path.rglob("*")) == []
