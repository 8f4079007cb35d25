"""TensorFlow says nothing that a user would have to read."""

from __future__ import annotations

import subprocess
import sys

COMPUTE = """
from tasks.quiet import load_tensorflow
load_tensorflow()
import tensorflow as tf
for dtype in (tf.float32, tf.float16):
    tf.function(lambda x: tf.reduce_mean(tf.matmul(x, x), 1))(tf.zeros((4, 8, 8), dtype))
"""


def test_what_tensorflow_says_of_its_build_and_the_processor_reaches_nobody() -> None:
    done = subprocess.run([sys.executable, "-c", COMPUTE], capture_output=True, text=True, check=True)
    assert done.stderr == ""
