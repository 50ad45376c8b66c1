"""DeepSeek-V3 (V3: arXiv:2412.19437) and GRPO (arXiv:2402.03300) on one page.

It learns to add three numbers: run `python -m deepseek_jax.minimal`, or paste it into a notebook
that has jax and optax. The comment after a `def` names the file of deepseek_jax that does the same
at full size; tests compare the two. Left out: multi-token prediction (V3, section 2.2), the
sequence-wise balance loss (eqs. 17-20), YaRN (4.3), FP8 (3.3), and a cache to decode with.

An array's name ends in its axes, in the letters of einsum: b text; t position; s position of a key;
l layer with experts; d hidden_size; v vocab_size; h num_attention_heads; q q_lora_rank;
c kv_lora_rank; n qk_nope_head_dim; r qk_rope_head_dim; u v_head_dim; f width of an MLP;
e n_routed_experts; a num_experts_per_tok; g n_group; p question; i answer; 1 one; x, z: see there.
"""

import random

import jax
import jax.numpy as jnp
import optax

# "." ends a text and fills its row. A question such as "1+2+3=" has START characters
CHARACTERS, END, START, LONGEST = ".0123456789+=", 0, 6, 14
# GRPO's epsilon and beta; gamma of V3's section 2.1.2, the step of a router's bias
CLIP, KL, BIAS_SPEED = 0.2, 0.02, 1e-3


class Config:  # models/config.py
    """Sizes, named as in config.json. The comments have the sizes of DeepSeek-V3."""

    vocab_size, hidden_size, intermediate_size = 13, 64, 128  # 129280, 7168, 18432
    num_hidden_layers, first_k_dense_replace = 2, 1  # 61, 3
    num_attention_heads, q_lora_rank, kv_lora_rank = 4, 32, 32  # 128, 1536, 512
    qk_nope_head_dim, qk_rope_head_dim, v_head_dim = 16, 16, 16  # 128, 64, 128
    n_routed_experts, n_shared_experts, num_experts_per_tok = 8, 1, 2  # 256, 1, 8
    n_group, topk_group, routed_scaling_factor = 4, 2, 1.0  # 8, 4, 2.5
    moe_intermediate_size, rope_theta, initializer_range = 32, 100.0, 0.1  # 2048, 10000, 0.006


def init(config, key):  # models/decoder.py
    """Draw normal weights; scales are 1 and biases 0. The layers of a kind are stacked."""
    d, h, u = config.hidden_size, config.num_attention_heads, config.v_head_dim
    q, c, n = config.q_lora_rank, config.kv_lora_rank, config.qk_nope_head_dim
    r, e, f = config.qk_rope_head_dim, config.n_routed_experts, config.moe_intermediate_size
    keys, dense = iter(jax.random.split(key, 30)), config.first_k_dense_replace  # 30 draws
    v, sparse = config.vocab_size, config.num_hidden_layers - dense

    def draw(shape, *stack):
        if isinstance(shape, dict):
            return {name: draw(part, *stack) for name, part in shape.items()}
        noise = config.initializer_range * jax.random.normal(next(keys), (*stack, *shape))
        return noise if len(shape) > 1 else {"scale": jnp.ones_like(noise)}

    def mlp(f):
        return dict(gate_up=(d, 2, f), down=(f, d))

    attention = dict(q_down=(d, q), q_norm=(q,), q_up=(q, h, n + r), out=(h, u, d))
    attention |= dict(kv_down=(d, c + r), kv_norm=(c,), k_up=(c, h, n), v_up=(c, h, u))
    layer = dict(attention=attention, attention_norm=(d,), ffn_norm=(d,))
    ffn = draw(dict(router=(d, e), shared=mlp(config.n_shared_experts * f)), sparse)
    ffn |= draw(mlp(f), sparse, e) | dict(router_bias=jnp.zeros((sparse, e)))
    params = draw(dict(embedding=(v, d), head=(v, d), final_norm=(d,)))
    params["dense_layers"] = draw(layer | dict(ffn=mlp(config.intermediate_size)), dense)
    params["moe_layers"] = draw(layer, sparse) | dict(ffn=ffn)
    return params


