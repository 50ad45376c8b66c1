"""Known faults: plant each again, and print the test that catches it.

    python -m tests.mutants.known                   # all but those whose only test is slow
    python -m tests.mutants.known --slow            # those, too
    python -m tests.mutants.known --only="batch"    # those with this text in their name

ROWS has every fault of the table in tests/reliability/README.md: what names the fault is switched off, or the
wrong computation is planted. HISTORY has defects that this project has had, and their like. Ends with 1 where
a fault is not caught.
"""

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

from tests.mutants import trial
from tests.mutants.reached import PACKAGE
from tests.mutants.trial import ROOT
from tests.reliability.conftest import KINDS, README, ROW


class Known(NamedTuple):
    """A fault. path: of its file, from deepseek_jax. old: a text that the file has once; new: in its place.
    tests: as of trial.Stage; () for the test that has the row's name, beside which a slow one may have a
    default one here. slow: these are slow tests.
    """

    name: str
    path: str
    old: str
    new: str = "if False:"
    tests: tuple[str, ...] = ()
    slow: bool = False

    def planted(self) -> trial.Trial:
        """Raises ValueError where the file does not have `old` once."""
        planted = trial.replaced(self.path, self.old, self.new)
        tests = list(self.tests) or [id_of_row(self.name)]
        stage = trial.Stage("own", tests, "slow" if self.slow else "not slow and not pod")
        return trial.Trial(f"{PACKAGE.name}/{self.path}", planted, [stage])


def id_of_row(row: str) -> str:
    """The id of the test whose name a row of the table has."""
    name = f"test_{row.replace(' ', '_')}"
    for file in map(README.with_name, KINDS):
        if f"def {name}(" in file.read_text():
            return f"{file.relative_to(ROOT)}::{name}"
    raise ValueError(f"no file of {README.parent} has {name}")


FAULTS, STEPS = "tests/reliability/test_silent_faults.py", "tests/reinforce/test_grpo.py"
LOCATED = f"{FAULTS}::test_a_loss_that_overflows_is_located"
ENDED = f"{STEPS}::test_a_step_of_rewards_that_teach_nothing_is_ended"
NO_GRADIENT = "elif self.learning >= self.lines or (last and self.learning):"
MOVED_NOTHING = "if self.updates - self.warm_up >= self.lines:"
RECORD = "if conversation.number != number or paid_by not in (None, number):"
PLACES = "if abs(marked_sum - expected_sum) > MARKS_ROUNDING * (np.abs(advantages) @ marks):"
KL_OF_ZERO = 'if line.get("kl") == 0 and self.source.has_moved:'
DEPTH = "(depths < depth).reshape("

