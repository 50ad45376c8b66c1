"""Stream one answer, token by token as it is sampled, to a person who reads along."""

import contextlib
from collections.abc import Iterable, Iterator

import jax
import numpy as np

from deepseek_jax.data.tokenizer import Tokenizer
from deepseek_jax.models.network_config import Network
from deepseek_jax.rollout.completions import RolloutLog
from deepseek_jax.rollout.engine import Engine, batch_parts_of, rollout_config, rollout_mesh
from deepseek_jax.rollout.requests import PROMPT_BUCKET, check, make_requests
from deepseek_jax.rollout.sampling import Sampling
from deepseek_jax.rollout.slots import Decoding
from deepseek_jax.trees import PyTree

# What a byte-level tokenizer decodes from the first bytes of a character, if its other bytes are in
# later tokens
UNFINISHED = "\ufffd"


def stream(
    config: Network,
    params: PyTree,
    prompt: list[int],
    sampling: Sampling,
    *,
    max_completion_length: int,
    eos_ids: tuple[int, ...] = (),
    seed: int,
) -> Iterator[int]:
    """Sample one completion, and yield each token as soon as it is sampled, the end token too.

    The tokens are the same as from generation.generate. A longer prompt compiles nothing anew until
    it has twice the tokens. The caller may stop reading.

    Args:
        prompt: Token ids.
        sampling: How tokens are drawn.
        max_completion_length: The most tokens. There are fewer if the model's positions end
            earlier.
        eos_ids: Ids that end the completion.

    Raises:
        ValueError: As requests.check does.
    """
    limit = config.max_position_embeddings
    # Fewer tokens if the positions end earlier. The buffers keep their size, so that nothing is
    # compiled for it
    longest = max(1, min(max_completion_length, limit - len(prompt)))
    check(config, sampling, [prompt], longest, 1, 1)
    mesh = rollout_mesh(config)
    config = rollout_config(config, mesh)
    slots = 1 if mesh is None else mesh.size
    requests = make_requests([prompt], 1, seed, slots, batch_parts_of(mesh, config), slots)
    buckets = requests.prompt_room // PROMPT_BUCKET
    prompt_room = PROMPT_BUCKET << (buckets - 1).bit_length()
    requests = requests._replace(prompt_room=prompt_room)
    with _on(mesh):
        engine = Engine(Decoding(config), sampling, tuple(eos_ids), params, requests)
        engine.open(slots, min(max_completion_length, limit), RolloutLog())
        engine.seat(np.array([0]), engine.free_slots())
        tokens, ended = engine.latest()
    for length in range(1, longest + 1):
        yield int(tokens[0])
        if ended[0] or length == longest:
            return
        # Not around the yield: the caller may use another mesh
        with _on(mesh):
            tokens, ended = engine.decode_one(length)


def _on(mesh):
    return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)


def text_pieces(tokenizer: Tokenizer, tokens: Iterable[int]) -> Iterator[str]:
    """Yield, for each token, the text that it completes, which may be "".

    A token may have only some bytes of a character. These wait for the other bytes, or for the end,
    when one more piece is yielded. Joined, the pieces are the text of all tokens, without special
    tokens.
    """
    ids, shown_text = [], ""
    for token in tokens:
        ids.append(token)
        text = tokenizer.decode(ids)
        complete_text = text.rstrip(UNFINISHED)
        piece = complete_text[len(shown_text) :] if complete_text.startswith(shown_text) else ""
        shown_text += piece
        yield piece
    yield tokenizer.decode(ids)[len(shown_text) :]
