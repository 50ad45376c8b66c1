"""What is wrong with the groups of a step, of conversations too."""

import numpy as np
import pytest

from deepseek_jax.reinforce.degenerate import faults

EOS = 9


@pytest.mark.parametrize("last, ends", [(EOS, {}), (4, {"odd_ends": ": 4"})])
def test_a_conversation_ends_at_its_last_sampled_token(last, ends):
    """Oracle: by hand: two turns of two tokens around a text of three that the model read, as an odd end
    only where the second turn has one; the text itself, 5 6 7, is none. The other completion is one turn.
    """
    ids = np.array([[3, EOS, 5, 6, 7, 3, last, 0], [1, 2, EOS, 0, 0, 0, 0, 0]])
    mask = np.array([[1, 1, 0, 0, 0, 1, 1, 0], [1, 1, 1, 0, 0, 0, 0, 0]], bool)
    group = dict(ids=ids, mask=mask, rewards=np.array([0.0, 1.0]), truncated=np.zeros(2, bool))
    assert dict(faults([group | {"parts": {}}], [EOS])) == ends
