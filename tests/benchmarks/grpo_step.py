"""A whole GRPO step against TRL: generate, score, update, with KL 0.04; SmolLM2-135M's shape, interleaved.

python -m tests.benchmarks.grpo_step [--rounds 3]
python -m tests.benchmarks.grpo_step --ours-only float32     # memory of our step, without PyTorch
"""

import argparse
import resource
import statistics
import tempfile
import time

import jax
import jax.numpy as jnp

from configs import models
from deepseek_jax.checkpoint.locate import smollm2_gguf
from deepseek_jax.costs.program import GENERATION, SYNC
from deepseek_jax.data.read_tokenizer import load_tokenizer
from deepseek_jax.losses import make_grpo_loss
from deepseek_jax.models import build_model, random_params
from deepseek_jax.parallel import make_mesh
from deepseek_jax.parallel.host_memory import return_compilers_memory
from deepseek_jax.recipes.grpo.settings import GrpoSettings
from deepseek_jax.reinforce.groups import GroupSource
from deepseek_jax.rewards import Rewards
from deepseek_jax.rollout import Policy
from deepseek_jax.settings import build
from deepseek_jax.training.state import state_maker
from deepseek_jax.training.update import Update
from tests.benchmarks.timing import peak_flops, print_table

PROMPTS, GROUP, PROMPT, COMPLETION = 4, 8, 55, 64
KL_COEF = 0.04
SETTINGS = dict(
    recipe="grpo",
    seed=0,
    num_steps=100,
    prompts_per_step=PROMPTS,
    group_size=GROUP,
    accuracy="exact_answer",
    rewards=dict(exact_answer=1.0),
    data=dict(),
    rollout=dict(max_prompt_length=PROMPT, max_completion_length=COMPLETION, slots=PROMPTS * GROUP),
    loss=dict(kl_coef=KL_COEF),
    optimizer=dict(learning_rate=1e-6),
    init_from="random weights",
)


def questions(tokenizer):
    """Word problems whose prompts have PROMPT tokens each."""
    text = "Tom has 3 apples and buys 8 more, then gives some away to each of his friends. " * 9
    ids = tokenizer.encode(text)
    return [tokenizer.decode(ids[i : i + PROMPT]) for i in range(64)], [
        ids[i : i + PROMPT] for i in range(64)
    ]


def our_step(dtype, tokenizer, prompts):
    """A function that makes one of our GRPO steps: -> {"generate": s, "score": s, "update": s, "all": s}."""
    config = build_model(dict(models.smollm2_135m(), dtype=dtype, remat="full", scan_layers=True))
    settings = build(GrpoSettings, SETTINGS, "config")
    mesh = make_mesh()
    reference = random_params(config, mesh, seed=0)
    loss_fn = make_grpo_loss(config, settings.loss, max_completion_length=COMPLETION)
    tx = settings.optimizer.make(settings.num_steps)
    create, placed = state_maker(reference, tx, mesh)
    train_step = Update(loss_fn, tx, placed)
    examples = [{"question": "q", "answer": "1", "prompt_ids": ids} for ids in prompts]
    rewards = Rewards(settings.rewards)
    policy = Policy(config, None, tokenizer, "{question}")
    source = GroupSource(policy, {"reasoning": examples}, rewards, settings, mesh, reference)
    # A copy, because an update donates its state
    state = [create(jax.tree.map(jnp.copy, reference))]
    rng, steps = jax.random.key(0), iter(range(1000))

    def run():
        began = time.perf_counter()
        with jax.set_mesh(mesh):
            batches, metrics = source.next(state[0], next(steps))
            jax.block_until_ready(batches)
            scored = time.perf_counter()
            state[0], _ = train_step(state[0], batches[0], rng)
            jax.block_until_ready(state[0])
        ended = time.perf_counter()
        generate = metrics[SYNC] + metrics[GENERATION]
        return {
            "generate": generate,
            "score": scored - began - generate,
            "update": ended - scored,
            "all": ended - began,
        }

    return run


