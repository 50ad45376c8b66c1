"""Rollout, the completions of a rollout, and RolloutLog, which receives them as they end."""

import types
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import numpy as np
from typing_extensions import override

from deepseek_jax.data.texts import LazyTexts
from deepseek_jax.parallel.host_memory import zeros_by_page
from deepseek_jax.rollout.kept import TokenChoices
from deepseek_jax.training.run import leave_if_asked


class Ownership(NamedTuple):
    """Numbers of all completions, on every process, where each process has only its own tokens.

    Attributes:
        owners: int32[b], the process that has each completion's tokens.
        lengths: int32[b], the tokens that were sampled.
        read_lengths: int32[b], the tokens that a conversation read.
        last_ids: int32[b], the token that was sampled last.
    """

    owners: np.ndarray
    lengths: np.ndarray
    read_lengths: np.ndarray
    last_ids: np.ndarray


class Rollout(NamedTuple):
    """Completions of prompts, as numpy arrays with n adjacent rows for each prompt.

    Where processes own rows (see RolloutLog.own_rows), the arrays of tokens [b t] are 0 and False
    in the rows of other processes, and these rows take no memory.

    Attributes:
        completion_ids: int32[b t], 0 after the end.
        completion_mask: bool[b t], True on sampled tokens, including the end token.
        sampler_logprobs: float32[b t], in nats; 0 on tokens that were not sampled.
        truncated: bool[b], True for a completion without an end token, and for a conversation that
            a limit ended.
        drafted: int32[b], the number of tokens that speculative decoding drafted.
        accepted: int32[b], the number of drafted tokens that were accepted.
        observed_mask: bool[b t], True on tokens of a conversation that the model read. None if
            completions are single turns.
        owned: An Ownership. None if this process has the tokens of all rows.
    """

    completion_ids: np.ndarray
    completion_mask: np.ndarray
    sampler_logprobs: np.ndarray
    truncated: np.ndarray
    drafted: np.ndarray | None = None
    accepted: np.ndarray | None = None
    observed_mask: np.ndarray | None = None
    owned: Ownership | None = None

    @property
    def lengths(self) -> np.ndarray:
        """The number of tokens that were sampled for each completion: int[b]."""
        return self.completion_mask.sum(1) if self.owned is None else self.owned.lengths

    @property
    def read_lengths(self) -> np.ndarray:
        """The number of tokens that each conversation read: int[b]."""
        if self.owned is not None:
            return self.owned.read_lengths
        observed = self.observed_mask
        return np.zeros(len(self.truncated), int) if observed is None else observed.sum(1)

    @property
    def last_ids(self) -> np.ndarray:
        """The token that was sampled last for each completion, int[b]; any id without tokens."""
        if self.owned is not None:
            return self.owned.last_ids
        # Found from the end: conversations have tokens before it that the model did not sample
        last_places = self.completion_mask.shape[1] - 1 - self.completion_mask[:, ::-1].argmax(1)
        return self.completion_ids[np.arange(len(last_places)), last_places]

    @property
    def is_here(self) -> np.ndarray:
        """Whether this process has the tokens of each completion: bool[b]."""
        if self.owned is None:
            return np.ones(len(self.truncated), bool)
        return self.owned.owners == jax.process_index()

    def part(self, rows: slice) -> "Rollout":
        """Return the Rollout of some rows, which shares its arrays with this one."""
        arrays = self._replace(owned=None)._asdict()
        parts = {name: array[rows] for name, array in arrays.items() if array is not None}
        owned = None if self.owned is None else Ownership(*(array[rows] for array in self.owned))
        return self._replace(**parts, owned=owned)

    def tokens(self) -> LazyTexts:
        """Return each completion's ids, as LazyTexts of lists of int.

        They include what a conversation read. Each list is computed when it is read.
        """
        return LazyTexts(self.ids_of, range(len(self.completion_ids)))

    def ids_of(self, row: int) -> list[int]:
        """Return the ids of one completion, including what it read, as a list of int.

        Raises:
            LookupError: Another process has them.
        """
        if self.owned is not None and self.owned.owners[row] != jax.process_index():
            raise LookupError(
                f"process {self.owned.owners[row]} has the tokens of completion {row}"
            )
        return self.completion_ids[row][self.present(row)].tolist()

    def present(self, rows: int | slice | np.ndarray) -> np.ndarray:
        """Return where the completions of these rows have tokens, sampled or read: bool[... t]."""
        mask = self.completion_mask[rows]
        return mask if self.observed_mask is None else mask | self.observed_mask[rows]

    @property
    def acceptance_rate(self) -> float:
        """The share of drafted tokens that were accepted; NaN if no token was drafted."""
        return _ratio(_total(self.accepted), _total(self.drafted))

    @property
    def tokens_per_step(self) -> float:
        """The tokens that a completion gains in one step of the model; NaN if no token was drafted.

        A step drafts one token, so the number of drafted tokens is the number of steps. The first
        token does not count: it is sampled from the prompt's logits.
        """
        return _ratio((self.lengths - 1).sum(), _total(self.drafted))


