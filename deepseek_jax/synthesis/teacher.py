"""A teacher model that answers questions in chunks.

Each chunk is one file. A file that exists is complete, so a later call resumes with the others.

Tests: tests/recipes/generate/test_run.py.
"""

import dataclasses
import functools
import json
from collections.abc import Callable

import jax
import numpy as np
from etils.epath import Path
from jax.sharding import Mesh

from deepseek_jax.errors import shortened
from deepseek_jax.files import as_path, write_whole
from deepseek_jax.parallel.processes import any_on, barrier, from_each, say
from deepseek_jax.rewards.scoring import Rewards
from deepseek_jax.rollout.answers import opened_thought
from deepseek_jax.rollout.policy import Policy
from deepseek_jax.rollout.sample_log import SampleLog
from deepseek_jax.synthesis.settings import AskSettings
from deepseek_jax.training.loop import STOPPED


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A policy that answers questions; each group of teacher_processes answers its own chunks.

    Attributes:
        settings: How the teacher answers.
        load: Called only if there is a chunk to answer.
        mesh: The mesh of the group's devices, which together hold one whole teacher.
        should_stop: Returns True if the run must stop.
    """

    settings: AskSettings
    load: Callable[[], Policy]
    mesh: Mesh
    should_stop: Callable[[], bool]

    @functools.cached_property
    def policy(self) -> Policy:
        """The Policy that answers, loaded once."""
        return self.load()

    def answer(
        self, folder: Path, examples: list[dict], *, n: int, rewards: Rewards | None = None
    ) -> list[Path]:
        """Answer every example n times, into files of `folder`, and return their paths.

        Files that exist are skipped. The same call writes the same bytes, whichever files exist and
        however many processes share the work (in float32; see `rollout.generate`).

        A file has one line {"example": ..., "samples": [...]} for each of chunk_size prompts. A
        sample has these fields:

        - text: begins with the policy's opening.
        - tokens: the number of tokens that the policy sampled.
        - finished: False for a truncated completion.
        - messages and reset_text: only of a conversation, see `_of_conversation`.
        - reward and parts: with `rewards`. A reward that failed is None.

        When should_stop() is true, the group stops after the next completion. Completions that have
        ended wait in a SampleLog for their chunk, and are not sampled again.

        Args:
            folder: The folder for the chunks.
            examples: Examples with prompt_ids.
            n: Completions for each example.
            rewards: Scores the samples; None for no scores.

        Raises:
            SystemExit: With STOPPED, when this group or another one stopped. All processes raise it
                together: the other groups stop by their own should_stop() or finish their chunks
                first.
        """
        paths = chunk_paths(folder, len(examples), self.settings.chunk_size)
        folder.mkdir(parents=True, exist_ok=True)
        remaining_chunks = [number for number, path in enumerate(paths) if not path.exists()]
        # No process may write before all have listed the files: they must divide the same list
        barrier(f"{folder}: all have seen what is there")
        group, place_in_group = divmod(jax.process_index(), self.settings.teacher_processes)
        own_chunks, stopped = (
            remaining_chunks[group :: jax.process_count() // self.settings.teacher_processes],
            False,
        )
        try:
            for number in own_chunks:
                start = number * self.settings.chunk_size
                chunk = examples[start : start + self.settings.chunk_size]
                log = self._answer_chunk(
                    paths[number], chunk, n, rewards, writes=place_in_group == 0
                )
                # A stop after the last chunk would leave nothing to resume
                if number != own_chunks[-1]:
                    self._stop_if_asked(log)
        except _Stop:
            stopped = True
        # All groups meet here: if one had exited, the others would wait for ever
        if any(from_each(stopped)):
            raise SystemExit(STOPPED)
        return paths

    def _answer_chunk(self, path, chunk, n, rewards, writes):
        """Write the file of a chunk, remove its SampleLog from disk, and return the log."""
        log = SampleLog(path.with_suffix(".ended"), writes=writes)
        # Wait until the whole group has read the log, because one process removes it later
        any_on(self.mesh, False)
        log.on_add = functools.partial(self._stop_before_the_last, log, len(chunk) * n)
        rows = self._rows(chunk, n, rewards, log)
        if writes:
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            write_whole(path, text)
        log.remove()
        say(f"{path.parent.name}: {path.stem}{_summary(rows, rewards)}")
        return log

    def _stop_if_asked(self, log):
        if any_on(self.mesh, self.should_stop()):
            log.flush()
            say(
                f"{log.path.parent.name}: asked to stop; ended completions are on disk. Run again to resume."
            )
            raise _Stop

    def _stop_before_the_last(self, log, num_completions):
        # After the last completion the chunk must be written before a stop
        if log.ended < num_completions:
            self._stop_if_asked(log)

    def _rows(self, examples, n, rewards, log):
        sampling, seed = self.settings.sampling, self.settings.seed
        answers = self.policy.answer(examples, sampling, n=n, seed=seed, log=log)
        opening, rollout = self.policy.opening, answers.rollout
        samples = [
            {
                "text": opening + self.policy.tokenizer.decode(ids),
                "tokens": int(length),
                "finished": not truncated,
            }
            for ids, length, truncated in zip(
                rollout.tokens(), rollout.lengths, rollout.truncated, strict=True
            )
        ]
        for sample, conversation in zip(samples, answers.conversations or (), strict=False):
            sample |= _of_conversation(conversation)
        if rewards is not None:
            _score(samples, answers.per_answer(examples), list(rollout.tokens()), rewards)
        bare_examples = [{k: v for k, v in e.items() if k != "prompt_ids"} for e in examples]
        groups = [samples[i : i + n] for i in range(0, len(samples), n)]
        pairs = zip(bare_examples, groups, strict=True)
        return [{"example": example, "samples": group} for example, group in pairs]


def _of_conversation(conversation):
    """Return the fields of a sample that only a conversation has.

    They are messages, the messages after the prompt in OpenAI's form, and reset_text, the text of
    the environment's reset, if there is one.
    """
    text = conversation.reset_text
    return {"messages": conversation.messages} | ({"reset_text": text} if text else {})


class _Stop(Exception):
    """Raised within a group to end its work on its chunks."""


def check_opening(policy: Policy, prompt_ids: list[int]):
    """Raise ValueError if the chat template opens the answer with <think> and `opening` does not.

    The dataset would lack that <think>.

    Args:
        policy: The policy that answers.
        prompt_ids: The ids of one of its prompts.
    """
    opens_thought = opened_thought(policy.tokenizer, prompt_ids)
    if policy.template == "chat" and opens_thought and not policy.opening:
        raise ValueError(
            f"opening={policy.opening!r}, and the chat template opens the answer with <think>; set it to "
            '"<think>\\n", as the template writes it'
        )


def chunk_paths(folder: Path, num_prompts: int, chunk_size: int):
    """Return the files for num_prompts prompts, in order."""
    count = -(-num_prompts // chunk_size)
    return [as_path(folder) / f"{number:05d}-of-{count:05d}.jsonl" for number in range(count)]


def read_rows(folder: Path):
    """Yield all rows in a folder's chunks, in the order of the prompts."""
    for path in sorted(as_path(folder).glob("*-of-*.jsonl")):
        with path.open(encoding="utf-8") as lines:
            yield from map(json.loads, lines)


def _score(samples, examples, ids, rewards):
    scores = rewards.score(examples, [sample["text"] for sample in samples], ids)
    for message in scores.messages:
        print(f"{shortened(message)} The completion is dropped.", flush=True)
    scores.require_one()
    for i, sample in enumerate(samples):
        sample["reward"] = _number(scores.total[i])
        sample["parts"] = {
            name: _number(values[i]) for name, values in scores.rewards_by_name.items()
        }


def _number(value):
    return None if np.isnan(value) else float(value)


def _summary(rows, rewards):
    samples = [sample for row in rows for sample in row["samples"]]
    unfinished = sum(not sample["finished"] for sample in samples)
    text = f": {len(samples)} completions, {unfinished} of them unfinished"
    if rewards is None:
        return text
    sample_rewards = [sample["reward"] for sample in samples if sample["reward"] is not None]
    return f"{text}, reward {np.mean(sample_rewards):.2f}"