def rms_norm(w, x):  # models/layers.py
    """Return x / sqrt(mean(x^2) + epsilon), times a learned scale (arXiv:1910.07467)."""
    return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6) * w["scale"]


def rotate(x_bthr, theta):  # ops/rope.py
    """Turn pair z, numbers z and z + r / 2, of token t by t theta^(-2z / r) (arXiv:2104.09864)."""
    t, r = x_bthr.shape[1], x_bthr.shape[-1]
    angle_t1z = jnp.arange(t)[:, None, None] * theta ** (-jnp.arange(0, r, 2) / r)
    cos, sin = jnp.cos(angle_t1z), jnp.sin(angle_t1z)
    # In print, pair z is numbers 2z and 2z + 1. This is another order of the columns of weights
    x_bthz, y_bthz = jnp.split(x_bthr, 2, axis=-1)
    return jnp.concatenate([x_bthz * cos - y_bthz * sin, y_bthz * cos + x_bthz * sin], axis=-1)


def attention(config, w, x_btd):  # models/mla.py
    """Multi-head latent attention (V3, section 2.1.1). A cache would have c_kv and k_rope only."""
    n, r, t = config.qk_nope_head_dim, config.qk_rope_head_dim, x_btd.shape[1]
    # Both latents are normed, as section 4.2 says; eqs. 1 and 6 do not
    c_q_btq = rms_norm(w["q_norm"], x_btd @ w["q_down"])  # eq. 6
    q_bthx = jnp.einsum("btq,qhx->bthx", c_q_btq, w["q_up"])  # eqs. 7-8, x: n + r
    q_bthn, q_rope_bthr = jnp.split(q_bthx, [n], axis=-1)
    q_rope_bthr = rotate(q_rope_bthr, config.rope_theta)  # eq. 8
    c_kv_bsc, k_rope_bsr = jnp.split(x_btd @ w["kv_down"], [config.kv_lora_rank], axis=-1)
    c_kv_bsc = rms_norm(w["kv_norm"], c_kv_bsc)  # eq. 1
    k_rope_bsr = rotate(k_rope_bsr[:, :, None], config.rope_theta)[:, :, 0]  # eq. 3
    k_bshn = jnp.einsum("bsc,chn->bshn", c_kv_bsc, w["k_up"])  # eq. 2
    v_bshu = jnp.einsum("bsc,chu->bshu", c_kv_bsc, w["v_up"])  # eq. 5
    # Eqs. 4 and 9: a head's dot product is that of both parts, and all heads share k_rope
    scores_bhts = jnp.einsum("bthn,bshn->bhts", q_bthn, k_bshn)
    scores_bhts += jnp.einsum("bthr,bsr->bhts", q_rope_bthr, k_rope_bsr)
    weights_bhts = jax.nn.softmax(scores_bhts / (n + r) ** 0.5, where=jnp.tri(t, dtype=bool))
    return jnp.einsum("bhts,bshu,hud->btd", weights_bhts, v_bshu, w["out"])  # eqs. 10-11


def mlp(w, x_btd):  # models/layers.py
    """SwiGLU: W_down (silu(W_gate x) * W_up x) (arXiv:2002.05202)."""
    gate_btf, up_btf = jnp.einsum("btd,dzf->zbtf", x_btd, w["gate_up"])  # z: gate, up
    return (jax.nn.silu(gate_btf) * up_btf) @ w["down"]


