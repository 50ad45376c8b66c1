"""Prompts in, completions out."""

import contextlib
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from deepseek_jax.models import ModelConfig
from deepseek_jax.models.quantized import is_quantized
from deepseek_jax.rollout.completions import Rollout, RolloutLog, empty_rollout, fill
from deepseek_jax.rollout.engine import Engine, batch_parts_of, rollout_config, rollout_mesh
from deepseek_jax.rollout.requests import RequestQueue, check, check_slots, make_requests
from deepseek_jax.rollout.sampling import Sampling
from deepseek_jax.rollout.settings import check_together
from deepseek_jax.rollout.slots import Decoding
from deepseek_jax.rollout.speculative import check as check_drafts


def generate(
    config: ModelConfig,
    params: Any,
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
    """Sample n completions of every prompt: -> Rollout of len(prompts) * n rows.

    prompts: lists of token ids. eos_ids end a completion. slots: how many decode at once. What is sampled
    depends on seed, the prompt and the completion's number among all of that prompt, and on nothing else in
    the call (in float32; lower precisions round differently in another batch). speculative: draft tokens with
    the model's multi-token prediction module, which changes the draws and not their distribution. log: a
    RolloutLog. If it has conversations, completions are these, with what their turns were answered.
    Raises ValueError for prompts that requests.check refuses, for what settings.NOT_TOGETHER names, and for a
    model that cannot draft or has no experts to keep; NotFinite for a completion whose log-probabilities are
    not finite.
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
    if log.keeps_routing and not config.num_moe_layers:
        raise ValueError("keep_routing takes a model with routed experts; set it to False")
    if log.keeps_candidates and not top_k:
        raise ValueError("candidates are kept where top_k is above 0; set it")
    if speculative:
        check_drafts(config)
    mesh = rollout_mesh(config)
    config = rollout_config(config, mesh)
    devices = 1 if mesh is None else mesh.size
    check_slots(slots, devices)
    # Fewer requests than slots: as few slots as split over the devices
    slots = min(slots, -(-len(prompts) * n // devices) * devices)
    requests = make_requests(prompts, n, seed, slots, batch_parts_of(mesh, config))
    queue = RequestQueue(requests, list(log.done))
    result = empty_rollout(len(prompts) * n, max_completion_length, converses)
    fill(result, log)
    if queue:
        with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
            began = time.perf_counter()
            how = Decoding(config, speculative, converses)
            engine = Engine(how, sampling, tuple(eos_ids), params, requests)
            log.weight_sync_seconds = time.perf_counter() - began
            engine.open(slots, max_completion_length, log)
            serve(queue, engine, result, log)
            log.kept = engine.kept
            log.exchanges, log.exchange_rounds = engine.exchanged()
    return result


def serve(queue: RequestQueue, engine: Engine, result: Rollout, log: RolloutLog):
    """Seat, decode and read, collecting in result, until every completion is there."""
    conversations = log.conversations
    while queue or engine.is_busy:
        free = engine.free_slots()
        if queue and len(free):
            engine.seat(queue.take(len(free)), free)
        else:
            # While requests wait, return for free slots; after that a free slot has no use
            engine.decode(wanted=bool(queue))
        # Seating ends a request too if its first token is an end token or fills its room
        ended = engine.ended()
        over = ended if conversations is None else _go_on(engine, ended, conversations)
        rows = engine.collect(result, over)
        if len(rows):
            if conversations is not None:
                cut = [conversations.of[row].cut is not None for row in rows.tolist()]
                result.truncated[rows] |= cut
            log.add(rows, result)


def _go_on(engine, ended, conversations):
    """Have slots read the texts that follow their turns: -> the slots whose conversations are over, int[e].
    ended: those whose turns have just ended.
    """
    due = sorted(slot for slot, at in engine.due.items() if at <= engine.steps)
    turned = engine.turns_of(ended)
    if not turned and not due:
        return ended
    rows = {int(engine.request_in[slot]): slot for slot in (*due, *turned)}
    answered = [int(engine.request_in[slot]) for slot in due]
    found = conversations.after(list(turned.values()), answered)
    for row, slot in rows.items():
        engine.due.pop(slot, None)
        if row not in found:
            engine.due[slot] = engine.steps + conversations.use.limits.call_steps
    texts = {rows[row]: ids for row, ids in found.items() if ids is not None}
    if texts:
        engine.read(texts)
    return np.array([rows[row] for row, ids in found.items() if ids is None], int)
