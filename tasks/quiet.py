"""TensorFlow without what its C++ writes about its build."""

from __future__ import annotations

import os
from functools import cache


@cache
def load_tensorflow() -> None:
    """Import TensorFlow, and let it say what it says of oneDNN and the processor to nobody.

    No setting of TensorFlow 2.21 silences these lines, which come before its log is set up; so
    standard error leads nowhere meanwhile. An exception is raised as ever.
    """
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        import tensorflow as tf

        tf.constant(1.0) + 1.0  # the first operation tells of the processor
        tf.zeros(1, tf.float16)  # and the first on float16 of what oneDNN leaves to others
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
