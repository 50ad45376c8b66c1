"""A teacher model answers questions in chunks. Each chunk is one file, which is complete if it exists."""

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
from deepseek_jax.rewards import Rewards
from deepseek_jax.rollout.answers import opened_thought
from deepseek_jax.rollout.policy import Policy
from deepseek_jax.rollout.sample_log import SampleLog
from deepseek_jax.synthesis.settings import AskSettings
from deepseek_jax.training.loop import STOPPED


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A policy that answers questions. Each group of teacher_processes answers its own chunks.

    load() -> rollout.Policy; called when there is a chunk to answer. mesh: of the group's devices, which
    together hold one whole teacher.
    """

    settings: AskSettings
    load: Callable
    mesh: Mesh
    should_stop: Callable

    @functools.cached_property
    def policy(self):
        """The Policy that answers, loaded once."""
        return self.load()

    def answer(self, folder: Path, examples, *, n: int, rewards: Rewards | None = None):
        """Answer every example n times, into files of `folder`: -> their paths. Skips files that exist.

        A file holds a line {"example": ..., "samples": [...]} for each of chunk_size prompts. A sample has
        text, which begins with the policy's opening; tokens, the number that the policy sampled; finished; of
        a conversation what _conversation says; and with rewards, reward and parts, None where a reward
        failed. The same call writes the same bytes, whichever files exist and however many processes share
        the work (in float32; see rollout.generate). The examples have prompt_ids. When should_stop() is true,
        the group stops after the next completion, and raises SystemExit(STOPPED) together with the others,
        which stop by their own should_stop() or at their end. Ended completions wait in a SampleLog for their
        chunk, and are not sampled again.
        """
        paths = chunk_paths(folder, len(examples), self.settings.chunk_size)
        folder.mkdir(parents=True, exist_ok=True)
        left = [number for number, path in enumerate(paths) if not path.exists()]
        # Before a chunk is written: all processes must share out the same list
        barrier(f"{folder}: all have seen what is there")
        group, place = divmod(jax.process_index(), self.settings.teacher_processes)
        own, stopped = left[group :: jax.process_count() // self.settings.teacher_processes], False
        try:
            for number in own:
                start = number * self.settings.chunk_size
                chunk = examples[start : start + self.settings.chunk_size]
                log = self._answer_chunk(paths[number], chunk, n, rewards, writes=place == 0)
                # A stop after the last chunk would leave nothing to resume
                if number != own[-1]:
                    self._stop_if_asked(log)
        except _Stop:
            stopped = True
        # Here all groups meet: one that had left would let the others wait for ever
        if any(from_each(stopped)):
            raise SystemExit(STOPPED)
        return paths

    def _answer_chunk(self, path, chunk, n, rewards, writes):
        """Write the file of a chunk: -> its SampleLog, which is removed."""
        log = SampleLog(path.with_suffix(".ended"), writes=writes)
        # The whole group has read the log before one process removes it
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

    def _stop_before_the_last(self, log, completions):
        # After the last completion the chunk is written first
        if len(log.done) < completions:
            self._stop_if_asked(log)

    def _rows(self, examples, n, rewards, log):
        sampling, seed = self.settings.sampling, self.settings.seed
        answers = self.policy.answer(examples, sampling, n=n, seed=seed, log=log)
        opening = self.policy.opening
        samples = [
            {
                "text": opening + self.policy.tokenizer.decode(line["ids"]),
                "tokens": len(line["ids"]) - int(sum(line.get("observed", ()))),
                "finished": line["finished"],
            }
            | _conversation(line)
            # log.done is in the order in which the completions ended
            for _, line in sorted(log.done.items())
        ]
        if rewards is not None:
            ids = [list(map(int, line["ids"])) for _, line in sorted(log.done.items())]
            _score(samples, answers.asked(examples), ids, rewards)
        bare = [{k: v for k, v in e.items() if k != "prompt_ids"} for e in examples]
        groups = [samples[i : i + n] for i in range(0, len(samples), n)]
        pairs = zip(bare, groups, strict=True)
        return [{"example": example, "samples": group} for example, group in pairs]


def _conversation(line):
    """Of a conversation's line of a SampleLog: messages, those after the prompt, in OpenAI's form, and
    opening, the text of reset, where there is one.
    """
    if "conversation" not in line:
        return {}
    record = line["conversation"]
    text = record["reset_text"]
    return {"messages": record["messages"]} | ({"reset_text": text} if text else {})


class _Stop(Exception):
    """Ends a group's work on its chunks."""


def check_opening(policy: Policy, prompt_ids):
    """Raise ValueError if the chat template begins the answer with <think> and the policy's opening does not:
    the dataset would lack that <think>.
    """
    opens = opened_thought(policy.tokenizer, prompt_ids)
    if policy.template == "chat" and opens and not policy.opening:
        raise ValueError(
            f"opening={policy.opening!r}, and the chat template opens the answer with <think>; set it to "
            '"<think>\\n", as the template writes it'
        )


def chunk_paths(folder: Path, num_prompts: int, chunk_size: int):
    """The files for num_prompts prompts, in order."""
    count = -(-num_prompts // chunk_size)
    return [as_path(folder) / f"{number:05d}-of-{count:05d}.jsonl" for number in range(count)]


def read_rows(folder: Path):
    """Yield the rows of all chunks of a folder, in the order of the prompts."""
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
        sample["parts"] = {name: _number(part[i]) for name, part in scores.parts.items()}


def _number(value):
    return None if np.isnan(value) else float(value)


def _summary(rows, rewards):
    samples = [sample for row in rows for sample in row["samples"]]
    unfinished = sum(not sample["finished"] for sample in samples)
    text = f": {len(samples)} completions, {unfinished} of them unfinished"
    if rewards is None:
        return text
    scored = [sample["reward"] for sample in samples if sample["reward"] is not None]
    return f"{text}, reward {np.mean(scored):.2f}"
