"""The compiled parts of a rollout, apart from their use by the engine."""

import jax
import jax.numpy as jnp
import numpy as np

from deepseek_jax.rollout.steps import embed


def test_embeddings_are_gathered_bit_by_bit_and_never_all_converted():
    """Oracle: numpy's indexing; and the compiled loop, which holds no float32 table to gather from."""
    table = np.random.default_rng(0).normal(size=(50, 8)).astype(jnp.bfloat16)

    def walk(table_vd, rows):
        def body(i, found):
            return found.at[i].set(embed({"embedding": table_vd}, 7 * i[None])[0])

        return jax.lax.fori_loop(0, 5, body, rows)

    walk = jax.jit(walk)
    arguments = jnp.asarray(table), jnp.zeros((5, 8), table.dtype)
    np.testing.assert_array_equal(np.asarray(walk(*arguments)), table[:35:7])
    assert "f32[50,8]" not in walk.lower(*arguments).compile().as_text()
