"""Less memory: what is needed no more is given back, what many need is there once."""

from __future__ import annotations

import ctypes
import gc
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import tensorflow as tf


def give_back(*, tensorflow: bool) -> None:
    """Return free memory to the system; with `tensorflow` what only refers to itself too, as its graphs do.

    The C library keeps much of what is freed, so that the next stage would begin with what the last one took.
    Where the library is not glibc, it does what it does.
    """
    if tensorflow:  # to look for it takes half a second
        gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)


def by_reference(values: np.ndarray) -> tf.Tensor:
    """Values that a graph refers to; of a large constant it would hold several copies."""
    import tensorflow as tf

    with tf.init_scope():
        return tf.constant(values)
