"""An LSTM over whole captions, for training: what Keras's layer computes, in less of the processor's time.

What grows with the weights is worked out once for all tokens (products with the inputs, and the gradients
of both matrices), so that only the products with the state are left to do token by token; Keras's tape adds
up a gradient of the whole recurrent matrix at every token. And products are of bfloat16 numbers, added up
in float32, where the processor has instructions for them: training takes no harm from their three digits
(Kalamkar et al. 2019, arXiv:1905.12322).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from cutline.tasks.runtime.cpu import has_bfloat16

if TYPE_CHECKING:
    import keras
    import tensorflow as tf


Gradients: TypeAlias = "tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]"


def rows_alike(rows: int, each: int = 1) -> int:
    """`rows` or a few more, of which `each` times as many are multiplied alike, wherever a row stands.

    TensorFlow multiplies 24 rows of a float32 matrix at a time, of what is left 8 or 6 as the processor's
    vectors are wide, and the last ones by other instructions, which may round otherwise: with AVX2 the last
    two of 32 rows differ from the same rows elsewhere in their last bit. None are left of 24 and of 16.

    >>> rows_alike(32, 10), rows_alike(256)
    (36, 256)
    """
    while rows * each % 24 not in (0, 16):
        rows += 1
    return rows


def product(left: tf.Tensor, right: tf.Tensor, **transposed: bool) -> tf.Tensor:
    """The matrix product of two float32 matrices, (m, k) and (k, n) -> (m, n) float32, for training.

    `transposed` are `transpose_a` and `transpose_b`, as tf.matmul has them.
    """
    import tensorflow as tf

    return tf.cast(tf.matmul(_factor(left), _factor(right), **transposed), tf.float32)


def _factor(matrix: tf.Tensor) -> tf.Tensor:
    """The matrix as it is multiplied."""
    import tensorflow as tf

    return tf.cast(matrix, tf.bfloat16) if has_bfloat16() else matrix


def by_product(layer: keras.layers.Dense) -> Callable[[tf.Tensor], tf.Tensor]:
    """What `layer`, which has no activation, does, by `product`: (..., C) -> (..., units) float32."""

    def apply(values: tf.Tensor) -> tf.Tensor:
        import tensorflow as tf

        flat = product(_flat(values), layer.kernel.value)
        if layer.use_bias:
            flat += layer.bias
        return tf.reshape(flat, tf.concat([tf.shape(values)[:-1], [layer.units]], 0))

    return apply


def read(inputs: tf.Tensor, layer: keras.layers.LSTM, *, learning: bool = True) -> tf.Tensor:
    """The states of `layer` after each input: (B, T, E) -> (B, T, H) float32; B is known, T need not be.

    What a gradient would need is kept only where there is `learning`.
    """
    import tensorflow as tf

    cell = layer.cell
    kernel, recurrent, bias = (matrix.value for matrix in (cell.kernel, cell.recurrent_kernel, cell.bias))
    inputs = _by_caption(tf.convert_to_tensor(inputs))
    if learning:
        return _by_caption(_read(inputs, kernel, recurrent, bias))
    return _by_caption(_forwards(inputs, kernel, recurrent, bias, kept=1)[0])


def _by_caption(values: tf.Tensor) -> tf.Tensor:
    """Token by token to caption by caption, and back."""
    import tensorflow as tf

    return tf.transpose(values, (1, 0, 2))


def _read(inputs: tf.Tensor, kernel: tf.Tensor, recurrent: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
    """(T, B, E) -> (T, B, H), with the gradient by hand (Hochreiter and Schmidhuber 1997)."""
    import tensorflow as tf

    @tf.custom_gradient
    def states_of(
        inputs: tf.Tensor, kernel: tf.Tensor, recurrent: tf.Tensor, bias: tf.Tensor
    ) -> tuple[tf.Tensor, Any]:
        states, cells, gates = _forwards(inputs, kernel, recurrent, bias)

        def gradients(of_states: tf.Tensor) -> Gradients:
            of_gates = _flat(_backwards(of_states, cells, gates, recurrent))
            return (
                tf.reshape(product(of_gates, kernel, transpose_b=True), tf.shape(inputs)),
                product(_flat(inputs), of_gates, transpose_a=True),
                product(_flat(_before(states)), of_gates, transpose_a=True),
                tf.reduce_sum(of_gates, 0),
            )

        return states, gradients

    return states_of(inputs, kernel, recurrent, bias)


def _forwards(
    inputs: tf.Tensor, kernel: tf.Tensor, recurrent: tf.Tensor, bias: tf.Tensor, kept: int = 3
) -> list[tf.Tensor]:
    """States and cells (T, B, H), and the gates (T, B, 4 H); only the first `kept` of these.

    The order of the gates is Keras's: input, forget, candidate, output.
    """
    import tensorflow as tf

    tokens, captions, size = tf.shape(inputs)[0], inputs.shape[1], recurrent.shape[0]
    recurrent = _factor(recurrent)
    of_inputs = _each(tf.reshape(product(_flat(inputs), kernel) + bias, (-1, captions, 4 * size)))

    def step(token: tf.Tensor, state: tf.Tensor, cell: tf.Tensor, *told: tf.TensorArray) -> tuple[Any, ...]:
        raw = of_inputs.read(token) + product(state, recurrent)
        input_, forget, candidate, output = tf.split(raw, 4, -1)
        input_, forget, candidate, output = (
            tf.sigmoid(input_),
            tf.sigmoid(forget),
            tf.tanh(candidate),
            tf.sigmoid(output),
        )
        cell = forget * cell + input_ * candidate
        state = output * tf.tanh(cell)
        values = state, cell, tf.concat([input_, forget, candidate, output], -1)
        told = tuple(x.write(token, y) for x, y in zip(told, values[:kept], strict=True))
        return token + 1, state, cell, *told

    nothing = tf.zeros((captions, size))
    told = [_rows(tokens, captions, width) for width in (size, size, 4 * size)[:kept]]
    ended = tf.while_loop(lambda token, *_: token < tokens, step, (0, nothing, nothing, *told))
    return [rows.stack() for rows in ended[3:]]


def _backwards(of_states: tf.Tensor, cells: tf.Tensor, gates: tf.Tensor, recurrent: tf.Tensor) -> tf.Tensor:
    """The gradient of what goes into the gates (T, B, 4 H), from that of the states (T, B, H)."""
    import tensorflow as tf

    tokens, captions, size = tf.shape(of_states)[0], of_states.shape[1], recurrent.shape[0]
    recurrent = _factor(recurrent)
    states_, cells_, before_, gates_ = map(_each, (of_states, cells, _before(cells), gates))

    def step(token: tf.Tensor, of_state: tf.Tensor, of_cell: tf.Tensor, told: tf.TensorArray) -> Any:
        of_state += states_.read(token)
        input_, forget, candidate, output = tf.split(gates_.read(token), 4, -1)
        shown = tf.tanh(cells_.read(token))
        of_cell += of_state * output * (1 - shown * shown)
        raw = [
            of_cell * candidate * input_ * (1 - input_),
            of_cell * before_.read(token) * forget * (1 - forget),
            of_cell * input_ * (1 - candidate * candidate),
            of_state * shown * output * (1 - output),
        ]
        of_gates = tf.concat(raw, -1)
        to_state = product(of_gates, recurrent, transpose_b=True)
        return token - 1, to_state, of_cell * forget, told.write(token, of_gates)

    nothing = tf.zeros((captions, size))
    told = _rows(tokens, captions, 4 * size)
    return tf.while_loop(lambda token, *_: token >= 0, step, (tokens - 1, nothing, nothing, told))[-1].stack()


def _each(values: tf.Tensor) -> tf.TensorArray:
    import tensorflow as tf

    return tf.TensorArray(tf.float32, tf.shape(values)[0]).unstack(values)


def _rows(tokens: tf.Tensor, captions: int, width: int) -> tf.TensorArray:
    import tensorflow as tf

    return tf.TensorArray(tf.float32, tokens, element_shape=(captions, width))


def _before(values: tf.Tensor) -> tf.Tensor:
    """What was there before each token: nothing before the first."""
    import tensorflow as tf

    return tf.concat([tf.zeros_like(values[:1]), values[:-1]], 0)


def _flat(values: tf.Tensor) -> tf.Tensor:
    import tensorflow as tf

    return tf.reshape(values, (-1, values.shape[-1]))