ROWS = (
    Known("each kind of fault has its own exit status", "errors.py", "status = 5", "status = 6"),
    Known(
        "no number of any config may be nan or infinite",
        "settings.py",
        "return above_low and below_high and math.isfinite(number)",
        "return above_low and below_high",
    ),
    Known(
        "a value that trains nothing is refused",
        "settings.py",
        "Positive = Annotated[float, Between(0, open_low=True)]",
        "Positive = Annotated[float, Between(0)]",
    ),
    Known(
        "phases without a rate are refused",
        "training/optimizer.py",
        "if self.phases and all(phase.to == 0 for phase in self.phases):",
    ),
    Known(
        "parameters that an update breaks are never saved",
        "training/loop.py",
        "check_params(state, done - 1, log.phase)",
        "",
    ),
    Known(
        "skipped updates in a row are counted across resumes",
        "training/loop.py",
        "log.streak = skipped",
        "log.streak = 0",
    ),
    Known(
        "a loss that overflows is located",
        "training/nonfinite.py",
        DEPTH,
        "(depths <= depth).reshape(",
    ),
    Known(
        "a gradient that overflows is located",
        "training/nonfinite.py",
        "return _broken(flags)[-1]",
        "return _broken(flags)[0]",
    ),
    Known(
        "parameters that are not finite are named",
        "training/nonfinite.py",
        "group = broken_group(state.params)",
        "group = None",
    ),
    Known(
        "a term that stays zero is named",
        "training/watch.py",
        "if self.zeros[name] >= self.lines or last:",
    ),
    Known(
        "a loss mask of zeros ends the run",
        "training/log.py",
        "if self.without_tokens >= self.faults.idle_lines:",
    ),
    Known(
        "an adapter without a gradient is named", "training/watch.py", NO_GRADIENT, "elif False:"
    ),
    Known(
        "no gradient at all is named",
        "training/loop.py",
        '"grad_norm": "no trained parameter changes the loss; look at the data and at the adapter",',
        "",
    ),
    Known("a kl of zero is named once the policy has moved", "reinforce/idle.py", KL_OF_ZERO),
    Known(
        "rewards that differ and move nothing are named",
        "reinforce/idle.py",
        'if line["grad_norm"] == 0 and line["all_equal_share"] < 1:',
    ),
    Known(
        "a reference unlike the policy is named at the first update",
        "reinforce/idle.py",
        'if settings.loss.kl_coef and float(metrics["kl"]) > largest:',
    ),
    Known(
        "advantages of zero for rewards that differ are named",
        "reinforce/batch.py",
        "if not group_advantages.any() and not all_equal(rewards):",
    ),
    Known(
        "rewards whose advantages would overflow are refused",
        "reinforce/degenerate.py",
        "large_rewards = values[np.abs(values) > LARGEST_REWARD]",
        "large_rewards = values[:0]",
    ),
    Known(
        "steps without anything to learn are said and then end the run",
        "reinforce/degenerate.py",
        "if limit is not None and count >= limit:",
    ),
    Known(
        "a run on a full or closed disk is one message and goes on where there is room",
        "recipes/owner.py",
        "    except ValueError:\n        raise\n",
        "    except (ValueError, OSError):\n        raise\n",
        slow=True,
    ),
    Known(
        "two processes locate the same",
        "training/nonfinite.py",
        "x.sharding.devices_indices_map(x.shape)",
        "x.sharding.addressable_devices_indices_map(x.shape)",
        slow=True,
    ),
    Known(
        "a batch that is not finite is named",
        "training/nonfinite.py",
        "if bad_values := _given(micro, is_finite):",
        'if bad_values := "":',
    ),
    Known(
        "a layer of a model that overflows is located",
        "training/nonfinite.py",
        "low, high = 0, most\n",
        "low, high = 0, 0\n",
        tests=(LOCATED,),
    ),
    Known(
        "a balance loss without a gradient is named",
        "recipes/kinds/pretrain.py",
        "check_terms({field: stage.balance_weight}, {field: value}, {field: norm})",
        "check_terms({field: stage.balance_weight}, {field: value}, {field: value})",
        slow=True,
    ),
    Known(
        "a prediction module without a gradient is named",
        "recipes/kinds/pretrain.py",
        'untrained=() if trains_mtp else ("mtp_",),',
        'untrained=("mtp_",),',
    ),
    Known(
        "a run whose kl is zero is ended",
        "reinforce/groups.py",
        "return self.referred is not None and self.referred != self.sampler.sampled_by",
        "return False",
        tests=(f"{STEPS}::test_a_source_knows_whether_the_policy_has_moved_from_its_reference",),
    ),
    Known(
        "a run with another models reference is ended at its first update",
        "training/loop.py",
        "log.checks.after_first(metrics)",
        "pass",
        tests=(
            "tests/training/test_loop.py::"
            "test_the_first_update_of_a_phase_is_looked_at_before_and_after",
        ),
    ),
    Known(
        "a run of equal rewards is ended at its limit",
        "reinforce/groups.py",
        "self.degenerate.look(step, sampled_groups)",
        "",
        tests=(ENDED,),
    ),
    Known(
        "a run of unusable rewards ends with six",
        "reinforce/groups.py",
        "check_range(scores)",
        "",
        tests=(ENDED,),
    ),
    Known(
        "a run goes on from the checkpoint before and a strict one ends with seven",
        "checkpoint/store.py",
        "if self.strict:",
        tests=(
            "tests/checkpoint/test_store.py::test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used",
        ),
    ),
    Known(
        "a stack of experts without a gradient is named",
        "training/watch.py",
        "elif not moved.all():",
        "elif False:",
    ),
    Known(
        "a parameter may begin to learn within the first lines",
        "training/watch.py",
        NO_GRADIENT,
        "elif self.learning:",
    ),
    Known(
        "weights that no update moves are said and end the run", "training/watch.py", MOVED_NOTHING
    ),
    Known(
        "weights may stand still until the warm up is over",
        "training/watch.py",
        MOVED_NOTHING,
        "if self.updates >= self.lines:",
    ),
    Known(
        "a loss without some tokens of the step is named",
        "reinforce/idle.py",
        'if not math.isclose(learned_tokens, line["tokens"], rel_tol=1e-6):',
    ),
    Known(
        "advantages in another order than the rewards are named",
        "reinforce/batch.py",
        "if (\n"
        "            group_advantages[~is_scored].any()\n"
        "            or (advantage_rises < 0).any()\n"
        "            or advantage_rises[reward_rises == 0].any()\n"
        "        ):",
    ),
    Known(
        "every sampled token is learned or counted as left out",
        "reinforce/accounts.py",
        "if learned != answered - left_out:",
    ),
    Known(
        "questions that are asked again in their epoch are not new",
        "reinforce/accounts.py",
        "if num_asked and not new:",
    ),
    Known(
        "a constant reward is said and odd ends end the run",
        "reinforce/degenerate.py",
        'FIXED = {"odd_ends": FIRST_SAID,',
        'FIXED = {"odd_ends": None,',
    ),
    Known(
        "a run with a fault planted in its batches is ended",
        "reinforce/batch.py",
        'check_advantages(groups, np.concatenate([minibatch["advantages"] for minibatch in batches]))',
        "",
        tests=(f"{STEPS}::test_a_fault_in_a_steps_batches_is_named",),
    ),
    Known(
        "a run whose rate moves no weight is ended",
        "training/loop.py",
        "if not first_step:",
        tests=(f"{FAULTS}::test_weights_that_no_update_moves_are_said_and_end_the_run",),
    ),
    Known(
        "a run whose reference is not finite names it",
        "training/nonfinite.py",
        "if bad_values := _given(micro, is_finite):",
        'if bad_values := "":',
        tests=(f"{FAULTS}::test_a_batch_that_is_not_finite_is_named",),
    ),
    Known(
        "a run whose log probabilities are not finite names the micro batch",
        "training/nonfinite.py",
        "micro = {name: x[index] for name, x in rows.items()}",
        "micro = {name: x[0] for name, x in rows.items()}",
        tests=(LOCATED,),
    ),
    Known(
        "rewards stay with their completions",
        "reinforce/groups.py",
        'group["rewards"] = scores.total[rows]',
        'group["rewards"] = np.roll(scores.total[rows], 1)',
        tests=(f"{STEPS}::test_a_batch_holds_the_rollout_as_it_was_sampled",),
    ),
    Known(
        "a first turn that is masked out as read is named",
        "reinforce/accounts.py",
        "if digest_of(learned_ids) != conversation.digest:",
    ),
    Known(
        "replies of another slot are named",
        "reinforce/accounts.py",
        "if read_ids != tools.read_ids(conversation.messages):",
    ),
    Known(
        "a limit of turns that is ignored is named",
        "reinforce/accounts.py",
        "if turns > tools.limits.turns:",
    ),
    Known("a reward of another environment is named", "reinforce/accounts.py", RECORD),
    Known("a reward that comes one conversation late is named", "reinforce/accounts.py", RECORD),
    Known("records that go to the next conversation are named", "reinforce/accounts.py", RECORD),
    Known(
        "rewards that go to the next conversation are named",
        "reinforce/accounts.py",
        "if group_rewards[place] != np.float32(conversation.reward):",
    ),
    Known("advantages in the rows of others are named", "reinforce/idle.py", PLACES),
    Known(
        "each micro batch gives its part of the gradient",
        "training/micro_batches.py",
        "lambda t, g: t + g.astype(jnp.float32)",
        "lambda t, g: g.astype(jnp.float32)",
    ),
    Known(
        "questions that accuracy is measured on are not learned",
        "data/tasks.py",
        "train = [example for example in task.train if key(example) not in held_out]",
        "train = list(task.train)",
    ),
    Known("a run whose advantages lie on other devices is ended", "reinforce/idle.py", PLACES),
)

