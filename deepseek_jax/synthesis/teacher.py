"""A checkpoint that answers questions by the chunk: every chunk a file, final once it is there."""

import dataclasses
import functools
import json
import os
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from deepseek_jax.data.questions import render_question
from deepseek_jax.errors import at
from deepseek_jax.parallel.processes import any_on, barrier, say
from deepseek_jax.recipes.generate.settings import GenerateSettings
from deepseek_jax.recipes.start import ending_turns, load_policy
from deepseek_jax.reinforce.update import check_length, fitting
from deepseek_jax.rollout import generate
from deepseek_jax.synthesis.sample_log import SampleLog
from deepseek_jax.training.loop import STOPPED


@dataclasses.dataclass(frozen=True)
class Teacher:
    """Answers as GenerateSettings say, each group of processes other chunks, on devices of its own.

    checkpoint: what load_policy reads, and its tokenizer: not before there is something to answer. mesh: of
    the group's devices, which hold a whole teacher.
    """

    settings: GenerateSettings
    checkpoint: str
    tokenizer_name: str | None
    mesh: Mesh
    should_stop: Callable

    @functools.cached_property
    def loaded(self):
        """(ModelConfig, params, Tokenizer)."""
        overrides = {} if self.settings.base else self.settings.model
        policy, params, tokenizer = load_policy(
            self.checkpoint, overrides, self.mesh, self.tokenizer_name
        )
        with at("data"):
            policy = ending_turns(policy, tokenizer, self.settings.data.template)
        return policy, params, tokenizer

    def answer(self, folder, examples, *, n, rewards=None):
        """Have every example answered n times, in files of `folder`; what is there already stays.

        A file holds a line {"example": ..., "samples": [...]} for each of chunk_size prompts. A sample: text,
        config.data.opening at its front; tokens, of the completion; finished; and where rewards are given,
        reward and parts, None where there is none. The same call writes the same bytes, whatever was there
        before and however many processes share the work (in float32; see rollout.generate). Prompts that are
        too long are left out, and counted. Stops, on should_stop, with SystemExit(STOPPED) once a completion
        has ended: such ones lie in a SampleLog until their chunk is written, and are not sampled again.
        """
        policy, _, tokenizer = self.loaded
        fits = with_prompts(self.settings, policy, tokenizer, examples)
        paths = chunk_paths(folder, len(fits), self.settings.chunk_size)
        folder.mkdir(parents=True, exist_ok=True)
        left = [number for number, path in enumerate(paths) if not path.exists()]
        barrier(f"{folder}: all have seen what is there")
        group, place = divmod(jax.process_index(), self.settings.teacher_processes)
        own = left[group :: jax.process_count() // self.settings.teacher_processes]
        for number in own:
            start = number * self.settings.chunk_size
            log = SampleLog(paths[number].with_suffix(".ended"), writes=place == 0)
            rows = self._rows(fits[start : start + self.settings.chunk_size], n, rewards, log)
            if place == 0:
                _write_whole(paths[number], rows)
            log.remove()
            say(f"{folder.name}: {paths[number].stem}{_summary(rows, rewards)}")
            if number != own[-1]:
                self._stop_if_told(log)
        barrier(f"{folder} is answered")
        return paths

    def _stop_if_told(self, log):
        if any_on(self.mesh, self.should_stop()):
            say(
                f"{log.path.parent.name}: told to stop; what has ended is written. Run again to go on."
            )
            raise SystemExit(STOPPED)

    def _rows(self, examples, n, rewards, log):
        policy, params, tokenizer = self.loaded
        sampling = self.settings.sampling

        def keep(rows, rollout):
            log.add(rows, rollout)
            if len(log.done) < len(examples) * n:
                self._stop_if_told(log)

        generate(
            policy,
            params,
            [example["prompt_ids"] for example in examples],
            n=n,
            max_completion_length=sampling.max_completion_length,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            eos_ids=(tokenizer.eos_id, *policy.eos_ids),
            seed=self.settings.seed,
            slots=sampling.slots,
            done=list(log.done),
            on_end=keep,
        )
        opening = self.settings.data.opening
        samples = [
            {
                "text": opening + tokenizer.decode(line["ids"]),
                "tokens": len(line["ids"]),
                "finished": line["finished"],
            }
            for _, line in sorted(log.done.items())
        ]
        if rewards is not None:
            _score(samples, [example for example in examples for _ in range(n)], rewards)
        told = [{k: v for k, v in e.items() if k != "prompt_ids"} for e in examples]
        groups = [samples[i : i + n] for i in range(0, len(samples), n)]
        pairs = zip(told, groups, strict=True)
        return [{"example": example, "samples": group} for example, group in pairs]


def with_prompts(settings, policy, tokenizer, examples):
    """The examples with their prompt_ids, without those whose prompt is too long, which are counted.

    Raises ValueError as render_question does, where none is left, and where prompt and completion go beyond
    the positions that the model knows.
    """
    data = settings.data
    render = functools.partial(render_question, template=data.template, opening=data.opening)
    with at("data"):
        prompts = [example | {"prompt_ids": render(tokenizer, example)} for example in examples]
    with at("sampling"):
        fits = fitting(prompts, settings.sampling, "generation")
        check_length(settings.sampling.max_completion_length, policy, fits)
    return fits


def chunk_paths(folder, num_prompts, chunk_size):
    """The files that so many prompts make, in order."""
    count = -(-num_prompts // chunk_size)
    return [Path(folder) / f"{number:05d}-of-{count:05d}.jsonl" for number in range(count)]


def read_rows(folder):
    """The rows of all chunks of a folder, in the order of the prompts, read as they are asked for."""
    for path in sorted(Path(folder).glob("*-of-*.jsonl")):
        with open(path, encoding="utf-8") as lines:
            yield from map(json.loads, lines)


def _score(samples, examples, rewards):
    scores = rewards.score(examples, [sample["text"] for sample in samples])
    for message in scores.messages:
        print(f"{message} The completion is not kept.", flush=True)
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


def _write_whole(path, rows):
    """The file is there as a whole or not at all."""
    fresh = path.with_suffix(".tmp")
    with open(fresh, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, path)
