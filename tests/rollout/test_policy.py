"""Policy: prompts, answers, and the check that both fit the model's positions."""

import dataclasses

import jax
import numpy as np
import pytest

from deepseek_jax.checkpoint import save_hf, save_orbax
from deepseek_jax.checkpoint.locate import smollm2_gguf
from deepseek_jax.data.chat import render_prompt
from deepseek_jax.data.read_tokenizer import load_tokenizer
from deepseek_jax.parallel import make_mesh
from deepseek_jax.rollout import AnswerOptions, Policy, generate, load_policy, policy
from deepseek_jax.rollout.completions import RolloutLog, empty_rollout
from deepseek_jax.rollout.policy import (
    RECORD,
    Source,
    check_room,
    check_vocabulary,
    described_policy,
    ending_turns,
    find_source,
    fitting,
)
from deepseek_jax.rollout.settings import Limit
from deepseek_jax.worlds.arithmetic.tokenizer import arithmetic_tokenizer
from tests.tiny import tiny_model

TEMPLATE = "{question}\n"
QUESTIONS = [{"question": "What is 1 + 2?"}, {"question": "What is 3 + 4 + 5?"}]


def tiny_policy(kind="gqa"):
    config, params = tiny_model(kind)
    return Policy(config, params, arithmetic_tokenizer(), TEMPLATE)


def test_prompts_are_the_questions_in_the_template_and_the_opening_ends_them():
    """Oracle: data.chat.render_prompt, and the opening's own tokens."""
    policy = dataclasses.replace(tiny_policy(), opening="1 + ")
    plain = render_prompt(policy.tokenizer, QUESTIONS[0]["question"], template=TEMPLATE)
    (prompt, _) = policy.with_prompts(QUESTIONS)
    assert prompt["prompt_ids"] == [*plain, *policy.tokenizer.encode("1 + ")]
    assert prompt["question"] == QUESTIONS[0]["question"] and "prompt_ids" not in QUESTIONS[0]


def test_answers_are_the_engines_up_to_where_they_end():
    """Oracle: rollout.generate with the options one by one, decoded by hand without the ends."""
    policy = tiny_policy()
    asked = policy.with_prompts(QUESTIONS)
    options = AnswerOptions(max_completion_length=6, temperature=0.8, top_p=0.9, slots=3)
    answers = policy.answer(asked, options, n=3, seed=5)
    out = generate(
        policy.config,
        policy.params,
        [example["prompt_ids"] for example in asked],
        n=3,
        max_completion_length=6,
        temperature=0.8,
        top_p=0.9,
        eos_ids=(policy.tokenizer.eos_id,),
        seed=5,
        slots=3,
    )
    np.testing.assert_array_equal(answers.rollout.completion_ids, out.completion_ids)
    ends, rows = (
        {policy.tokenizer.eos_id},
        zip(out.completion_ids, out.completion_mask, strict=True),
    )
    decode = policy.tokenizer.decode
    assert list(answers.texts) == [
        decode([i for i in ids[m].tolist() if i not in ends]) for ids, m in rows
    ]
    wanted = [list(answers.texts[:3]), list(answers.texts[3:])]
    assert list(map(list, answers.groups())) == wanted
    np.testing.assert_array_equal(answers.lengths(), out.completion_mask.sum(1).reshape(2, 3))


def test_an_answer_ends_at_the_tokenizers_end_and_at_the_models():
    """Oracle: by hand: both are ends, and a chat template's end of a turn becomes one."""
    config, params = tiny_model("gqa")
    policy = Policy(
        dataclasses.replace(config, eos_token_id=(7, 8)), params, arithmetic_tokenizer(), ""
    )
    assert policy.eos_ids == (policy.tokenizer.eos_id, 7, 8)
    chat = load_tokenizer(smollm2_gguf())
    (end,) = chat.encode("<|im_end|>")
    assert ending_turns(dataclasses.replace(config, eos_token_id=7), chat, "chat").eos_ids == (
        7,
        end,
    )


