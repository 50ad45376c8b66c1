"""Batches of GRPO's updates: completions as arrays on the mesh, in few shapes."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from numpy.typing import ArrayLike

from deepseek_jax.costs.flops import training_flops
from deepseek_jax.data.batches import abstract_batch
from deepseek_jax.errors import BrokenTerm
from deepseek_jax.losses.grpo import row_marks
from deepseek_jax.models.network_config import Network
from deepseek_jax.parallel.host_memory import zeros_by_page
from deepseek_jax.parallel.owned_rows import put_owned
from deepseek_jax.parallel.processes import from_owners
from deepseek_jax.parallel.shard import put_share
from deepseek_jax.reinforce.accounts import check_sampled
from deepseek_jax.reinforce.degenerate import all_equal
from deepseek_jax.reinforce.settings import ReinforceSettings
from deepseek_jax.rollout import kept
from deepseek_jax.rollout.completions import empty_rollout

# Lengths are rounded up to this times a power of two, so that there are few: an update compiles for
# each length, on a pod for minutes
BUCKET = 16
# The arrays of a batch's tokens, which a Rollout has under the same names
TOKENS = ("completion_ids", "completion_mask", "sampler_logprobs", "observed_mask")


class RowLengths(NamedTuple):
    """The lengths of all rows in a step's minibatches.

    Attributes:
        prompts: int[p], the tokens of each prompt.
        completions: int[b], the tokens of each completion, and what a conversation read in it. b /
            p adjacent ones have the same prompt.
        learned: int[b], the tokens of each completion that are learned.
        marks: float32[b], losses.grpo.row_marks of each completion.
    """

    prompts: np.ndarray
    completions: np.ndarray
    learned: np.ndarray
    marks: np.ndarray


def update_batches(
    groups: list[dict],
    advantages: ArrayLike,
    settings: ReinforceSettings,
    mesh: Mesh,
    step: int,
) -> tuple[list[dict], RowLengths]:
    """Build a step's minibatches on the mesh.

    Args:
        groups: as in group_batch.
        advantages: as in group_batch.

    Raises:
        BrokenTerm: as check_advantages and accounts.check_sampled do.
    """
    batch = step_batch(groups, advantages, settings, mesh)
    check_sampled(groups, batch)
    owners, lengths = owners_of(groups), row_lengths(groups, batch)
    temperature = settings.rollout.temperature_at(step)
    batches = minibatches(batch, lengths.learned, settings.minibatches, temperature)
    # The check reads the advantages from the minibatches, as the updates get them
    check_advantages(groups, np.concatenate([minibatch["advantages"] for minibatch in batches]))
    return put_completions(mesh, batches, owners), lengths


def owners_of(groups: list[dict]) -> np.ndarray | None:
    """Return the process that has each completion of groups, int[b]; None if every process has all."""
    records = [group["rollout"].owned for group in groups]
    return None if records[0] is None else np.concatenate([record.owners for record in records])


def row_lengths(groups: list[dict], batch: Mapping[str, np.ndarray]) -> RowLengths:
    """Return the lengths of a batch of groups."""
    owners = owners_of(groups)
    rewards, read_lengths, is_here = (
        np.concatenate(arrays)
        for arrays in zip(
            *((g["rewards"], g["rollout"].read_lengths, g["rollout"].is_here) for g in groups),
            strict=True,
        )
    )
    marks = np.zeros(len(is_here), np.float32)
    marks[is_here] = row_marks(batch["completion_ids"][is_here], batch["completion_mask"][is_here])
    (marks,) = from_owners(owners, marks)
    learned = learned_tokens(batch, owners)
    # A conversation without a reward is left out whole
    completions = learned + np.where(np.isnan(rewards), 0, read_lengths)
    return RowLengths(batch["prompt_mask"].sum(1), completions, learned, marks)


def learned_tokens(batch: Mapping[str, np.ndarray], owners: np.ndarray | None) -> np.ndarray:
    """Return the number of tokens of each completion that a batch learns: int32[b].

    Args:
        owners: from owners_of.
    """
    (learned,) = from_owners(owners, batch["completion_mask"].sum(1, dtype=np.int32))
    return learned


def put_completions(
    mesh: Mesh, batches: list[dict[str, np.ndarray]], owners: np.ndarray | None
) -> list[dict]:
    """Move batches of completions onto the mesh, from the processes that have their tokens.

    Args:
        batches: consecutive equal parts of a batch, numpy arrays.
        owners: from owners_of, for the whole batch.
    """
    if owners is None:
        return [put_share(mesh, batch) for batch in batches]
    mesh_batches = []
    for batch, batch_owners in zip(batches, np.split(owners, len(batches)), strict=True):
        token_arrays = {name: array for name, array in batch.items() if name in TOKENS}
        other_arrays = {name: array for name, array in batch.items() if name not in TOKENS}
        mesh_batches.append(
            put_share(mesh, other_arrays) | put_owned(mesh, token_arrays, batch_owners)
        )
    return mesh_batches


def step_batch(
    groups: list[dict], advantages: ArrayLike, settings: ReinforceSettings, mesh: Mesh
) -> dict[str, np.ndarray]:
    """Build the group_batch that the settings and the mesh need."""
    return group_batch(
        groups,
        advantages,
        shared=settings.shares_prompts(),
        multiple=row_multiple(mesh),
        kl_weights=settings.kl_weights,
        rows=settings.keeps(),
    )


def group_batch(
    groups: list[dict],
    advantages: ArrayLike,
    *,
    shared: bool = True,
    multiple: int = BUCKET,
    kl_weights: Mapping[str, float] | None = None,
    rows: bool = False,
) -> dict[str, np.ndarray]:
    """Build the batch that losses.grpo_loss takes, numpy arrays, from groups of groups.make_groups.

    Completions of a group are adjacent. Lengths are `multiple` times a power of two. A completion
    with a reward that failed (NaN) is masked out of the loss. If groups have `observed`, the tokens
    that conversations read, the batch has observed_mask.

    Args:
        advantages: float32[b], from losses.group_advantages.
        shared: whether a prompt stands once for its group; otherwise it stands once for each of its
            completions, see losses.completions.
        kl_weights: scenario -> kl_weight of its completions, 1 where a scenario is missing.
        rows: add prompt_rows int32[p] and completion_rows int32[b], the rows of the rollout from
            which they come.
    """
    rewards = np.concatenate([group["rewards"] for group in groups])
    group_size = len(rewards) // len(groups)
    batch = completion_batch(groups, shared=shared, multiple=multiple)
    for name in set(batch) & {"completion_mask", "observed_mask"}:
        # Other rows are not written, see _fitted
        batch[name][np.isnan(rewards)] = False
    batch["advantages"] = np.asarray(advantages)
    if rows:
        prompt_rows = np.array([group["row"] for group in groups], np.int32)
        batch["prompt_rows"] = np.repeat(prompt_rows, 1 if shared else group_size)
        batch["completion_rows"] = (
            prompt_rows[:, None] * group_size + np.arange(group_size)
        ).ravel()
    if kl_weights:
        group_weights = [kl_weights.get(group["scenario"], 1.0) for group in groups]
        batch["kl_weight"] = np.repeat(np.array(group_weights, np.float32), group_size)
    return batch | totals(batch["completion_mask"].sum(1))


def completion_batch(
    groups: list[dict], *, shared: bool = True, multiple: int = BUCKET
) -> dict[str, np.ndarray]:
    """Build the ids, masks and sampler_logprobs of groups, as group_batch has them."""
    rollouts = [group["rollout"] for group in groups]
    longest_completion = max((rollout.lengths + rollout.read_lengths).max() for rollout in rollouts)
    t = padded_length(longest_completion, multiple)
    # The columns of shared rows split over no devices: no need to exceed the longest completion allowed
    t = min(t, rollouts[0].completion_ids.shape[1]) if shared else t
    prompts = [group["prompt_ids"] for group in groups]
    prompt_length = padded_length(max(map(len, prompts)), multiple)
    prompt_ids = np.zeros((len(prompts), prompt_length), np.int32)
    for row, prompt in zip(prompt_ids, prompts, strict=True):
        row[: len(prompt)] = prompt
    prompt_lengths = np.array([[len(prompt)] for prompt in prompts])
    prompt_mask = np.arange(prompt_ids.shape[1]) < prompt_lengths
    repeats = 1 if shared else len(rollouts[0].truncated)
    return {
        "prompt_ids": np.repeat(prompt_ids, repeats, axis=0),
        "prompt_mask": np.repeat(prompt_mask, repeats, axis=0),
    } | {
        name: _fitted([(getattr(rollout, name), rollout.is_here) for rollout in rollouts], t)
        for name in TOKENS
        if getattr(rollouts[0], name) is not None
    }


def check_advantages(groups: list[dict], advantages: np.ndarray):
    """Check that each group's advantages follow from its rewards.

    Args:
        advantages: float32[b]; a group's are adjacent.

    Raises:
        BrokenTerm: for a group with advantages that are all 0 though its rewards differ, or that
            are not in the order of its rewards.
    """
    for group, group_advantages in zip(groups, np.split(advantages, len(groups)), strict=True):
        rewards = group["rewards"]
        if not group_advantages.any() and not all_equal(rewards):
            raise BrokenTerm(
                f"the rewards {rewards.tolist()} of a group differ, and all their advantages are 0: "
                "it would teach nothing; look at the size of the rewards"
            )
        # A completion that was not scored has the advantage 0 and no place in the order
        is_scored, order = ~np.isnan(rewards), np.argsort(rewards)
        order = order[is_scored[order]]
        reward_rises, advantage_rises = np.diff(rewards[order]), np.diff(group_advantages[order])
        if (
            group_advantages[~is_scored].any()
            or (advantage_rises < 0).any()
            or advantage_rises[reward_rises == 0].any()
        ):
            raise BrokenTerm(
                f"the rewards {rewards.tolist()} of a group and its advantages {group_advantages.tolist()} "
                "are not in the same order: it would learn from other rewards than its own"
            )


def minibatches(
    batch: Mapping[str, np.ndarray], learned: np.ndarray, num_parts: int, temperature: float
) -> list[dict]:
    """Cut a batch into minibatches.

    Each has the sampling temperature and its own totals: a minibatch is one update, and the totals
    are the divisors of its loss.

    Args:
        learned: int[b], from learned_tokens.
    """
    sampled_at = {"temperature": np.float32(temperature)}
    learned_shares = np.split(learned, num_parts)
    return [
        minibatch | totals(minibatch_learned) | sampled_at
        for minibatch, minibatch_learned in zip(
            split(batch, num_parts), learned_shares, strict=True
        )
    ]


def split(batch: Mapping[str, np.ndarray], num_parts: int) -> list[dict]:
    """Cut a batch into equal shares of consecutive prompts and completions: groups stay whole."""
    pieces_by_name = {
        name: np.split(array, num_parts) for name, array in batch.items() if array.ndim
    }
    return [
        {name: array_pieces[i] for name, array_pieces in pieces_by_name.items()}
        for i in range(num_parts)
    ]


def totals(learned: np.ndarray) -> dict:
    """Return the divisors of a batch's loss: num_tokens and num_completions, float32[].

    Args:
        learned: int[b], from learned_tokens.
    """
    return {
        "num_tokens": np.float32(learned.sum()),
        "num_completions": np.float32(np.count_nonzero(learned)),
    }


def longest_batch(settings: ReinforceSettings, config: Network, mesh: Mesh) -> dict:
    """Build the largest batch of an update as ShapeDtypeStructs with shardings: the longest groups.

    A plan compiles the update with it.
    """
    # Built from one completion, with its shapes repeated: a batch too large for any memory must be
    # refused by its shapes
    group = longest_group(settings, 1)
    if settings.most_turns():
        rollout = group["rollout"]
        group["rollout"] = rollout._replace(observed_mask=~rollout.completion_mask)
    single_batch = step_batch([group], np.zeros(1, np.float32), settings, mesh)
    (single_batch,) = minibatches(single_batch, learned_tokens(single_batch, None), 1, 1.0)
    num_prompts = settings.prompts_per_step // settings.minibatches

    def repeated(name, array):
        per_prompt = settings.shares_prompts() and name.startswith("prompt_")
        shape = (num_prompts if per_prompt else num_prompts * settings.group_size, *array.shape[1:])
        return jax.ShapeDtypeStruct(shape if array.shape else (), array.dtype)

    batch = {name: repeated(name, array) for name, array in single_batch.items()}
    logprobs = batch["completion_mask"].update(dtype=np.float32)
    if settings.keeps():
        batch = jax.eval_shape(with_kept, batch, one_kept(settings, config))
    batch |= dict.fromkeys(settings.scored(), logprobs) | {"sampled_by": np.uint32(0)}
    return abstract_batch(mesh, batch)


def longest_group(settings, completions: int | None = None) -> dict:
    """Build a group as groups.make_groups does, with the longest prompt and completions allowed.

    Args:
        settings: has rollout and group_size.
        completions: the number of completions, by default group_size.
    """
    count, length = completions or settings.group_size, settings.rollout.longest()
    rollout = empty_rollout(count, length)
    rollout.completion_mask[:] = True
    return {
        "prompt_ids": [0] * settings.rollout.max_prompt_length,
        "row": 0,
        "rollout": rollout,
        "rewards": np.zeros(count, np.float32),
        "scenario": "reasoning",
    }


def one_kept(settings: ReinforceSettings, config: Network) -> kept.TokenChoices:
    """Build the choices of one row of one token, as ShapeDtypeStructs."""

    def choices():
        experts = candidates = None
        if settings.keep_routing:
            token_shape = config.num_moe_layers, config.experts.num_experts_per_tok
            experts = jnp.zeros((1, 1, *token_shape), kept.DTYPE)
        if settings.rollout.truncates():
            candidates = jnp.zeros((1, 1, settings.rollout.top_k), jnp.int32)
        return kept.TokenChoices(experts, experts, candidates)

    return jax.eval_shape(choices)


def with_kept(batch: Mapping[str, jax.Array], choices: kept.TokenChoices) -> dict[str, jax.Array]:
    """Add to a batch what the rollout kept of its rows, in place of the rows' numbers."""
    rows = batch["prompt_rows"], batch["completion_rows"]
    lengths = batch["prompt_ids"].shape[1], batch["completion_ids"].shape[1]
    other_arrays = {name: x for name, x in batch.items() if not name.endswith("_rows")}
    return other_arrays | kept.rows_of(choices, *rows, *lengths)