def route(config, w, x_btd):  # ops/routing.py
    """Choose experts by affinity plus bias, and weigh them by affinity (V3, section 2.1.2)."""
    affinity_bte = jax.nn.sigmoid(x_btd @ w["router"])  # eq. 15
    # Few groups of experts are open to a token. A group scores by its best two experts, as in the
    # released code; in print a node does by its best K_r / M. x: expert of a group, z: open group
    choice_btgx = (affinity_bte + w["router_bias"]).reshape(*x_btd.shape[:2], config.n_group, -1)
    open_btz = jax.lax.top_k(jax.lax.top_k(choice_btgx, 2)[0].sum(-1), config.topk_group)[1]
    open_btg1 = jax.nn.one_hot(open_btz, config.n_group, dtype=bool).any(-2)[..., None]
    choice_bte = jnp.where(open_btg1, choice_btgx, -jnp.inf).reshape(affinity_bte.shape)
    experts_bta = jax.lax.top_k(choice_bte, config.num_experts_per_tok)[1]
    chosen_bte = jax.nn.one_hot(experts_bta, config.n_routed_experts).sum(-2)
    gate_bte = affinity_bte * chosen_bte  # eq. 16
    gate_bte /= gate_bte.sum(-1, keepdims=True)  # eq. 13; the factor is the released code's
    return chosen_bte, config.routed_scaling_factor * gate_bte


def moe(config, w, x_btd):  # models/moe.py
    """shared(x) + sum_e weight_e expert_e(x) (V3, eq. 12): -> (y_btd, chosen_bte)."""
    chosen_bte, weights_bte = route(config, w, x_btd)
    # Every expert runs on every token, and the weight is 0 where the token did not choose it
    y_ebtd = jax.vmap(mlp, (0, None))({"gate_up": w["gate_up"], "down": w["down"]}, x_btd)
    return mlp(w["shared"], x_btd) + jnp.einsum("bte,ebtd->btd", weights_bte, y_ebtd), chosen_bte


def forward(config, params, tokens_bt):  # models/decoder.py
    """Run x += attention(norm(x)), x += ffn(norm(x)), by layer: -> (logits_btv, chosen_lbte)."""
    x_btd, dense = params["embedding"][tokens_bt], config.first_k_dense_replace
    chosen: list[jax.Array] = []
    for i in range(config.num_hidden_layers):
        stack, at = ("dense_layers", i) if i < dense else ("moe_layers", i - dense)
        w = jax.tree.map(lambda leaf, at=at: leaf[at], params[stack])
        x_btd += attention(config, w["attention"], rms_norm(w["attention_norm"], x_btd))
        y_btd = rms_norm(w["ffn_norm"], x_btd)
        if i < dense:
            x_btd += mlp(w["ffn"], y_btd)
        else:
            y_btd, chosen_bte = moe(config, w["ffn"], y_btd)
            x_btd, chosen = x_btd + y_btd, [*chosen, chosen_bte]
    return rms_norm(params["final_norm"], x_btd) @ params["head"].T, jnp.stack(chosen)


@jax.jit(static_argnums=0)
def token_logprobs(config, params, tokens_bt):  # ops/logprobs.py
    """Return log p of each token but the first, in nats: -> ([b t-1], chosen of `forward`)."""
    logits_btv, chosen_lbte = forward(config, params, tokens_bt[:, :-1])
    logprobs_btv = jax.nn.log_softmax(logits_btv)
    return jnp.take_along_axis(logprobs_btv, tokens_bt[:, 1:, None], -1)[..., 0], chosen_lbte


def next_token_loss(config, params, batch):  # losses/next_token.py
    """-mean(log p) over the tokens under the mask."""
    logprobs_bt, chosen_lbte = token_logprobs(config, params, batch["tokens"])
    return -logprobs_bt.mean(where=batch["mask"]), chosen_lbte