def test_a_saved_policy_is_read_with_a_tokenizer_and_run_as_asked(tmp_path):
    """Oracle: the parameters that were saved, the dtype that was asked for, and the message without a
    tokenizer.
    """
    config, params = tiny_model("mla_moe")
    save_orbax(tmp_path / "params", config, params)
    mesh, how = (
        make_mesh(data=1, devices=jax.devices()[:1]),
        dict(dtype="bfloat16", remat="full"),
    )
    options = dict(template=TEMPLATE, tokenizer=arithmetic_tokenizer())
    policy = load_policy(tmp_path / "params", how, mesh, **options)
    ends = (policy.tokenizer.eos_id,)
    assert policy.config == dataclasses.replace(
        config, dtype="bfloat16", remat="full", eos_token_id=ends
    )
    same = jax.tree.map(lambda x, y: bool((x == y.astype(x.dtype)).all()), policy.params, params)
    assert all(jax.tree.leaves(same)) and policy.params["embedding"].dtype == "bfloat16"
    trained = load_policy(tmp_path / "params", how, mesh, **options, trained=True)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(trained.params)} == {"float32"}
    (device,) = load_policy(tmp_path / "params", how, **options).params["embedding"].devices()
    assert device == jax.local_devices()[0]
    with pytest.raises(ValueError, match="^no tokenizer in .*/params: none of tokenizer.json"):
        load_policy(tmp_path / "params", how, mesh, template=TEMPLATE)


def test_a_described_policy_ends_turns_where_it_has_a_template_for_them(tmp_path):
    """Oracle: by hand: a chat template's end of a turn; without a template, the ends of the model alone."""
    chat = described_policy(smollm2_gguf())
    (end,) = chat.tokenizer.encode("<|im_end|>")
    assert chat.template == "chat" and end in chat.eos_ids
    config, params = tiny_model("gqa")
    save_orbax(tmp_path / "params", dataclasses.replace(config, eos_token_id=(7,)), params)
    plain = described_policy(tmp_path / "params", tokenizer=arithmetic_tokenizer())
    assert plain.template == "chat" and plain.config.eos_token_id == (7,)


@pytest.mark.parametrize(
    "fields, words",
    [
        (dict(vocab_size=20), r"^model.vocab_size=20 is below the tokenizer's \d+"),
        (
            dict(eos_token_id=(1, 64)),
            r"^model.eos_token_id=\(1, 64\) is not within .*vocab_size=64",
        ),
        (dict(eos_token_id=(-1,)), r"^model.eos_token_id=\(-1,\) is not within"),
    ],
)
def test_tokens_that_the_model_does_not_have_are_refused(fields, words):
    """Oracle: the fields by hand; the model as it is passes."""
    config, tokenizer = tiny_model("gqa")[0], arithmetic_tokenizer()
    config = dataclasses.replace(config, vocab_size=64, eos_token_id=(1,))
    check_vocabulary(config, tokenizer)
    with pytest.raises(ValueError, match=words):
        check_vocabulary(dataclasses.replace(config, **fields), tokenizer)


def test_prompts_that_are_too_long_are_counted_and_none_that_fits_is_an_error(capsys):
    """Oracle: by hand, of prompts of two and three tokens."""
    examples = [{"prompt_ids": [1, 2]}, {"prompt_ids": [1, 2, 3]}]
    assert fitting(examples, 2, "training") == examples[:1]
    assert "1 of 2 training prompts are longer than 2 tokens: left out" in capsys.readouterr().out
    assert fitting(examples, 3, "training") == examples and capsys.readouterr().out == ""
    with pytest.raises(
        ValueError, match="^max_prompt_length=1 is below all 2 training prompts; .* 2 tok"
    ):
        fitting(examples, 1, "training")


def test_examples_of_one_question_stay_or_go_together(capsys):
    """Oracle: by hand: of the second pair one prompt is too long, and each pair has one of three tokens."""
    examples = [{"prompt_ids": [0] * length} for length in (2, 3, 2, 4, 3, 1)]
    assert fitting(examples, 3, "training", together=2) == examples[:2] + examples[4:]
    assert "2 of 6 training prompts are longer than 3 tokens: left out" in capsys.readouterr().out
    with pytest.raises(ValueError, match="^max_prompt_length=2 is below all 6 .* has 3 tokens"):
        fitting(examples, 2, "training", together=2)


def test_the_longest_prompt_and_answer_have_to_have_positions():
    """Oracle: by hand: 128 positions, of which the prompt takes three."""
    config, _ = tiny_model("gqa")
    examples = [{"prompt_ids": [1, 2, 3]}, {"prompt_ids": [1]}]
    check_room(config, examples, 125)
    with pytest.raises(ValueError, match="^max_completion_length=126 .* lower it to 125 or less"):
        check_room(config, examples, 126)