def trl_trainer(tokenizer, texts, steps, callback, folder):
    """TRL's trainer with the same shapes, prompts, sizes and KL. callback: called after each step."""
    import datasets
    import trl

    from tests.benchmarks.peers import smollm2

    smollm2()[0].save_pretrained(folder)  # TRL reads policy and reference from a folder
    args = trl.GRPOConfig(
        output_dir=folder,
        per_device_train_batch_size=PROMPTS * GROUP,
        num_generations=GROUP,
        max_completion_length=COMPLETION,
        beta=KL_COEF,
        learning_rate=1e-6,
        max_steps=steps,
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    return trl.GRPOTrainer(
        model=folder,
        args=args,
        reward_funcs=lambda completions, **_: [float(i % 2) for i in range(len(completions))],
        train_dataset=datasets.Dataset.from_dict({"prompt": texts}),
        processing_class=tokenizer.chat,
        callbacks=[callback],
    )


def against_trl(tokenizer, texts, ours, rounds):
    """Run TRL, and after each of its steps one of each of ours: name -> list of dicts of seconds."""
    import transformers

    seconds = {name: [] for name in ("TRL", *ours)}

    class Interleave(transformers.TrainerCallback):
        def on_train_begin(self, *args, **kwargs):
            self.began = time.perf_counter()

        def on_step_end(self, *args, **kwargs):
            seconds["TRL"].append({"all": time.perf_counter() - self.began})
            for name, step in ours.items():
                seconds[name].append(step())
            self.began = time.perf_counter()

    with tempfile.TemporaryDirectory() as folder:
        trl_trainer(tokenizer, texts, rounds + 1, Interleave(), folder).train()
    return {name: values[1:] for name, values in seconds.items()}  # the first one warms up


def useful_flops():
    """FLOPs of the step's products with the weights of body and head, without attention."""
    sizes = models.smollm2_135m()
    body = 106_203_456 - 61 * sizes["hidden_size"]  # SmolLM2-135M without embedding and norms
    head = sizes["vocab_size"] * sizes["hidden_size"]
    completions = PROMPTS * GROUP * COMPLETION
    tokens = PROMPTS * PROMPT + completions
    forward = 2 * (tokens * body + completions * head)
    return forward * (1 + 1 + 3)  # generate, score by the reference, update


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ours-only", choices=["float32", "bfloat16"])
    args = parser.parse_args()
    return_compilers_memory()
    tokenizer = load_tokenizer(smollm2_gguf())
    texts, prompts = questions(tokenizer)
    dtypes = [args.ours_only] if args.ours_only else ["float32", "bfloat16"]
    ours = {dtype: our_step(dtype, tokenizer, prompts) for dtype in dtypes}
    if args.ours_only:
        seconds = {
            name: [step() for _ in range(args.rounds + 1)][1:] for name, step in ours.items()
        }
    else:
        seconds = against_trl(tokenizer, texts, ours, args.rounds)
    bound = useful_flops() / peak_flops()
    rows = []
    for name, steps in seconds.items():
        medians = {k: statistics.median(step[k] for step in steps) for k in steps[0]}
        peer = statistics.median(step["all"] for step in seconds.get("TRL", steps))
        parts = [
            f"{medians[k]:.1f}" if k in medians else ""
            for k in ("generate", "score", "update", "all")
        ]
        rows.append([name, *parts, f"{peer / medians['all']:.2f}", f"{bound / medians['all']:.0%}"])
    columns = ["", "generate s", "score s", "update s", "all s", "ratio", "float32 bound / all"]
    title = f"GRPO step, {PROMPTS} x {GROUP} x {COMPLETION} tokens; bound {bound:.1f} s"
    print_table(title, columns, rows)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak memory of this process: {peak:.1f} GiB")


if __name__ == "__main__":
    main()