def grpo_loss(config, params, batch):  # losses/grpo.py
    """-min(ratio A, clip(ratio) A) + beta KL, averaged over tokens, then texts (GRPO, eq. 3)."""
    logprobs_bt, chosen_lbte = token_logprobs(config, params, batch["tokens"])
    ratio_bt, a_b1 = jnp.exp(logprobs_bt - batch["old_logprobs"]), batch["advantages"][:, None]
    gain_bt = jnp.minimum(ratio_bt * a_b1, jnp.clip(ratio_bt, 1 - CLIP, 1 + CLIP) * a_b1)
    log_ref_bt = batch["ref_logprobs"] - logprobs_bt
    kl_bt = jnp.exp(log_ref_bt) - log_ref_bt - 1  # eq. 4
    return (KL * kl_bt - gain_bt).mean(-1, where=batch["mask"]).mean(), chosen_lbte


def group_advantages(rewards_ip):  # losses/advantages.py
    """(r - mean) / std among the answers to a question (GRPO, 4.1.2): no network of values."""
    # The paper does not define the std. With 1e-6, a group of equal rewards gets 0
    return ((rewards_ip - rewards_ip.mean(0)) / (rewards_ip.std(0, ddof=1) + 1e-6)).reshape(-1)


@jax.jit(static_argnums=(0, 1, 2))
def update(config, optimizer, loss_fn, params, state, batch):  # training/update.py
    """A step of Adam, and one of the bias, which has no gradient: -> (params, state, loss)."""
    (loss, chosen_lbte), grads = jax.value_and_grad(loss_fn, 1, has_aux=True)(config, params, batch)
    updates, state = optimizer.update(grads, state)
    params = optax.apply_updates(params, updates)
    load_le = jnp.einsum("lbte,bt->le", chosen_lbte, batch["mask"])  # V3, section 2.1.2
    step_le = BIAS_SPEED * jnp.sign(load_le.mean(-1, keepdims=True) - load_le)
    params["moe_layers"]["ffn"]["router_bias"] += step_le
    return params, state, loss


@jax.jit(static_argnums=(0, 3))
def sample(config, params, rows_bt, start, temperature, rng):  # rollout/engine.py
    """Draw from softmax(logits / T) by argmax(logits + T Gumbel noise), from column `start` on."""

    def write(t, rows_bt):
        logits_bv = forward(config, params, rows_bt)[0][:, t - 1]
        noise_bv = jax.random.gumbel(jax.random.fold_in(rng, t), logits_bv.shape)
        drawn_b = jnp.argmax(logits_bv + temperature * noise_bv, -1)
        return rows_bt.at[:, t].set(jnp.where(rows_bt[:, t - 1] == END, END, drawn_b))

    return jax.lax.fori_loop(start, rows_bt.shape[1], write, rows_bt)


def encode(texts):  # data/tokenizer.py
    """Texts as rows of LONGEST token ids."""
    return jnp.array([[CHARACTERS.index(c) for c in text.ljust(LONGEST, ".")] for text in texts])


def corpus_batch(rng, questions):  # worlds/arithmetic/corpus.py
    """Texts like the web's: 3 in 4 answer at once, seldom rightly; the others show their work."""
    texts = []
    for a, b, c in questions:
        first = a + b + rng.choice([0] * 9 + [1])
        answers = [f"{a + b + c + rng.randint(-2, 2)}"] * 3 + [f"{first}+{c}={first + c}"]
        texts.append(f"{a}+{b}+{c}=" + rng.choice(answers))
    return {"tokens": encode(texts), "mask": encode(texts)[:, :-1] != END}


def answer(rng, questions, params):  # rollout/answers.py
    """Sample an answer to each question: -> (rows_bt, texts, rewards_b). A right sum earns 1."""
    prompts_bt, key = encode(["{}+{}+{}=".format(*q) for q in questions]), rng.getrandbits(32)
    rows_bt = sample(Config, params, prompts_bt, START, 1.0, jax.random.key(key))
    texts = ["".join(CHARACTERS[i] for i in row).split(".")[0] for row in rows_bt.tolist()]
    right = [x.rpartition("=")[2] == str(sum(q)) for x, q in zip(texts, questions, strict=True)]
    return rows_bt, texts, jnp.array(right, float)


