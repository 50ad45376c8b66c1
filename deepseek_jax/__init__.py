"""DeepSeek in JAX and Flax. The rooms in reading order; a room imports only from rooms printed above it.

minimal.py    first: DeepSeek-V3 and GRPO on one page, in plain JAX; it names the file of each part
errors.py, files.py: messages with the config's path; files in folders and buckets (gs://)
hub.py: names on the Hugging Face hub, their files, and what goes wrong
installed.py  whether this Python has what every program needs
lazy.py, settings.py: names and tables that import when used; a config block -> a dataclass
named_code.py: functions that a config names, FILE.py:NAME
notebooks.py  a mistake in a notebook is one message
progress.py   what a run waits for, in lines on the console
trees.py: PyTree, the type of nested dicts of arrays
programs.py   where launch/ and configs/ are: in a checkout or in a wheel; __main__.py is the command
ops/          the papers' equations: arrays in, arrays out; imports jax alone
parallel/     where arrays live: mesh, the table of axes, shardings, expert exchange, pipeline, processes
models/       what the network computes; the only nn.Modules
checkpoint/   the same arrays on disk: Hugging Face, GGUF, Orbax
costs/        FLOPs, bytes, chips, and published claims about them
losses/       logits or log-probabilities in, (scalar, metrics) out: next token, MTP, GRPO, preferences
training/     one update, the loop around it, and what a run remembers
data/         examples in, fixed-shape batches out: readers, tokenizers, chat, packing
rewards/      text in, float out; plain Python (reward models load jax when called)
environments/ the user's tools and environments, which answer the model's turns; plain Python
rollout/      prompts in, completions and their log-probabilities out
worlds/       each toy world whole: words, corpus, tokenizer, tasks, its rewards
evaluation/   scores and how sure they are: pass@k, cons@k, intervals, paired comparison
reinforce/    GRPO: its source of groups, its update, its reward models and scenarios
distill/      all that teaches: targets, cache, alignment; one teacher or many, on texts or on own samples
synthesis/    data from a teacher: ask, vary, filter, deduplicate
reports/      tables, curves, the page
recipes/      kinds of stages (kinds/), the driver, each recipe (a list of stages), and train, which runs one

Dimensions, one letter each, in array names and in einsum strings:
b batch; t query position; s key position; m = b t flattened; l layer; d hidden_size; v vocab_size;
h num_attention_heads; k num_key_value_heads; n qk_nope_head_dim; r qk_rope_head_dim; u v_head_dim;
q q_lora_rank; c kv_lora_rank; f intermediate_size; e n_routed_experts; a num_experts_per_tok; g n_group;
p prompts_per_step; i completion within its group; j index_n_heads; y index_head_dim.

Words, each for one thing:
example       a dict of columns, a line of data; two of its columns are question and answer
question      the text that is asked
prompt        the token ids that a model reads before it answers
completion    the token ids that a model samples after a prompt
answer        the text of a completion; in an example, the right one
conversation  a completion of several turns, with the replies of tools or an environment
row           an entry along the first axis of an array
group         the completions of one prompt; their advantages compare them
rollout       the completions of all prompts of a step, and how they are sampled
policy        a model that answers, with its tokenizer and template
reference     the frozen policy that a KL compares with
room          a folder of this package, or a file beside the folders
world         a toy world: its questions, texts, tokenizer and rewards
recipe        a kind of run: a list of stages, and its page
stage         a line of this list, which leaves a policy, a dataset or scores
source        what a stage reads
"""

from deepseek_jax.lazy import lazy_names

# The one place of the version, which pyproject.toml reads
__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "AnswerOptions": "rollout",
        "GrpoOptions": "losses",
        "ModelConfig": "models",
        "Policy": "rollout",
        "RULES": "rewards",
        "Rewards": "rewards",
        "Rule": "rewards",
        "Run": "training",
        "TrainState": "training",
        "Trained": "recipes",
        "completion_logprobs": "losses",
        "completion_texts": "rollout",
        "config": "recipes",
        "count_params": "models",
        "evaluate": "evaluation",
        "forward": "models",
        "generate": "rollout",
        "group_advantages": "losses",
        "group_batch": "reinforce",
        "grpo_loss": "losses",
        "load_adapter": "checkpoint",
        "load_gguf": "checkpoint",
        "load_hf": "checkpoint",
        "load_orbax": "checkpoint",
        "load_policy": "rollout",
        "load_tokenizer": "data",
        "load_v4": "checkpoint",
        "make_groups": "reinforce",
        "make_grpo_loss": "losses",
        "make_mesh": "parallel",
        "make_optimizer": "training",
        "make_train_step": "training",
        "next_token_loss": "losses",
        "pairwise_loss": "losses",
        "pointwise_loss": "losses",
        "random_params": "models",
        "render_prompt": "data",
        "save_hf": "checkpoint",
        "save_orbax": "checkpoint",
        "save_v4": "checkpoint",
        "train": "recipes",
    },
)