def _total(counts: np.ndarray | None) -> int:
    return 0 if counts is None else counts.sum()


def _ratio(numerator, denominator):
    return float(numerator / denominator) if denominator else float("nan")


class RolloutLog:
    """Base class of a rollout's logs, which store completions so that a later call can reuse them.

    This class stores nothing and has no completions of earlier calls.

    Attributes:
        done: {row: {"ids", "logprobs", "finished", ...}}, the completions that ended in earlier
            calls. They are not sampled again.
        conversations: A conversations.Conversations, which answers the turns; None for single
            turns.
        weight_sync_seconds: The rollout sets it: the time to bring the parameters into the form for
            decoding.
        exchanges: The rollout sets it: how often a layer's tokens were sent to their experts by
            parallel.round_trip; 0 if they go in another way.
        exchange_rounds: The rollout sets it: the number of rounds (parallel.round_trip) of all
            these exchanges, the mean over devices; 0 if tokens go in another way.
        keeps_routing: True if the rollout keeps the experts of its tokens.
        keeps_candidates: True if the rollout keeps, for each token, the tokens that top-p and top-k
            left to draw it from.
        token_choices: The rollout sets it if it keeps anything: a kept.TokenChoices.
        own_rows: True if a process receives only the tokens that its own devices sampled, and owns
            their completions. A single process receives all in either case.
    """

    done: Mapping[int, dict] = types.MappingProxyType({})
    conversations = None
    weight_sync_seconds, exchanges, exchange_rounds = 0.0, 0, 0.0
    keeps_routing = keeps_candidates = own_rows = False
    token_choices: TokenChoices | None = None

    def turn_length(self) -> int | None:
        """Return the most tokens of a conversation's turn.

        It is None if only the length of the completion limits a turn.
        """
        return None if self.conversations is None else self.conversations.use.limits.turn_length

    def add(self, rows: np.ndarray, rollout: Rollout):
        """Receive the rows that have just ended.

        Args:
            rows: int[e], the numbers of those that this process has.
            rollout: The Rollout as it is now; rows that have not ended are empty.
        """


class MeasuredLog(RolloutLog):
    """Log of a measurement: when completions end, it leaves the run if that was asked to stop."""

    @override
    def add(self, rows: np.ndarray, rollout: Rollout):
        leave_if_asked("the measurement")


def empty_rollout(
    rows: int, length: int, converses: bool = False, own_rows: bool = False
) -> Rollout:
    """Create a Rollout without any sampled token.

    Args:
        rows: The number of completions.
        length: The most tokens of a completion.
        converses: True if completions are conversations.
        own_rows: See RolloutLog.
    """
    shape, owned = (rows, length), None
    zeros: Callable[..., np.ndarray] = np.zeros
    if own_rows and jax.process_count() > 1:
        owned = Ownership(*(np.zeros(rows, np.int32) for _ in Ownership._fields))
        zeros = zeros_by_page
    return Rollout(
        completion_ids=zeros(shape, np.int32),
        completion_mask=zeros(shape, bool),
        sampler_logprobs=zeros(shape, np.float32),
        truncated=np.zeros(rows, bool),
        drafted=np.zeros(rows, np.int32),
        accepted=np.zeros(rows, np.int32),
        observed_mask=zeros(shape, bool) if converses else None,
        owned=owned,
    )


def fill(rollout: Rollout, log: RolloutLog):
    """Copy a log's completions of earlier calls into their rows of a rollout, in place.

    These rows must be empty. Where processes own rows, they divide them among themselves.
    """
    for row, line in log.done.items():
        ids = line["ids"]
        if rollout.owned is not None and not _divide(rollout, row, line):
            continue
        rollout.completion_ids[row, : len(ids)] = ids
        rollout.completion_mask[row, : len(ids)] = True
        # JSON's numbers are float64, which represents every float32 exactly
        rollout.sampler_logprobs[row, : len(ids)] = np.float32(line["logprobs"])
        rollout.truncated[row] = not line["finished"]
        if rollout.observed_mask is not None:
            rollout.observed_mask[row, : len(ids)] = line["observed"]
            rollout.completion_mask[row] &= ~rollout.observed_mask[row]


def _divide(rollout, row, line):
    """Note what all processes know of a row from its line; return whether this process owns it."""
    observed = np.asarray(line.get("observed", np.zeros(len(line["ids"]))), bool)
    owned, sampled_ids = rollout.owned, np.asarray(line["ids"])[~observed]
    owned.owners[row] = row % jax.process_count()
    owned.lengths[row], owned.read_lengths[row] = len(sampled_ids), observed.sum()
    owned.last_ids[row] = sampled_ids[-1] if len(sampled_ids) else 0
    rollout.truncated[row] = not line["finished"]
    return owned.owners[row] == jax.process_index()