def group_batch(rng, questions, params, reference):  # reinforce/groups.py
    """Sample 8 answers to each question, and compare each with the others of its question."""
    rows_bt, _, rewards_b = answer(rng, questions * 8, params)
    return {
        "tokens": rows_bt,
        "mask": (rows_bt[:, :-1] != END) & (jnp.arange(LONGEST - 1) >= START - 1),
        "advantages": group_advantages(rewards_b.reshape(8, -1)),
        "old_logprobs": token_logprobs(Config, params, rows_bt)[0],
        "ref_logprobs": token_logprobs(Config, reference, rows_bt)[0],
    }


def report(name, step, loss, params, questions):  # evaluation/held_out.py
    """Print answers of the model to held-out questions: -> the share that is right."""
    _, texts, rewards_b = answer(random.Random(0), questions * 8, params)
    print(f"{name} {step}: loss {loss:.3f}, {rewards_b.mean():.0%} right:", *texts[:4], flush=True)
    return float(rewards_b.mean())


def learn(steps=4000, rounds=80):  # recipes/grpo/run.py
    """Pre-train, then reinforce: -> the share of held-out sums that are right, after each."""
    rng, params = random.Random(0), init(Config, jax.random.key(0))
    questions = [(i // 81 + 1, i // 9 % 9 + 1, i % 9 + 1) for i in rng.sample(range(729), 729)]
    held_out, questions = questions[:100], questions[100:]
    clip, decay = optax.clip_by_global_norm(1.0), optax.cosine_decay_schedule
    optimizer = optax.chain(clip, optax.adam(decay(4e-3, steps), b2=0.95))  # V3 adds weight decay
    state = optimizer.init(params)
    for step in range(1, steps + 1):
        batch = corpus_batch(rng, rng.choices(questions, k=32))
        params, state, loss = update(Config, optimizer, next_token_loss, params, state, batch)
        if step in (1, steps // 4, steps):
            pretrained = report("Pre-training step", step, loss, params, held_out)
    reference, optimizer = params, optax.chain(clip, optax.adam(decay(1e-3, 2 * rounds), b2=0.95))
    state = optimizer.init(params)
    for step in range(1, rounds + 1):
        batch = group_batch(rng, rng.choices(questions, k=32), params, reference)
        for _ in range(2):  # the ratio is 1 in the first, and may be clipped in the second
            params, state, loss = update(Config, optimizer, grpo_loss, params, state, batch)
        if step in (1, rounds // 4, rounds):
            reinforced = report("GRPO step", step, loss, params, held_out)
    return pretrained, reinforced


if __name__ == "__main__":
    with jax.default_matmul_precision("highest"):  # a TPU would round operands
        learn()

# Its output with JAX 0.12: the share of 800 answers to held-out questions that is right, and four
# Pre-training step 1: loss 2.977, 0% right: 5+8+8=+53 6+3+8=12+3+=+1 1+5+6=6=134+ 4+3+5==1
# Pre-training step 1000: loss 0.764, 28% right: 5+8+8=20 6+3+8=19 1+5+6=14 4+3+5=11
# Pre-training step 4000: loss 0.712, 32% right: 5+8+8=20 6+3+8=16 1+5+6=6+6=12 4+3+5=11
# GRPO step 1: loss -0.025, 41% right: 5+8+8=19 6+3+8=16 1+5+6=6+6=12 4+3+5=11
# GRPO step 20: loss 0.002, 82% right: 5+8+8=14+8=21 6+3+8=9+8=17 1+5+6=6+6=12 4+3+5=7+5=12
# GRPO step 80: loss 0.026, 91% right: 5+8+8=13+8=21 6+3+8=9+8=17 1+5+6=6+6=12 4+3+5=7+5=12