def update_flops(
    config: Network, prompts: ArrayLike, completions: ArrayLike, frozen: bool = False
) -> float:
    """Return the FLOPs that an update of these rows needs. Each prompt counts once.

    Args:
        prompts: int[p], the tokens of each prompt.
        completions: int[b], the tokens of each completion; b / p adjacent ones have the same
            prompt.
        frozen: see costs.flops.training_flops.
    """
    prompts, completions = (np.asarray(lengths, np.float64) for lengths in (prompts, completions))
    prompt_lengths = np.repeat(prompts, len(completions) // len(prompts))
    # A token's FLOPs are linear in the keys that it sees. On average these are half of the prompt
    # for a prompt's token, and the prompt and half of the completion for a completion's token
    keys = (completions * (prompt_lengths + completions / 2)).sum() + (prompts**2 / 2).sum()
    tokens = completions.sum() + prompts.sum()
    # There are as many logits as tokens of completions: the prompt's last token predicts the first
    # token of each completion
    logits = completions.sum() / tokens
    return tokens * training_flops(config, keys / tokens, frozen=frozen, logits=logits)


def step_flops(
    settings: ReinforceSettings, config: Network, lengths: RowLengths, frozen: bool
) -> float:
    """Return the FLOPs that a step needs: its updates, and the log-probabilities before them.

    These log-probabilities are the old policy's and the reference's.

    Args:
        frozen: as in update_flops.
    """
    rows = lengths.prompts, lengths.completions
    flops_of_update = update_flops(config, *rows, frozen=frozen)
    # A forward pass is a third of an update of all weights
    flops_of_score = update_flops(config, *rows) / 3
    return settings.epochs * flops_of_update + len(settings.scored()) * flops_of_score


def _fitted(arrays, t):
    """Join arrays along the first axis, cut or padded to t columns. The cut is padding.

    Args:
        arrays: pairs of an array [i t], and bool[i], which of its rows are here. The other rows
            stay 0 and are not written, so that they take no memory.
    """
    zeros = np.zeros if all(is_here.all() for _, is_here in arrays) else zeros_by_page
    joined = zeros((sum(len(array) for array, _ in arrays), t), arrays[0][0].dtype)
    first_row = 0
    for array, is_here in arrays:
        joined[first_row : first_row + len(array)][is_here, : array.shape[1]] = array[is_here, :t]
        first_row += len(array)
    return joined


def row_multiple(mesh: Mesh) -> int:
    """Return the number that the lengths of an update's rows are multiples of."""
    # A row's tokens split over the devices of its context
    return BUCKET * mesh.shape["context"]


def padded_length(length: int, multiple: int = BUCKET) -> int:
    """Round a length up to `multiple` times a power of two."""
    return multiple << (-(-int(length) // multiple) - 1).bit_length()
