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

# Keras reads, where it is loaded, what ~/.keras/keras.json says of numbers, and writes that file where there
# is none. With a home that is no folder it does neither: no number may depend on it, as no key holds it.
os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ["KERAS_HOME"] = os.devnull

# Matplotlib keeps a list of the machine's fonts; it belongs with what else is not the user's own.
os.environ.setdefault("MPLCONFIGDIR", str(Path(__file__).resolve().parents[1] / "data/workspace/matplotlib"))