@pytest.mark.parametrize("saved_by", ["save_hf", "save_orbax"])
def test_another_architecture_is_refused_before_parameters_are_read(
    tmp_path, monkeypatch, saved_by
):
    """Oracle: the words a reader needs, from a folder whose parameters cannot be read; the architecture of
    the checkpoint itself passes the check and fails at them.
    """
    config, params = tiny_model("gqa")
    tokenizer = arithmetic_tokenizer()
    if saved_by == "save_hf":
        save_hf(tmp_path / "saved", config, params)
        (weights,) = (tmp_path / "saved").glob("*.safetensors")
        weights.write_bytes(b"")
        monkeypatch.setattr(policy, "load_tokenizer", lambda path: tokenizer)
    else:
        save_orbax(tmp_path / "saved", config, params)
        for file in (tmp_path / "saved" / "params").rglob("*"):
            if file.is_file() and file.parent.name == "d":
                file.write_bytes(b"")
    block = {name: value for name, value in dataclasses.asdict(config).items() if value is not None}
    how = dict(template=TEMPLATE, tokenizer=tokenizer)
    mesh = make_mesh(devices=jax.devices()[:1])
    words = "has hidden_size=24, and model.hidden_size=48 names another architecture"
    with pytest.raises(ValueError, match=words):
        load_policy(tmp_path / "saved", block | dict(hidden_size=48), mesh, **how)
    with pytest.raises(Exception) as error:
        load_policy(tmp_path / "saved", block, mesh, **how)
    assert "names another" not in str(error.value)


def test_questions_are_asked_where_their_prompts_are_within_the_limit(capsys):
    """Oracle: by hand, of prompts of two lengths: all without a limit, one question at a time within it, or
    both together; none beyond the positions.
    """
    policy = tiny_policy()
    lengths = [len(example["prompt_ids"]) for example in policy.with_prompts(QUESTIONS)]
    assert lengths[0] < lengths[1] < 100
    assert policy.with_fitting_prompts(QUESTIONS, Limit(5)) == policy.with_prompts(QUESTIONS)
    assert policy.with_fitting_prompts(QUESTIONS, Limit(5, lengths[0])) == policy.with_prompts(
        QUESTIONS[:1]
    )
    assert "of 2 training prompts" in capsys.readouterr().out
    assert len(policy.with_fitting_prompts(QUESTIONS, Limit(5, lengths[1]), together=2)) == 2
    with pytest.raises(ValueError, match="is below all 2 held-out prompts"):
        policy.with_fitting_prompts(QUESTIONS, Limit(5, lengths[0]), "held-out", together=2)
    with pytest.raises(ValueError, match="^max_completion_length=128"):
        policy.with_fitting_prompts(QUESTIONS, Limit(128))


def test_an_answer_is_asked_for_with_the_policys_ends_and_the_options(monkeypatch):
    """Oracle: the arguments of generate, by hand; without words one answer of seed 0."""
    asked = []
    rollout = empty_rollout(1, 4)
    monkeypatch.setattr(
        policy, "generate", lambda *given, **more: asked.append((given, more)) or rollout
    )
    own = tiny_policy()
    options = AnswerOptions(
        max_completion_length=4, temperature=0.5, top_p=0.9, top_k=3, slots=7, speculative=True
    )
    answers = own.answer([{"prompt_ids": [1, 2]}], options)
    ((given, more),) = asked
    assert given == (own.config, own.params, [[1, 2]]) and answers.rollout is rollout
    assert isinstance(more.pop("log"), RolloutLog)
    assert more == dict(
        n=1, max_completion_length=4, temperature=0.5, top_p=0.9, top_k=3, eos_ids=own.eos_ids,
        seed=0, slots=7, speculative=True,
    )  # fmt: skip
    assert answers.n == 1 and answers.prompts == [[1, 2]]


def test_an_adapter_is_read_beside_its_base(monkeypatch, tmp_path):
    """Oracle: by hand: a base of the hub and one on disk; a run's folder carries the tokenizer itself; a base
    that is gone is named.
    """
    monkeypatch.setattr(policy, "is_adapter", lambda path: path.name == "adapter")
    monkeypatch.setattr(policy, "adapter_base", lambda path: names[0])
    adapter, base = tmp_path / "adapter", tmp_path / "base"
    adapter.mkdir()
    names = ["owner/name@0123"]
    monkeypatch.setattr(policy, "hub_id", lambda path: "owner/name" if "@" in str(path) else None)
    monkeypatch.setattr(policy, "pinned", lambda path, what: path)
    assert find_source("owner/name@0123") == Source("owner/name@0123", None, "owner/name@0123")
    assert find_source(adapter) == Source("owner/name@0123", adapter, "owner/name@0123")
    names[0] = str(base)
    with pytest.raises(ValueError, match="was trained beside .*/base, which is not there"):
        find_source(adapter)
    base.mkdir()
    assert find_source(base) == Source(base, None, base)
    assert find_source(adapter) == Source(base, adapter, base)
    (adapter / RECORD).write_text("{}")
    assert find_source(adapter) == Source(base, adapter, adapter)
