"""The loss of GRPO against TRL's trainer (https://github.com/huggingface/trl), which computes it in torch."""

import itertools
import types
from collections import defaultdict

import numpy as np
import pytest
import torch
from trl.trainer.grpo_trainer import GRPOTrainer

from deepseek_jax.losses.settings import NORMALIZES_STD
from tests.losses.test_grpo import SETTINGS, V3_2, loss_and_grad, make_batch

OPTIONS = {
    "plain": {},
    "KL and a higher clip": dict(kl_coef=0.04, clip_eps_high=0.28),
    "V3.2": V3_2,
    "two-sided": dict(ratio_cap=1.3),
}
# With gspo TRL weighs the unbiased KL by the ratio of the completion, and V3.2 by the token's. With cispo
# nothing is clipped on two sides
OTHERWISE = ("gspo", "V3.2"), ("cispo", "two-sided")
PAIRS = [pair for pair in itertools.product(NORMALIZES_STD, OPTIONS) if pair not in OTHERWISE]


def trl_loss(logprobs, entropy, batch, *, loss_type, clip_eps=0.2, clip_eps_high=None, kl_coef=0.0,
             ratio_cap=None, unbiased_kl=False, off_policy_limit=None):  # fmt: skip
    """(loss, gradient) of GRPOTrainer._compute_loss in float64; logprobs stand for those of its model."""
    x = torch.tensor(logprobs, dtype=torch.float64, requires_grad=True)
    high = clip_eps if clip_eps_high is None else clip_eps_high
    sequence = loss_type == "gspo"
    gather = lambda values: values  # noqa: E731
    trainer = types.SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (x, torch.tensor(entropy), None),
        get_off_policy_mask=GRPOTrainer.get_off_policy_mask,
        model=types.SimpleNamespace(training=True),
        accelerator=types.SimpleNamespace(
            num_processes=1, gather=gather, reduce=lambda values, reduction: values
        ),
        args=types.SimpleNamespace(
            delta=ratio_cap, use_bias_correction_kl=unbiased_kl, steps_per_generation=1
        ),
        _metrics=defaultdict(lambda: defaultdict(list)),
        loss_type="grpo" if sequence else loss_type,
        importance_sampling_level="sequence" if sequence else "token",
        epsilon_low=clip_eps,
        # Of cispo TRL takes the largest ratio itself
        epsilon_high=1 + high if loss_type == "cispo" else high,
        beta=kl_coef,
        off_policy_mask_threshold=off_policy_limit,
        max_completion_length=SETTINGS["max_completion_length"],
        current_gradient_accumulation_steps=1,
        top_entropy_quantile=1.0,
        aux_loss_enabled=False,
        _entropy_bonus_enabled=False,
        use_vllm=False,
    )
    ids = torch.zeros(x.shape, dtype=torch.long)
    inputs = dict(
        prompt_ids=ids[:, :1],
        prompt_mask=ids[:, :1],
        completion_ids=ids,
        completion_mask=torch.tensor(batch["completion_mask"]).double(),
        advantages=torch.tensor(batch["advantages"]).double(),
        num_items_in_batch=torch.tensor(float(batch["num_tokens"])),
    )
    names = dict(old="old_per_token_logps", ref="ref_per_token_logps")
    names |= dict(sampler="sampling_per_token_logps")
    for name, theirs in names.items():
        inputs[theirs] = torch.tensor(batch[f"{name}_logprobs"]).double()
    loss = GRPOTrainer._compute_loss(trainer, None, inputs)
    loss.backward()
    return loss.item(), x.grad.numpy()


@pytest.mark.parametrize(("loss_type", "name"), PAIRS)
def test_loss_and_gradient_are_trls(loss_type, name):
    """Oracle: TRL's GRPOTrainer."""
    options = dict(OPTIONS[name], loss_type=loss_type)
    logprobs, entropy, batch = make_batch()
    value, grad, _ = loss_and_grad(logprobs, entropy, batch, **options)
    want_value, want_grad = trl_loss(logprobs, entropy, batch, **options)
    assert value == pytest.approx(want_value, rel=1e-5, abs=1e-6)
    np.testing.assert_allclose(grad, want_grad, rtol=1e-5, atol=1e-7)
