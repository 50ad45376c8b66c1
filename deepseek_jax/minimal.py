"""DeepSeek-V3 (arXiv:2412.19437) and GRPO (arXiv:2402.03300) on one page.

`python -m deepseek_jax.minimal` learns to work out sums. No mesh, cache, kernel or option: the end
of a function names what does the same at full size, and tests/test_minimal.py compares the two.
The name of an array ends in its axes, by the letters of __init__.py.
"""

import random

import jax
import jax.numpy as jnp
import optax

from deepseek_jax.models import ModelConfig, random_params

# "." ends a text and fills its row. GRPO's epsilon and beta; gamma of V3's section 2.1.2
CHARACTERS, END, LONGEST = ".0123456789+=", 0, 14
CLIP, KL, BIAS_SPEED = 0.2, 0.02, 1e-3
V3 = dict(model_type="deepseek_v3", scoring_func="sigmoid", norm_topk_prob=True)
HERE = dict(rope_scaling=None, tie_word_embeddings=False, rms_norm_eps=1e-6, dtype="float32") | V3
CONFIG = ModelConfig(
    vocab_size=13, hidden_size=64, intermediate_size=128, num_hidden_layers=2, n_shared_experts=1,
    num_attention_heads=4, q_lora_rank=32, kv_lora_rank=32, qk_nope_head_dim=16, v_head_dim=16,
    qk_rope_head_dim=16, first_k_dense_replace=1, n_routed_experts=8, n_group=4, topk_group=2,
    num_experts_per_tok=2, moe_intermediate_size=32, rope_theta=100, initializer_range=0.1, **V3,
)  # fmt: skip


def rms_norm(w, x):
    """Return x / sqrt(mean(x^2) + epsilon), times a learned scale (arXiv:1910.07467)."""
    return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + HERE["rms_norm_eps"]) * w["scale"]
    # real: models/layers.py


def rotate(x_bthr, theta):
    """Turn pair z, numbers z and z + r / 2, of token t by t theta^(-2z / r) (arXiv:2104.09864)."""
    t, r = x_bthr.shape[1], x_bthr.shape[-1]
    angle_t1z = jnp.arange(t)[:, None, None] * theta ** (-jnp.arange(0, r, 2) / r)
    cos, sin = jnp.cos(angle_t1z), jnp.sin(angle_t1z)
    x_bthz, y_bthz = jnp.split(x_bthr, 2, axis=-1)
    return jnp.concatenate([x_bthz * cos - y_bthz * sin, y_bthz * cos + x_bthz * sin], axis=-1)
    # real: ops/rope.py


def attention(config, w, x_btd):
    """softmax((q.k + q_rope.k_rope) / sqrt(n + r)) v; a cache has c_kv, k_rope (V3, eqs. 1-11)."""
    n, r, t = config.qk_nope_head_dim, config.qk_rope_head_dim, x_btd.shape[1]
    c_q_btq = rms_norm(w["q_norm"], x_btd @ w["q_down"])
    q_bthn, q_rope_bthr = jnp.split(jnp.einsum("btq,qhx->bthx", c_q_btq, w["q_up"]), [n], axis=-1)
    c_kv_bsc, k_rope_bsr = jnp.split(x_btd @ w["kv_down"], [config.kv_lora_rank], axis=-1)
    c_kv_bsc = rms_norm(w["kv_norm"], c_kv_bsc)
    k_rope_bsr = rotate(k_rope_bsr[:, :, None], config.rope_theta)[:, :, 0]
    k_bshn = jnp.einsum("bsc,chn->bshn", c_kv_bsc, w["k_up"])
    v_bshu = jnp.einsum("bsc,chu->bshu", c_kv_bsc, w["v_up"])
    scores_bhts = jnp.einsum("bthn,bshn->bhts", q_bthn, k_bshn)
    scores_bhts += jnp.einsum("bthr,bsr->bhts", rotate(q_rope_bthr, config.rope_theta), k_rope_bsr)
    weights_bhts = jax.nn.softmax(scores_bhts / (n + r) ** 0.5, where=jnp.tri(t, dtype=bool))
    return jnp.einsum("bhts,bshu,hud->btd", weights_bhts, v_bshu, w["out"])
    # real: models/mla.py


def mlp(w, x_btd):
    """SwiGLU: W_down (silu(W_gate x) * W_up x) (arXiv:2002.05202)."""
    gate_btf, up_btf = jnp.einsum("btd,dzf->zbtf", x_btd, w["gate_up"])
    return (jax.nn.silu(gate_btf) * up_btf) @ w["down"]
    # real: models/layers.py


