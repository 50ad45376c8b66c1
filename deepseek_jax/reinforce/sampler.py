"""Sampling of a step's completions with the policy that learns from them."""

import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

from deepseek_jax.costs.program import GENERATION, SYNC
from deepseek_jax.files import remove_folder
from deepseek_jax.ops.fingerprint import fingerprint
from deepseek_jax.parallel.processes import first_process
from deepseek_jax.rollout.answers import Answers
from deepseek_jax.rollout.completions import MeasuredLog, RolloutLog
from deepseek_jax.rollout.kept import TokenChoices
from deepseek_jax.rollout.policy import Policy
from deepseek_jax.rollout.requests import prompt_room
from deepseek_jax.rollout.sample_log import SampleLog
from deepseek_jax.rollout.settings import AnswerOptions
from deepseek_jax.trees import PyTree

# A rollout that ends sooner writes no file
SECONDS_BETWEEN_WRITES = 60


def named(name: str) -> Callable[[Callable], Callable]:
    """Return a decorator that names a function's work in a trace, see training.profile."""
    return functools.partial(jax.profiler.annotate_function, name=name)


class Sampler:
    """A sampler of a step's completions, which uses the params of the loop's state.

    Args:
        policy: its own params are not read.
        settings: has seed, rollout, group_size and keep_routing.
        folder: takes the completions of long rollouts as they end, so that a run that is killed in
            a rollout resumes in it.

    Attributes:
        sampled_by: the fingerprint of the parameters that sampled last; 0 for unknown.
        kept: what the latest rollout kept of its tokens, if anything.
    """

    def __init__(self, policy: Policy, settings, folder: Path | None):
        self.policy, self.settings, self.folder = policy, settings, folder
        self.fingerprint = jax.jit(fingerprint)
        self.sampled_by = 0
        self.token_choices: TokenChoices | None = None

    def answer(
        self, params: PyTree, examples: Sequence[dict], step: int, number: int = 0
    ) -> tuple[Answers, dict[str, float]]:
        """Sample the answers to examples in one sampling round of a step.

        If a run was killed in this round, the sampling continues where it was.

        Args:
            number: the number of the round.

        Returns:
            (Answers, counts). The counts are summed over the step's rounds; metrics.StepRecord has
            their names and meanings.
        """
        policy, settings = self.policy.with_params(params), self.settings
        self.sampled_by = int(self.fingerprint(policy.params))
        log = self._log(step, number)
        log.keeps_routing = settings.keep_routing
        log.keeps_candidates = settings.rollout.truncates()
        log.own_rows = True
        # The seed depends only on the run's seed, the step and the round, so that a resumed run
        # samples what an uninterrupted one samples
        entropy = np.random.SeedSequence([settings.seed, step, number])
        began = time.perf_counter()
        with jax.profiler.TraceAnnotation("generation"):
            answers = policy.answer(
                examples,
                settings.rollout.at(step),
                n=settings.group_size,
                seed=int(entropy.generate_state(1)[0] >> 1),
                log=log,
                longest_prompt=settings.rollout.max_prompt_length,
            )
        seconds, self.token_choices = time.perf_counter() - began, log.token_choices
        # Write the rest of a long rollout, in case the run is killed in the update
        if isinstance(log, SampleLog) and log.path.exists():
            log.write()
        longest = max(map(len, answers.prompts))
        return answers, {
            SYNC: log.weight_sync_seconds,
            GENERATION: seconds - log.weight_sync_seconds,
            "exchanges": log.exchanges,
            "exchange_rounds": log.exchange_rounds,
            "sampled_tokens": answers.rollout.lengths.sum(),
            "prefilled_positions": len(examples) * prompt_room(longest),
        }

    def answer_greedily(self, params: PyTree, examples: Sequence[dict]) -> Answers:
        """Return one greedy answer to each example, of up to the longest length of any step.

        It changes nothing that a later `answer` depends on. A run that is asked to stop ends in it,
        once some answers have ended.
        """
        rollout = self.settings.rollout
        options = AnswerOptions(
            max_completion_length=rollout.longest(), temperature=0.0, slots=rollout.slots
        )
        return self.policy.with_params(params).answer(
            examples,
            options,
            # Environments may draw by it
            seed=self.settings.seed,
            log=MeasuredLog(),
            longest_prompt=rollout.max_prompt_length,
        )

    def forget(self):
        """Remove the files of long rollouts, which nothing needs after a checkpoint."""
        if self.folder is not None and first_process():
            remove_folder(self.folder)

    def _log(self, step: int, number: int) -> RolloutLog:
        """Return the log that writes a round's completions to a file as they end.

        Every process writes its own completions, and reads the ones of all. It writes nothing
        without a folder, or where an update needs the candidates of tokens: these are only on the
        devices.
        """
        if self.folder is None or self.settings.rollout.truncates():
            return RolloutLog()
        # The name has the parameters' fingerprint: a run that resumes after a change must not use
        # completions of other parameters
        name = f"{step}_{number}_{self.sampled_by:08x}"
        path = self.folder / f"{name}_{jax.process_index()}.jsonl"
        earlier = self.folder.glob(f"{name}_*.jsonl")
        others = sorted(other for other in earlier if other != path)
        return SampleLog(path, earlier=others, every=SECONDS_BETWEEN_WRITES)
