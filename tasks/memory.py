"""Less memory: what is needed no more is given back, what many need is there once."""

from __future__ import annotations

import ctypes
import gc
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import tensorflow as tf


def give_back(*, tensorflow: bool) -> None:
    """Return free memory to the system; with `tensorflow` what only refers to itself too, as its graphs do.

    The C library keeps what is freed, more of it once TensorFlow's datasets have told it to: the next stage
    would begin with all that the last one took. Where the library is not glibc, it does what it does.
    """
    if tensorflow:  # to look for it takes half a second
        gc.collect()
    trim = getattr(_c_library(), "malloc_trim", None)
    if trim:
        trim(0)


@cache
def _c_library() -> Any:
    return ctypes.CDLL(None)


def shared(values: np.ndarray) -> tf.Tensor:
    """Values that a graph refers to; of a large constant it would hold several copies."""
    import tensorflow as tf

    with tf.init_scope():
        return tf.constant(values)
