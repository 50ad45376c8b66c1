"""The fields that stages' hashes cover, against those of records without a format."""

import dataclasses

import pytest

from deepseek_jax.distill import settings as distill
from deepseek_jax.losses.grpo import GrpoOptions
from deepseek_jax.models import ModelConfig, RopeScaling
from deepseek_jax.recipes.distill.settings import (
    PlateauSettings,
    ReinforcedSettings,
    ScoreSettings,
    StartSettings,
    StudentSettings,
)
from deepseek_jax.recipes.pretrain.settings import BaseSettings
from deepseek_jax.recipes.r1.settings import (
    ConversationSettings,
    EvaluationSettings,
    R1FineTuneSettings,
    RejectionSettings,
)
from deepseek_jax.recipes.reward_model.settings import (
    DataSettings,
    JudgeTrainingSettings,
    RewardTrainingSettings,
)
from deepseek_jax.reinforce import settings as reinforce
from deepseek_jax.synthesis.settings import KeepSettings, SamplingSettings
from deepseek_jax.training.lineage import FORMAT
from deepseek_jax.training.optimizer import OptimizerSettings
from deepseek_jax.training.schedule import Phase

MODEL = """
bos_token_id dtype eos_token_id expert_buffer first_k_dense_replace fp8 head_dim hidden_size
initializer_range intermediate_size kv_lora_rank max_position_embeddings model_type moe_intermediate_size
n_group n_routed_experts n_shared_experts norm_topk_prob num_attention_heads num_experts_per_tok
num_hidden_layers num_key_value_heads num_nextn_predict_layers pipeline_micro_batches q_lora_rank
qk_nope_head_dim qk_rope_head_dim remat rms_norm_eps rope_scaling rope_theta routed_scaling_factor
scan_layers scoring_func tie_word_embeddings topk_group v_head_dim vocab_size
"""
SCALING = """
attention_factor beta_fast beta_slow factor high_freq_factor low_freq_factor mscale mscale_all_dim
original_max_position_embeddings rope_type
"""
OPTIMIZER = """
b1 b2 final_fraction learning_rate max_grad_norm moment_dtype phases schedule warmup_steps weight_decay
"""
BASE = """
balance_weight batch_size bias_update_speed corpus eval_every log_every micro_batch_size mtp_weight
num_documents num_steps optimizer rope_scaling save_every sequence_length
"""
REINFORCE = """
accuracy epochs general group_size log_every loss max_sampling_rounds micro_batches minibatches num_steps
optimizer prompts_per_step reference_every rewards rollout save_every seed
"""
LOOP = "log_every micro_batches num_steps optimizer save_every seed"
ROWS = f"{LOOP} batch_size sequence_length"
SAMPLED = "max_completion_length slots temperature"
DISTILL_LOSS = """
beta divergence on_policy relation_heads temperature top_k vocab_size weights
"""
FORMER = {
    ModelConfig: MODEL,
    RopeScaling: SCALING,
    OptimizerSettings: OPTIMIZER,
    Phase: "kind steps to",
    BaseSettings: BASE,
    reinforce.ReinforceSettings: REINFORCE,
    reinforce.RolloutSettings: f"{SAMPLED} max_prompt_length",
    GrpoOptions: "clip_eps clip_eps_high importance_cap kl_coef loss_type",
    reinforce.GeneralSettings: "num_steps path per_step rewards",
    RejectionSettings: f"{SAMPLED} max_per_prompt num_prompts samples_per_prompt",
    ConversationSettings: "num_puzzles num_requests",
    R1FineTuneSettings: f"{ROWS} data eval_every",
    EvaluationSettings: f"{SAMPLED} num_puzzles num_requests samples",
    RewardTrainingSettings: f"{ROWS} data kind",
    JudgeTrainingSettings: f"{ROWS} data max_completion_length slots",
    DataSettings: "num_held_out num_train path template",
    distill.LossSettings: DISTILL_LOSS,
    distill.OnPolicySettings: f"{SAMPLED} beta divergence prompts",
    StudentSettings: f"{ROWS} eval_every loss plateau start",
    PlateauSettings: "factor patience rtol",
    ReinforcedSettings: f"{REINFORCE} start",
    StartSettings: "base init_from max_position_embeddings model tokenizer",
    ScoreSettings: f"{SAMPLED} num_questions samples",
    KeepSettings: "at_least decontaminate max_per_prompt near_duplicates ngram shingle",
    SamplingSettings: f"{SAMPLED} max_prompt_length samples_per_prompt top_p",
}


@pytest.mark.parametrize("cls", FORMER, ids=lambda cls: f"{cls.__module__[13:]}.{cls.__name__}")
def test_a_former_record_is_still_of_all_fields_that_there_were(cls):
    """Oracle: the fields of the class when records had no format. One that was added since must be declared
    with settings.added, else stages that were made before would be run anew, and their folders removed.
    """
    fields = dataclasses.fields(cls)
    former = {field.name for field in fields if field.metadata.get("since", 1) < FORMAT}
    assert former == set(FORMER[cls].split())