def route(config, w, x_btd):
    """The affinity sigmoid(x.w_e) plus a bias chooses, the affinity weighs (V3, eqs. 13-16)."""
    affinity_bte = jax.nn.sigmoid(x_btd @ w["router"])
    # x: expert of a group, z: group that is open. A group scores by its best two experts
    choice_btgx = (affinity_bte + w["router_bias"]).reshape(*x_btd.shape[:2], config.n_group, -1)
    open_btz = jax.lax.top_k(jax.lax.top_k(choice_btgx, 2)[0].sum(-1), config.topk_group)[1]
    open_btg1 = jax.nn.one_hot(open_btz, config.n_group, dtype=bool).any(-2)[..., None]
    choice_bte = jnp.where(open_btg1, choice_btgx, -jnp.inf).reshape(affinity_bte.shape)
    experts_bta = jax.lax.top_k(choice_bte, config.num_experts_per_tok)[1]
    chosen_bte = jax.nn.one_hot(experts_bta, config.n_routed_experts).sum(-2)
    weights_bte = affinity_bte * chosen_bte / (affinity_bte * chosen_bte).sum(-1, keepdims=True)
    return chosen_bte, config.routed_scaling_factor * weights_bte
    # real: ops/routing.py


def feed_forward(config, w, x_btd):
    """shared(x) + sum_e weight_e expert_e(x) (V3, eq. 12); the first layers have an MLP instead."""
    if "router" not in w:
        return mlp(w, x_btd), ()
    chosen_bte, weights_bte = route(config, w, x_btd)
    y_ebtd = jax.vmap(mlp, (0, None))({"gate_up": w["gate_up"], "down": w["down"]}, x_btd)
    return mlp(w["shared"], x_btd) + jnp.einsum("bte,ebtd->btd", weights_bte, y_ebtd), (chosen_bte,)
    # real: models/moe.py


def forward(config, params, tokens_bt):
    """Run x += attention(norm(x)), x += ffn(norm(x)), by layer: -> (logits_btv, chosen_lbte)."""
    assert vars(config) | HERE == vars(config), f"{config} is not this page's architecture: {HERE}"
    x_btd, chosen, dense = params["embedding"][tokens_bt], (), config.num_dense_layers
    for i in range(config.num_hidden_layers):
        stack, at = ("dense_layers", i) if i < dense else ("moe_layers", i - dense)
        w = jax.tree.map(lambda leaf, at=at: leaf[at], params[stack])
        x_btd += attention(config, w["attention"], rms_norm(w["attention_norm"], x_btd))
        y_btd, more = feed_forward(config, w["ffn"], rms_norm(w["ffn_norm"], x_btd))
        x_btd, chosen = x_btd + y_btd, chosen + more
    return rms_norm(params["final_norm"], x_btd) @ params["head"].T, jnp.stack(chosen)
    # real: models/decoder.py


@jax.jit(static_argnums=0)
def token_logprobs(config, params, tokens_bt):
    """Return log p of each token but the first, in nats: -> ([b t-1], chosen of `forward`)."""
    logits_btv, chosen_lbte = forward(config, params, tokens_bt[:, :-1])
    logprobs_btv = jax.nn.log_softmax(logits_btv)
    return jnp.take_along_axis(logprobs_btv, tokens_bt[:, 1:, None], -1)[..., 0], chosen_lbte
    # real: ops/logprobs.py


def next_token_loss(config, params, batch):
    """-mean(log p) over the tokens under the mask."""
    logprobs_bt, chosen_lbte = token_logprobs(config, params, batch["tokens"])
    return -logprobs_bt.mean(where=batch["mask"]), chosen_lbte
    # real: losses/next_token.py


def grpo_loss(config, params, batch):
    """-min(ratio A, clip(ratio) A) + beta KL, averaged over tokens, then texts (GRPO, eqs. 3-4)."""
    logprobs_bt, chosen_lbte = token_logprobs(config, params, batch["tokens"])
    ratio_bt, a_b1 = jnp.exp(logprobs_bt - batch["old_logprobs"]), batch["advantages"][:, None]
    gain_bt = jnp.minimum(ratio_bt * a_b1, jnp.clip(ratio_bt, 1 - CLIP, 1 + CLIP) * a_b1)
    log_ref_bt = batch["ref_logprobs"] - logprobs_bt
    kl_bt = jnp.exp(log_ref_bt) - log_ref_bt - 1
    return (KL * kl_bt - gain_bt).mean(-1, where=batch["mask"]).mean(), chosen_lbte
    # real: losses/grpo.py


def group_advantages(rewards_ip):
    """(r - mean) / std among the completions of one prompt: no network predicts values."""
    return ((rewards_ip - rewards_ip.mean(0)) / (rewards_ip.std(0, ddof=1) + 1e-6)).reshape(-1)
    # real: losses/advantages.py


def bias_step(chosen_lbte, mask_bt):
    """Balance without an auxiliary loss: gamma sign(mean load - load_e), load in tokens."""
    load_le = jnp.einsum("lbte,bt->le", chosen_lbte, mask_bt)
    return BIAS_SPEED * jnp.sign(load_le.mean(-1, keepdims=True) - load_le)
    # real: ops/routing.py


