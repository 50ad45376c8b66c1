"""engine's loop for conversations: turns end, tools answer while other slots decode, and turns go on.

What is sampled does not depend on the clock of the machine: a call's text enters at the first pause of
decoding at least `call_steps` token steps after the turn ended, and the engine waits where it is late. Where
no slot decodes, the count jumps to the next text that is due.
"""

import jax
import numpy as np

from deepseek_jax.rollout import turns
from deepseek_jax.rollout.completions import Rollout, RolloutLog, of_slots, on_host
from deepseek_jax.rollout.conversations import Turn
from deepseek_jax.rollout.engine import Engine, Way, ended_together
from deepseek_jax.rollout.requests import RequestQueue
from deepseek_jax.rollout.slots import rooms


class TurnsEngine(Engine):
    """The slots of conversations. due: slot whose turn has ended -> the token step at which its text enters.
    steps: token steps so far.
    """

    def open(self, slots, max_completion_length, log):
        self.longest_turn = log.conversations.use.limits.turn_length or max_completion_length
        super().open(slots, max_completion_length, log)
        self.due, self.steps = {}, 0
        # By slot: the length of the conversation at the start of its turn, and the number of the turn
        self.began, self.turn = np.zeros(slots, int), np.zeros(slots, int)
        self.fold = jax.jit(jax.vmap(jax.random.fold_in))

    def empty(self, *sizes):
        return self.parts.empty_slots(self.config, *sizes, np.int32(self.longest_turn))

    def seat(self, requests, free):
        super().seat(requests, free)
        seats = free[: len(requests)]
        self.began[seats] = self.turn[seats] = 0

    def decode_turns(self):
        """Sample token after token until some slots' turns have ended, or a text is due: at most as many
        steps as the next one waits.
        """
        ended, length = on_host((self.state.ended, self.state.length))
        if ended.all():
            self.steps = min(self.due.values())
            return
        if rooms(self.tables, self.state)[1] < self.state.tokens.shape[1]:
            self._make_room(length[~ended].max() + 1)
        ends = ended_together(len(self.request_in))
        left = min(self.due.values(), default=np.iinfo(np.int32).max) - self.steps
        before = int(self.state.step)
        arguments = self.weights, self.tables, self.state, ends, left
        self.state = self.parts.decode(*self.fixed, *arguments)
        self.steps += int(self.state.step) - before

    def turned(self):
        """{slot: the Turn that has ended in it} since the last call."""
        ended = on_host(self.state.ended) & (self.request_in >= 0)
        slots = np.array([slot for slot in np.flatnonzero(ended) if slot not in self.due], int)
        if not len(slots):
            return {}
        state, turns = of_slots(self.state, slots), {}
        for i, slot in enumerate(slots.tolist()):
            length = int(state.length[i])
            ids = state.tokens[i, self.began[slot] : length].tolist()
            row, stopped = int(self.request_in[slot]), bool(state.stopped[i])
            turns[slot] = Turn(row, ids, stopped, length)
        return turns

    def read(self, texts: dict[int, list[int]]):
        """Have slots read these ids, and begin their next turns."""
        slots = np.array(sorted(texts))
        self.turn[slots] += 1
        length = on_host(self.state.length).astype(int)
        self.began[slots] = [length[slot] + len(texts[slot]) for slot in slots]
        self._make_room(self.began[slots].max() + 1)
        left = {slot: texts[slot] for slot in slots}
        while left:
            sizes = {slot: turns.chunk_of(len(ids)) for slot, ids in left.items()}
            size = max(sizes.values())
            now = {slot: ids for slot, ids in left.items() if sizes[slot] == size}
            self.state = turns.read(
                self.config, self.weights, self.tables, self.state, self._chunk(now, size)
            )
            left = left | {slot: ids[size:] for slot, ids in now.items()}
            left = {slot: ids for slot, ids in left.items() if ids}

    def _chunk(self, texts, size):
        """The turns.Chunk of the first `size` ids of each slot's text."""
        count = len(self.request_in)
        tokens, counts = np.zeros((count, size), np.int32), np.zeros(count, np.int32)
        resumes = np.zeros(count, bool)
        for slot, ids in texts.items():
            own = ids[:size]
            tokens[slot, : len(own)], counts[slot] = own, len(own)
            resumes[slot] = len(own) == len(ids)
        keys = self.requests.keys[np.maximum(self.request_in, 0)]
        limit = np.minimum(self.began + self.longest_turn, self.state.tokens.shape[1])
        return turns.Chunk(
            tokens, counts, resumes, self.fold(keys, self.turn), limit.astype(np.int32)
        )


def serve(queue: RequestQueue, engine: TurnsEngine, result: Rollout, log: RolloutLog):
    """Seat, decode and read, collecting in result, until every conversation of log is over."""
    while queue or engine.is_busy:
        free = engine.free_slots()
        if queue and len(free):
            engine.seat(queue.take(len(free)), free)
        else:
            engine.decode_turns()
        turned = engine.turned()
        due = sorted(slot for slot, at in engine.due.items() if at <= engine.steps)
        if not turned and not due:
            continue
        rows = {int(engine.request_in[slot]): slot for slot in (*due, *turned)}
        answered = [int(engine.request_in[slot]) for slot in due]
        found = log.conversations.after(list(turned.values()), answered)
        for row, slot in rows.items():
            engine.due.pop(slot, None)
            if row not in found:
                engine.due[slot] = engine.steps + log.conversations.use.limits.call_steps
        _go_on(engine, {rows[row]: ids for row, ids in found.items()}, result, log)


def _go_on(engine, found, result, log):
    """Read what slots have to read, or collect their conversations. found: slot -> ids, None for the end."""
    texts = {slot: ids for slot, ids in found.items() if ids is not None}
    if texts:
        engine.read(texts)
    over = np.array([slot for slot, ids in found.items() if ids is None], int)
    if len(over):
        rows = engine.collect_slots(result, over)
        result.truncated[rows] |= [
            log.conversations.of[row].cut is not None for row in rows.tolist()
        ]
        log.add(rows, result)


WAY = Way(turns.PARTS, TurnsEngine, serve)
