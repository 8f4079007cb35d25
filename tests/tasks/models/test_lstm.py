"""The training's LSTM computes what Keras's layer does, states and gradients, in either precision."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from cutline.tasks.models import lstm
from cutline.tasks.models.lstm import by_product, product, read
from cutline.tasks.runtime import cpu

if TYPE_CHECKING:
    import keras
    import tensorflow as tf


TOKENS, TOKENS, EMBEDDING, STATE = 5, 7, 6, 8
# bfloat16 has 8 binary digits; sums of some dozens of such products err by a few times as much.
NEAR = {False: 1e-5, True: 0.03}


@pytest.fixture(params=[False, True], ids=["float32", "bfloat16"])
def bfloat16(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(lstm, "has_bfloat16", lambda: request.param)
    return bool(request.param)


@pytest.mark.parametrize(("kind", "weights"), [("lstm", 3), ("dense", 2)])
def test_what_is_told_and_its_gradients_are_those_of_keras(kind: str, weights: int, bfloat16: bool) -> None:
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(1)
    layer: keras.layers.Layer
    if kind == "lstm":
        layer = keras.layers.LSTM(STATE, return_sequences=True, use_cudnn=False, bias_initializer="normal")
        ours = partial(read, layer=layer)
    else:
        layer = keras.layers.Dense(STATE, bias_initializer="normal")
        ours = by_product(layer)
    inputs = tf.random.normal((TOKENS, TOKENS, EMBEDDING))
    weighed = tf.random.normal((TOKENS, TOKENS, STATE))
    expected, *expected_gradients = _states_and_gradients(layer, inputs, weighed, layer)
    found, *gradients = _states_and_gradients(ours, inputs, weighed, layer)
    assert found == pytest.approx(expected, abs=NEAR[bfloat16])
    assert len(gradients) == weights + 1, "of the inputs too"
    for gradient, right in zip(gradients, expected_gradients, strict=True):
        assert gradient == pytest.approx(right, abs=NEAR[bfloat16] * float(np.abs(right).max()))


def _states_and_gradients(
    states_of: Callable[[tf.Tensor], tf.Tensor],
    inputs: tf.Tensor,
    weighed: tf.Tensor,
    layer: keras.layers.Layer,
) -> list[np.ndarray]:
    import tensorflow as tf

    # As in training: the number of tokens is not known when the step is compiled.
    @tf.function(input_signature=[tf.TensorSpec((TOKENS, None, EMBEDDING))], autograph=False)
    def found(inputs: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            states = states_of(inputs)
            loss = tf.reduce_sum(states * weighed)
        return [states, *tape.gradient(loss, [inputs, *layer.trainable_variables])]

    layer(inputs)
    return [values.numpy() for values in found(inputs)]


def test_where_nothing_is_learned_the_same_states_are_read(bfloat16: bool) -> None:
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(1)
    layer = keras.layers.LSTM(STATE, return_sequences=True, use_cudnn=False)
    inputs = tf.random.normal((TOKENS, TOKENS, EMBEDDING))
    layer(inputs)
    assert (read(inputs, layer, learning=False).numpy() == read(inputs, layer).numpy()).all()


def test_a_product_is_the_product_of_what_bfloat16_keeps_of_the_numbers(bfloat16: bool) -> None:
    # 1 + 2^-9 needs ten binary digits: bfloat16, with eight, makes it 1.
    left, right = np.array([[1 + 2**-9, 3.0]], np.float32), np.array([[2.0], [0.5]], np.float32)
    assert product(left, right).numpy() == np.float32(3.5 if bfloat16 else 3.5 + 2**-8)
    assert product(left, right.T, transpose_b=True).numpy().dtype == np.float32


@pytest.mark.parametrize(
    ("flags", "expected"),
    [("avx512f avx512_bf16", True), ("amx_tile amx_bf16", True), ("avx2 avx512_vnni avx512_fp16", False)],
)
def test_bfloat16_is_for_processors_with_instructions_for_it(
    flags: str, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(f"flags\t\t: fpu sse2 {flags}\n")
    monkeypatch.setattr(cpu, "CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS", raising=False)
    assert cpu._has(cpu.BFLOAT16_INSTRUCTIONS) is expected
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    assert not cpu._has(cpu.BFLOAT16_INSTRUCTIONS)