@jax.jit(static_argnums=(0, 1, 2))
def update(config, optimizer, loss_fn, params, state, batch):
    """A step of Adam and one of the bias, which has no gradient: -> (params, state, loss)."""
    (loss, chosen_lbte), grads = jax.value_and_grad(loss_fn, 1, has_aux=True)(config, params, batch)
    updates, state = optimizer.update(grads, state)
    params = optax.apply_updates(params, updates)
    params["moe_layers"]["ffn"]["router_bias"] += bias_step(chosen_lbte, batch["mask"])
    return params, state, loss
    # real: training/update.py


@jax.jit(static_argnums=(0, 3))
def sample(config, params, rows_bt, start, temperature, rng):
    """Draw from softmax(logits / T) by argmax(logits + T Gumbel noise), from column `start` on."""

    def write(t, rows_bt):
        logits_bv = forward(config, params, rows_bt)[0][:, t - 1]
        noise_bv = jax.random.gumbel(jax.random.fold_in(rng, t), logits_bv.shape)
        drawn_b = jnp.argmax(logits_bv + temperature * noise_bv, -1)
        return rows_bt.at[:, t].set(jnp.where(rows_bt[:, t - 1] == END, END, drawn_b))

    return jax.lax.fori_loop(start, rows_bt.shape[1], write, rows_bt)
    # real: rollout/engine.py


def encode(texts):
    """Texts as rows of LONGEST token ids."""
    return jnp.array([[CHARACTERS.index(c) for c in text.ljust(LONGEST, ".")] for text in texts])
    # real: data/tokenizer.py


def corpus_batch(rng, questions, params, reference):
    """Texts like the web's: 3 in 4 answer at once, seldom rightly; the others show their work."""
    texts = []
    for a, b, c in questions:
        first = a + b + rng.choice([0] * 9 + [1])
        answers = [f"{a + b + c + rng.randint(-2, 2)}"] * 3 + [f"{first}+{c}={first + c}"]
        texts.append(f"{a}+{b}+{c}=" + rng.choice(answers))
    return texts, {"tokens": encode(texts), "mask": encode(texts)[:, :-1] != END}
    # real: worlds/arithmetic/corpus.py


def group_batch(rng, questions, params, reference):
    """Sample 8 answers to each question, of 6 characters, and reward those that end in the sum."""
    prompts_bt, key = encode(["{}+{}+{}=".format(*q) for q in questions] * 8), rng.getrandbits(32)
    rows_bt = sample(CONFIG, params, prompts_bt, 6, 1.0, jax.random.key(key))
    texts = ["".join(CHARACTERS[i] for i in row).split(".")[0] for row in rows_bt.tolist()]
    right = [x.rpartition("=")[2] == str(sum(q)) for x, q in zip(texts, questions * 8, strict=True)]
    return texts, {
        "tokens": rows_bt,
        "mask": (rows_bt[:, :-1] != END) & (jnp.arange(LONGEST - 1) >= 5),
        "rewards": jnp.array(right, float),
        "advantages": group_advantages(jnp.array(right, float).reshape(8, -1)),
        "old_logprobs": token_logprobs(CONFIG, params, rows_bt)[0],
        "ref_logprobs": token_logprobs(CONFIG, reference, rows_bt)[0],
    }
    # real: reinforce/groups.py


def learn(steps=4000, rounds=80):
    """Pre-train, then reinforce: -> the share of held-out sums that are right, after each."""
    rng, params, accuracy = random.Random(0), random_params(CONFIG), []
    questions = [(i // 81 + 1, i // 9 % 9 + 1, i % 9 + 1) for i in rng.sample(range(729), 729)]
    pretraining = next_token_loss, corpus_batch, optax.cosine_decay_schedule(4e-3, steps), steps, 1
    reinforcing = grpo_loss, group_batch, 1e-3, rounds, 2
    for loss_fn, make_batch, rate, count, updates in (pretraining, reinforcing):
        optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate, b2=0.95))
        state, reference = optimizer.init(params), params
        for step in range(count):
            texts, batch = make_batch(rng, rng.choices(questions[100:], k=32), params, reference)
            for _ in range(updates):
                params, state, loss = update(CONFIG, optimizer, loss_fn, params, state, batch)
            if step % max(count // 10, 1) == 0:
                print(f"{loss_fn.__name__} {loss:.3f}, step {step}:", *texts[:3], flush=True)
        texts, batch = group_batch(random.Random(0), questions[:100], params, params)
        accuracy.append(float(batch["rewards"].mean()))
        print(f"{accuracy[-1]:.0%} of held-out sums are right:", *texts[:6])
    return accuracy
    # real: recipes/grpo/run.py


if __name__ == "__main__":
    jax.default_matmul_precision("highest")(learn)()  # a TPU would round operands