HISTORY = (
    Known(
        "a micro-batch of texts divides by its own tokens",
        "losses/next_token.py",
        'weight_bt * x_bt, 0.0).sum() / batch["normalizer"]',
        'weight_bt * x_bt, 0.0).sum() / batch["loss_mask"].sum()',
        ("tests/losses/test_next_token.py",),
    ),
    Known(
        "a micro-batch of completions divides by its own tokens",
        "losses/grpo.py",
        'return loss_bt.sum() / jnp.maximum(batch["num_tokens"], 1)',
        "return loss_bt.sum() / jnp.maximum(mask_bt.sum(), 1)",
        ("tests/losses/test_grpo.py",),
    ),
    Known(
        "a micro-batch of pairs divides by its own weights",
        "losses/preference.py",
        "loss = (weights * jax.nn.softplus(-margin_p)).sum() / normalizer",
        "loss = (weights * jax.nn.softplus(-margin_p)).sum() / weights.sum()",
        ("tests/losses/test_preference.py",),
    ),
    Known(
        "a micro-batch of judged responses divides by its own weights",
        "losses/preference.py",
        "loss = (weights * nats_b).sum() / normalizer",
        "loss = (weights * nats_b).sum() / weights.sum()",
        ("tests/losses/test_preference.py",),
    ),
    Known(
        "a micro-batch of a distillation divides by its own targets",
        "distill/objective.py",
        'return weight_bt / jnp.where(batch["normalizer"] > 0, batch["normalizer"], 1)',
        "return weight_bt / jnp.maximum(weight_bt.sum(), 1)",
        ("tests/distill/test_objective.py",),
    ),
    Known(
        "a micro-batch of several teachers divides by its own tokens",
        "distill/taught.py",
        'share_bt = batch["completion_mask"] / jnp.maximum(batch["num_tokens"], 1)',
        'share_bt = batch["completion_mask"] / jnp.maximum(batch["completion_mask"].sum(), 1)',
        ("tests/distill/test_taught.py",),
    ),
    Known(
        "a distillation learns the questions that it is measured on",
        "data/sources.py",
        "held_out_keys = {key(record) for record in _each(held_out)} | set(measured)",
        "held_out_keys = {key(record) for record in _each(held_out)}",
        ("tests/data/test_sources.py",),
    ),
    Known(
        "what a loss does not train has decay and momentum",
        "models/layers.py",
        "return keys[-1] not in UNTRAINED and not any(\n"
        "        is_of_part(key) for is_of_part in untrained_parts for key in keys\n"
        "    )",
        "return keys[-1] not in UNTRAINED",
        ("tests/training/test_untrained.py",),
    ),
    Known(
        "Muon corrects the bias of its momentum and of the gradient apart",
        "training/muon.py",
        "        optax.trace(momentum, nesterov=True, accumulator_dtype=moment_dtype),\n",
        # Coefficients that orthogonalise nothing: the direction's own do it
        "        optax.contrib.scale_by_muon(\n"
        "            ns_coeffs=((1.0, 0.0, 0.0),),\n"
        "            beta=momentum,\n"
        "            mu_dtype=moment_dtype,\n"
        "            weight_dimension_numbers=lambda params: jax.tree.map_with_path(_matrix, params),\n"
        "        ),\n",
        ("tests/training/test_muon.py",),
    ),
    Known(
        "a rollout of latent attention needs q_lora_rank",
        "models/mla.py",
        "cfg.q_lora_rank or 0",
        "cfg.q_lora_rank",
        ("tests/rollout/test_architectures.py",),
    ),
    Known(
        "a number alone on the last line is no answer",
        "rewards/quantity.py",
        "    if not places:\n        return None\n    return _quantity(tokens, places[-1]",
        "    if not places or len(tokens) == 1:\n        return None\n"
        "    return _quantity(tokens, places[-1]",
        ("tests/rewards/test_answer.py",),
    ),
    # Not by a conversion there and back, which the compiler may leave out
    Known(
        "linear layers round float32 operands to bfloat16",
        "models/layers.py",
        "spec, x, w, config.dtype)",
        "spec, jax.lax.reduce_precision(x, 8, 7), w, config.dtype)",
        ("tests/models/test_parity.py",),
    ),
    Known(
        "linear layers of a rollout on a mesh round float32 operands to bfloat16",
        "models/layers.py",
        "return dot(spec, x, w)",
        "return dot(spec, jax.lax.reduce_precision(x, 8, 7), w)",
        ("tests/rollout/test_mesh.py",),
    ),
    Known(
        "attention rounds float32 operands to bfloat16",
        "ops/attention.py",
        '    scores_bkms = dot("bkmx,bksx->bkms", _by_key_head(q, g), k_bksx, jnp.float32) * scale\n',
        "    q_bkmx = jax.lax.reduce_precision(_by_key_head(q, g), 8, 7)\n"
        '    scores_bkms = dot("bkmx,bksx->bkms", q_bkmx, k_bksx, jnp.float32) * scale\n',
        ("tests/ops/test_attention.py",),
    ),
    Known(
        "every product rounds float32 operands to bfloat16",
        "ops/dot.py",
        'return choose("einsum", plain=_einsum, matrices=cpu.einsum)(spec, left, right)',
        "left = jax.lax.reduce_precision(left, 8, 7)\n"
        '    return choose("einsum", plain=_einsum, matrices=cpu.einsum)(spec, left, right)',
        ("tests/ops/test_dot.py",),
    ),
    Known(
        "a row is marked by its place in the micro-batch",
        "losses/grpo.py",
        'marks_b = row_marks(batch["completion_ids"], mask_bt)',
        "marks_b = jnp.arange(len(mask_bt)) / len(mask_bt)",
        ("tests/losses/test_grpo.py::test_micro_batches_add_up_to_the_whole_batch",),
    ),
    Known(
        "sampler_logprobs are of temperature 1",
        "rollout/sampling.py",
        "logprobs_b = jnp.take_along_axis(logprobs_bv, tokens_b[:, None], axis=-1)[:, 0]",
        "logprobs_b = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens_b[:, None], axis=-1)[:, 0]",
        ("tests/rollout/test_sampling.py",),
    ),
    Known(
        "an update's log-probabilities are of temperature 1",
        "losses/grpo.py",
        "scored = completion_logprobs(config, params, batch, temperature=temperature)",
        "scored = completion_logprobs(config, params, batch, temperature=1.0)",
        (
            "tests/reinforce/test_update.py::"
            "test_what_the_config_says_of_the_loss_is_what_a_step_computes",
        ),
    ),
    Known(
        "old log-probabilities are of temperature 1",
        "reinforce/update.py",
        'return completion_logprobs(config, params, batch, temperature=batch["temperature"])[0]',
        "return completion_logprobs(config, params, batch, temperature=1.0)[0]",
        (f"{STEPS}::test_several_updates_carry_the_logprobs_of_the_policy_that_sampled",),
    ),
    Known(
        "tokens that are decoded take positions after their prompt's padding",
        "rollout/steps.py",
        "(slots.prompt_length + slots.length - 1)[:, None])\n    x_bd",
        "(rooms(tables, slots)[0] + slots.length - 1)[:, None])\n    x_bd",
        ("tests/rollout/test_engine.py",),
    ),
    Known(
        "completions take positions after their prompt's padding",
        "losses/completions.py",
        "completion_positions = prompt_length_p[:, None] + jnp.tile(jnp.arange(t), n)",
        "completion_positions = jnp.broadcast_to(s + jnp.tile(jnp.arange(t), n), (p, n * t))",
        ("tests/losses/test_completions.py",),
    ),
    Known(
        "the ratio of the first update has no gradient",
        "losses/grpo.py",
        'batch.get("old_logprobs", jax.lax.stop_gradient(logprobs))',
        'batch.get("old_logprobs", logprobs)',
        ("tests/losses/test_grpo.py",),
    ),
    Known(
        "advantages compare completions of other prompts",
        "losses/advantages.py",
        "rewards_b.reshape(-1, group_size)",
        "rewards_b.reshape(group_size, -1)",
        ("tests/losses/test_grpo.py",),
    ),
    Known(
        "a completion's end token is not in its mask",
        "rollout/ended.py",
        "lengths = (numbers.sampled + numbers.read)[ended.here, None]",
        "lengths = (numbers.sampled + numbers.read - numbers.stopped)[ended.here, None]",
        ("tests/rollout/test_engine.py",),
    ),
    Known(
        "GRPO clips losses in place of gains",
        "losses/grpo.py",
        "surrogate_bt = jnp.minimum(whole_bt * advantage_b1, clipped_bt * advantage_b1)",
        "surrogate_bt = jnp.maximum(whole_bt * advantage_b1, clipped_bt * advantage_b1)",
        ("tests/losses/test_grpo.py",),
    ),
    Known(
        "the KL's estimate has policy and reference swapped",
        "losses/grpo.py",
        "d = jnp.clip(ref_logprobs - logprobs,",
        "d = jnp.clip(logprobs - ref_logprobs,",
        ("tests/losses/test_grpo.py",),
    ),
    Known(
        "a prediction module predicts the token before its own",
        "losses/multi_token.py",
        'targets_bt = _ahead(batch["targets"], ahead)',
        'targets_bt = _ahead(batch["targets"], depth)',
        ("tests/losses/test_multi_token.py",),
    ),
    Known(
        "the balancing bias rises with an expert's load",
        "ops/routing.py",
        "return bias + speed * jnp.sign(",
        "return bias - speed * jnp.sign(",
        ("tests/ops/test_routing.py",),
    ),
    Known(
        "YaRN's temperature multiplies the scores once in place of twice",
        "models/mla.py",
        "scale *= yarn_mscale(scaling.factor, scaling.mscale_all_dim) ** 2",
        "scale *= yarn_mscale(scaling.factor, scaling.mscale_all_dim)",
        ("tests/models/test_parity.py",),
    ),
    Known(
        "every update draws the same random numbers",
        "training/update.py",
        "return value_and_gradient(state.params, batch, jax.random.fold_in(rng, state.step))",
        "return value_and_gradient(state.params, batch, rng)",
        ("tests/training/test_update.py",),
    ),
    Known(
        "a checkpoint's data change while they are written",
        "checkpoint/store.py",
        'data = json.loads(json.dumps(checkpoint["data"]))',
        'data = checkpoint["data"]',
        ("tests/checkpoint/test_store.py",),
    ),
    Known(
        "divergences lose their digits at large logits",
        "distill/divergences.py",
        "return logits - jax.lax.stop_gradient(logits).max(-1, keepdims=True)",
        "return logits",
        ("tests/distill/test_divergences.py",),
    ),
    Known(
        "completions.jsonl drops what rewards log of a completion",
        "reinforce/groups.py",
        "{name: column[rows] for name, column in scores.columns.items()}",
        "{}",
        ("tests/reinforce/test_kept_groups.py",),
    ),
    Known(
        "a generation does not know the length of runs that decontaminate",
        "recipes/generate/sources.py",
        "Evaluation(*self.texts, self.settings.keep.ngram)",
        "Evaluation(*self.texts)",
        ("tests/recipes/generate/test_run.py",),
    ),
)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--slow", action="store_true", help="also those whose only test is slow")
    parser.add_argument("--only", default="", help="those with this text in their name")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument(
        "--work", type=Path, default=ROOT / ".pytest_cache" / "known", help="copies"
    )
    given = parser.parse_args()
    rows = {what for kind, what, *_ in ROW.findall(README.read_text()) if kind == "faults"}
    if missing := rows ^ {known.name for known in ROWS}:
        sys.exit(f"not both in {README.name} and in ROWS: {', '.join(sorted(missing))}")
    wanted = [known for known in ROWS + HISTORY if given.only in known.name]
    # A list: code that has moved is said before anything runs
    trials = [(known, known.planted()) for known in wanted if given.slow or not known.slow]
    missed = []
    print("| fault | caught by | CPU seconds |\n|---|---|---|", flush=True)
    for known, found in trial.try_all(trials, given.work, given.processes):
        # A file that cannot be imported, or a signal, is no test that fails
        caught = found["is"] == "own" and "::" in found["test"]
        missed += [known.name] * (not caught)
        by = found["test"] if caught else f"nothing {found['test']}"
        print(f"| {known.name} | {by} | {found['seconds']} |", flush=True)
    if missed:
        sys.exit(f"not caught: {'; '.join(missed)}")


if __name__ == "__main__":
    main()
