"""generate: sample completions of prompts.

Tests: tests/rollout/test_engine.py, tests/rollout/test_conversations.py.
"""

import contextlib
import time
from collections.abc import Sequence

import jax
import numpy as np

from deepseek_jax.models.network_config import Network
from deepseek_jax.models.quantized import is_quantized
from deepseek_jax.models.v4.config import V4Config
from deepseek_jax.rollout import v4
from deepseek_jax.rollout.completions import Rollout, RolloutLog, empty_rollout, fill
from deepseek_jax.rollout.engine import Engine, batch_parts_of, rollout_config, rollout_mesh
from deepseek_jax.rollout.requests import RequestQueue, check, check_slots, make_requests
from deepseek_jax.rollout.sampling import Sampling
from deepseek_jax.rollout.settings import check_together
from deepseek_jax.rollout.slots import Decoding
from deepseek_jax.rollout.speculative import check as check_drafts
from deepseek_jax.trees import PyTree


def generate(
    config: Network,
    params: PyTree,
    prompts: list[list[int]],
    *,
    max_completion_length: int,
    n: int = 1,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    eos_ids: Sequence[int] = (),
    seed: int = 0,
    slots: int = 32,
    speculative: bool = False,
    log: RolloutLog | None = None,
) -> Rollout:
    """Sample n completions of every prompt.

    What is sampled depends on the seed, the prompt and the completion's number among all
    completions of this prompt, and on nothing else in the call. This holds in float32; lower
    precisions round differently in another batch.

    Args:
        prompts: Lists of token ids.
        max_completion_length: The most tokens of a completion.
        temperature: 0 is greedy.
        top_p: 1 filters no token.
        top_k: 0 filters no token.
        eos_ids: Ids that end a completion.
        slots: How many completions decode at once.
        speculative: Draft tokens with the model's multi-token prediction module. This changes the
            draws, but not their distribution.
        log: Receives completions as they end. If it has conversations, completions are
            conversations, with the texts that answered their turns.

    Returns:
        A Rollout of len(prompts) * n rows.

    Raises:
        ValueError: requests.check refuses an argument; settings.NOT_WITH_DRAFTS excludes an option;
            the slots do not split over the devices; the model cannot draft, or has no experts to
            keep; v4.check refuses an option; or candidates are to be kept and top_k is 0.
        NotFinite: A completion has log-probabilities that are not finite.
    """
    log = RolloutLog() if log is None else log
    sampling = Sampling(float(temperature), float(top_p), top_k, log.keeps_candidates)
    check(config, sampling, prompts, max_completion_length, n, slots)
    converses = log.conversations is not None
    check_together(
        drafts=speculative,
        turns=converses,
        routing=log.keeps_routing,
        candidates=log.keeps_candidates,
        int8=is_quantized(params),
    )
    if isinstance(config, V4Config):
        v4.check(converses=converses, keeps_routing=log.keeps_routing)
    elif log.keeps_routing and not config.num_moe_layers:
        raise ValueError("keep_routing takes a model with routed experts; set it to False")
    if log.keeps_candidates and not top_k:
        raise ValueError("candidates are kept where top_k is above 0; set it")
    if speculative:
        check_drafts(config)
    mesh = rollout_mesh(config)
    config = rollout_config(config, mesh)
    devices = 1 if mesh is None else mesh.size
    check_slots(slots, devices)
    # With fewer requests than slots, use the fewest slots that split over the devices
    slots = min(slots, -(-len(prompts) * n // devices) * devices)
    requests = make_requests(prompts, n, seed, slots, batch_parts_of(mesh, config), devices)
    queue = RequestQueue(requests, list(log.done))
    result = empty_rollout(len(prompts) * n, max_completion_length, converses, log.own_rows)
    fill(result, log)
    if queue:
        with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
            began = time.perf_counter()
            decoding = Decoding(config, speculative, converses)
            engine = Engine(decoding, sampling, tuple(eos_ids), params, requests)
            log.weight_sync_seconds = time.perf_counter() - began
            engine.open(slots, max_completion_length, log)
            serve(queue, engine, result, log)
            log.token_choices = engine.token_choices
            log.exchanges, log.exchange_rounds = engine.exchanged()
    return result


def serve(queue: RequestQueue, engine: Engine, result: Rollout, log: RolloutLog):
    """Seat, decode and read until all completions have ended.

    Args:
        engine: The Engine, with open slots.
        result: The Rollout that gets the completions.
    """
    conversations = log.conversations
    while queue or engine.is_busy:
        free_slots = engine.free_slots()
        if queue and len(free_slots):
            engine.seat(queue.take(len(free_slots)), free_slots)
        else:
            # While requests wait, decoding returns when slots are free. Without requests a free
            # slot has no use
            engine.decode(wanted=bool(queue))
        # A seated request has ended already if its first token is an end token or fills its room
        ended = engine.ended()
        finished_slots = ended if conversations is None else _go_on(engine, ended, conversations)
        rows = engine.collect(result, finished_slots)
        if len(rows):
            is_here = result.is_here[rows]
            if conversations is not None:
                is_cut = [conversations.of[row].cut is not None for row in rows.tolist()]
                result.truncated[rows] |= is_cut
                conversations.forget(rows[~is_here].tolist())
            log.add(rows[is_here], result)


def _go_on(engine, ended, conversations):
    """Let slots read the texts that follow their turns; return the slots with nothing left to do.

    Args:
        ended: int[e], slots with a turn that has just ended.

    Returns:
        The slots with a conversation that is over, int[e].
    """
    due_slots = sorted(slot for slot, step in engine.resume_steps.items() if step <= engine.steps)
    turn_by_slot = engine.turns_of(ended)
    if not turn_by_slot and not due_slots:
        return ended
    slot_by_row = {int(engine.request_in[slot]): slot for slot in (*due_slots, *turn_by_slot)}
    due_rows = [int(engine.request_in[slot]) for slot in due_slots]
    ids_by_row = conversations.after(list(turn_by_slot.values()), due_rows)
    for row, slot in slot_by_row.items():
        engine.resume_steps.pop(slot, None)
        if row not in ids_by_row:
            engine.resume_steps[slot] = engine.steps + conversations.use.limits.call_steps
    texts = {slot_by_row[row]: ids for row, ids in ids_by_row.items() if ids is not None}
    if texts:
        engine.read(texts)
    return np.array([slot_by_row[row] for row, ids in ids_by_row.items() if ids is None], int)
