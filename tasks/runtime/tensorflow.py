"""TensorFlow without what its C++ writes about its build, and Keras with the same settings for everyone."""

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
        _set_keras()  # which TensorFlow has loaded
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _set_keras() -> None:
    """Set what keras.json may say otherwise to what Keras has by itself, where nobody says anything.

    Numbers depend on it, and no key holds it, as none holds this module: change nothing here.
    """
    import keras

    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")
    keras.config.set_epsilon(1e-7)
    keras.config.set_image_data_format("channels_last")
