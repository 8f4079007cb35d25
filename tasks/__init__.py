"""The work: one module a noun, free of Prefect."""

import os
from pathlib import Path

# OpenBLAS's threads, once called, wait for the next product in a busy loop for a tenth of a second, 2^26
# ticks, beside what TensorFlow computes: a tenth of the time that captions take. 2^4 is the least it knows.
# It reads this where NumPy is loaded, which every module here does later.
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")

# What Polars frees stays with its allocator for a while, on top of what the next stage takes; so it goes back
# to the system at once. The allocator reads this where Polars is loaded; Polars puts its own defaults before.
os.environ.setdefault("_RJEM_MALLOC_CONF", "dirty_decay_ms:0,muzzy_decay_ms:0")

# The user's keras.json may say otherwise, and Keras reads this where it is loaded; what else that file may
# say, `load_tensorflow` sets.
os.environ["KERAS_BACKEND"] = "tensorflow"

# Where Keras keeps that file and what it downloads, and matplotlib its list of fonts: not in the user's home.
DEFAULT_WORKSPACE = Path(__file__).resolve().parents[1] / "data" / "workspace"
os.environ.setdefault("KERAS_HOME", str(DEFAULT_WORKSPACE / "keras"))
os.environ.setdefault("MPLCONFIGDIR", str(DEFAULT_WORKSPACE / "matplotlib"))
