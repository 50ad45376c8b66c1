"""Mistakes that were once noticed late or never, and more of each kind; see bad_inputs.py."""

import os

from tests.reliability.bad_checkpoints import CONVERT, TUNE, tuned
from tests.reliability.bad_configs import PACKED
from tests.reliability.bad_data import GRPO, PREFERENCES, PRETRAIN, SFT, TALK
from tests.reliability.bad_flags import SWEEP
from tests.reliability.goods import (
    both,
    config_file,
    copied,
    fields,
    lines,
    replaced,
    swept,
    without,
    write,
)

MANY = 5_000_000
USER = {"role": "user", "content": "1?"}
# A safetensors file: the length of the header, 2
HEADER = (2).to_bytes(8, "little")
ADAPTER = "adapter={'rank':4,'alpha':8.0}"


def pipe(name):
    """prepare: a pipe that nobody writes to."""

    def prepare(good, here):
        (here / name).parent.mkdir(exist_ok=True)
        os.mkfifo(here / name)

    return prepare


def link_to_itself(name):
    """prepare: a link that leads nowhere."""
    return lambda good, here: (here / name).symlink_to(name)


def appended(pattern, tail):
    """A change of a folder: bytes at the end of a file."""

    def change(folder):
        (path,) = folder.glob(pattern)
        path.write_bytes(path.read_bytes() + tail)

    return change


def as_folder(name):
    """A change of a folder: a folder in the place of a file."""

    def change(folder):
        (folder / name).unlink()
        (folder / name).mkdir()

    return change


def twice(name, pair):
    """A change of a folder: a JSON object that begins with this text."""

    def change(folder):
        path = folder / name
        path.write_text(path.read_text().replace("{", "{" + pair + ", ", 1))

    return change


def of_fields(table):
    """Cases of a table of overrides."""
    return [
        (f"{command} --config.{override}", f"config.{message}")
        for command, rows in table.items()
        for override, message in rows
    ]


# What was noticed after stages of training, or never
CHOICES = {
    "train sft_small": [
        (
            "checkpoints.best=nope",
            "checkpoints.best='nope' is not a metric that says how good a checkpoint is; allowed:",
        ),
        (
            "checkpoints.best=held_out_los",
            "checkpoints.best='held_out_los' is not a metric that says how good a checkpoint is; did",
        ),
        ("answers.temperature=0", "answers.temperature=0.0 must be within 0.001..100.0"),
    ],
    "train grpo_small": [
        (
            "loss.clip_eps=1",
            "loss.clip_eps=1.0 leaves ratios no lower bound, as 1 - clip_eps is not above 0; set it",
        ),
        (
            "loss.clip_eps=2.5",
            "loss.clip_eps=2.5 leaves ratios no lower bound, as 1 - clip_eps is not above 0; set it",
        ),
        (
            "rollout.temperature=((0,1.0),(5,1e30))",
            "rollout.temperature[1][1]=1e+30 must be within 0.001..100.0",
        ),
        (
            "checkpoints.best=rewrad",
            "checkpoints.best='rewrad' is not a metric that says how good a checkpoint is; did you",
        ),
    ],
    "train pretrain_small": [
        (
            "stages.stage_1.checkpoints={'best':'nope'}",
            "stages.stage_1.checkpoints.best='nope' is not a metric that says how good a checkpoint",
        )
    ],
    "train distill_small": [
        (
            "students.llama.loss.temperature=0",
            "students.llama.loss.temperature=0.0 must be within 0.001..100.0",
        ),
        (
            "students.llama.checkpoints={'best':'nope'}",
            "students.llama.checkpoints.best='nope' is not a metric that says how good a checkpoint",
        ),
    ],
    "train r1_small": [
        (
            "reasoning.loss.clip_eps=3",
            "reasoning.loss.clip_eps=3.0 leaves ratios no lower bound, as 1 - clip_eps is not above",
        ),
        (
            "scenarios.checkpoints={'best':'nope'}",
            "scenarios.checkpoints.best='nope' is not a metric that says how good a checkpoint is;",
        ),
    ],
    "train reward_model_small": [
        (
            "checkpoints={'best':'margn'}",
            "checkpoints.best='margn' is not a metric that says how good a checkpoint is; did you",
        )
    ],
}

MUON = "optimizer.kind='muon' trains whole matrices, and with an adapter none is trained; set it"
LATE = [
    *of_fields(CHOICES),
    (f"train sft_small --config.{ADAPTER} --config.optimizer.kind=muon", f"config.{MUON}"),
    (f"train grpo_small --config.{ADAPTER} --config.optimizer.kind=muon", f"config.{MUON}"),
    (
        f"train distill_small --config.students.llama.{ADAPTER} "
        "--config.students.llama.optimizer.kind=muon",
        f"config.students.llama.{MUON}",
    ),
    (
        "train sft_small --wandb=toys",
        "--wandb=toys: No API key configured...; run `wandb login`, or set",
    ),
    (
        "train grpo_small --wandb=us/toys",
        "--wandb=us/toys: No API key configured...; run `wandb login`",
    ),
    (
        "train v32_small",
        "config.init_from='runs/pretrain_small' is not there yet; make it with: python "
        "launch/train.py --config=pretrain_small",
    ),
    (
        "train v32_small --config.init_from=runs/grpo_small_seed=1/params",
        "config.init_from='runs/grpo_small_seed=1/params' is not there yet; make it with: python "
        "launch/train.py --config=grpo_small",
    ),
    (
        "train distill_small:teacher=runs/r1_small/scenarios/params",
        "config.teacher.path='runs/r1_small/scenarios/params' is not there yet; make it with: ...r1_small",
    ),
    (
        "train sft_small --config.xla_flags=--xla_nope=1",
        "XLA_FLAGS=--xla_nope=1...: Unknown flag in XLA_FLAGS: --xla_nope=1; correct config.xla_flags",
    ),
]

# What a device cannot hold. A number of bytes is that of this machine
TOO_LARGE = (
    "does not fit in a device's ... GiB: parameters and optimizer state take ... GiB, the batch ..."
)
MODEL, ROWS = "lower the sizes of config.model", "such as batch_size"
LARGE = [
    *(
        (f"train sft_small --config.{field}", f"config.base: 'pretrain' {TOO_LARGE}...{MODEL}")
        for field in (
            "model.hidden_size=1000000",
            "model.intermediate_size=1000000000",
            "model.moe_intermediate_size=1000000000",
            "model.vocab_size=2000000000",
        )
    ),
    *(
        (f"train {name} --config.{field}", f"config{path} {TOO_LARGE}...{ROWS}")
        for name, field, path in (
            ("sft_small", "batch_size=1000000000", ": 'update'"),
            ("sft_small", "base.batch_size=800000000", ".base: 'pretrain'"),
            ("grpo_small", "prompts_per_step=2000000000", ": 'update'"),
            ("grpo_small", "group_size=1000000000", ": 'update'"),
            ("reward_model_small", "batch_size=800000000", ": 'update'"),
            (
                "distill_small",
                "students.llama.batch_size=800000000",
                ".students.llama: 'llama: update'",
            ),
            ("r1_small", "reasoning.prompts_per_step=1600000000", ".reasoning: 'reasoning: score'"),
        )
    ),
    (
        "train sft_small --config.model.vocab_size=100000000000",
        "config.model.vocab_size=100000000000 must be",
    ),
    (
        "generate generate_small --config.model.hidden_size=1000000",
        f"config.base: 'pretrain' {TOO_LARGE}...{MODEL}",
    ),
]

ENDLESS = "is a pipe or a device, and may never end; write it to a file first"
PIPES = [
    (SFT, f"config.data: bad.jsonl {ENDLESS}", pipe("bad.jsonl")),
    (GRPO, f"config.data: bad.jsonl {ENDLESS}", pipe("bad.jsonl")),
    (PRETRAIN, f"config.data.sources: bad.jsonl {ENDLESS}", pipe("bad.jsonl")),
    (PREFERENCES, f"config.data: bad.jsonl {ENDLESS}", pipe("bad.jsonl")),
    (SFT.replace("bad.jsonl", "/dev/zero"), f"config.data: /dev/zero {ENDLESS}"),
    (GRPO.replace("bad.jsonl", "/dev/zero"), f"config.data: /dev/zero {ENDLESS}"),
    (SFT.replace("bad.jsonl", "/dev/null"), f"config.data: /dev/null {ENDLESS}"),
    (
        "evaluate --checkpoint=model --data=bad.jsonl",
        f"--data: bad.jsonl {ENDLESS}",
        both(copied("model"), pipe("bad.jsonl")),
    ),
    (
        "evaluate --checkpoint=model --data=arithmetic --against=pipe.json",
        f"--against: pipe.json is not the results of an evaluation: pipe.json {ENDLESS}",
        both(copied("model"), pipe("pipe.json")),
    ),
    (CONVERT + " --from=pipe.gguf", f"pipe.gguf {ENDLESS}", pipe("pipe.gguf")),
    ("train pipe.py", "--config=pipe.py: there is no such file; give the path", pipe("pipe.py")),
    (
        "sweep sft_small --sweep=pipe.py",
        "--sweep=pipe.py: there is no such file; give the path",
        pipe("pipe.py"),
    ),
    ("train sft_small", f"...w/config.json {ENDLESS}", pipe("w/config.json")),
    (SFT, "config.data.path='bad.jsonl' is not a file", link_to_itself("bad.jsonl")),
    ("train loop.py", "--config=loop.py: there is no such file", link_to_itself("loop.py")),
    (
        "train sft_small --workdir=loop",
        "--workdir=...loop cannot be a directory: ...; give another --workdir",
        link_to_itself("loop"),
    ),
]

ANSWER = '{"role": "assistant", "content": "1"}'
TWICE = [
    (
        SFT,
        "config.data: bad.jsonl, line 1 is not JSON: the key 'messages' is there twice; give {...} on",
        lines("bad.jsonl", '{"messages": [], "messages": []}'),
    ),
    (
        SFT,
        "config.data: bad.jsonl, line 2 is not JSON: the key 'role' is there twice; give {...} on",
        lines(
            "bad.jsonl",
            {"messages": TALK},
            f'{{"messages": [{{"role": "system", "role": "user", "content": "1?"}}, {ANSWER}]}}',
        ),
    ),
    *(
        (
            command,
            f"config.{field}: bad.jsonl, line 1 is not JSON: the key {key!r} is there twice",
            lines("bad.jsonl", line),
        )
        for command, field, key, line in (
            (GRPO, "data", "question", '{"question": "1?", "question": "2?", "answer": "#### 1"}'),
            (
                PREFERENCES,
                "data",
                "chosen",
                '{"prompt": "1?", "chosen": "5", "chosen": "6", "rejected": "7"}',
            ),
            (PRETRAIN, "data.sources", "text", '{"text": "a", "text": "b"}'),
        )
    ),
    (
        TUNE,
        "config.init_from: model/config.json is not JSON: the key 'hidden_size' is there twice; take another",
        tuned(twice("config.json", '"hidden_size": 16')),
    ),
    (
        CONVERT,
        "model/config.json is not JSON: the key 'vocab_size' is there twice; take another copy of it",
        copied("model", twice("config.json", '"vocab_size": 1')),
    ),
    (
        TUNE,
        "config.init_from: model/model.safetensors has 7 bytes that belong to none of its tensors; take",
        tuned(appended("*.safetensors", bytes(7))),
    ),
    (
        CONVERT,
        "model/model.safetensors has 4 bytes that belong to none of its tensors; take another copy of it",
        copied("model", appended("*.safetensors", b"more")),
    ),
]

# Command: (override, message after config.)
FIELDS = {
    "train sft_small": [
        ("num_steps=2147483648", "num_steps=2147483648 must be at least 1"),
        ("optimizer.momentum=0.5", "optimizer.momentum=0.5 is Muon's; set b1, or kind to 'muon'"),
        (
            "optimizer.warmup_steps=100000",
            "optimizer.warmup_steps=100000 must be below 80, the number of all updates",
        ),
        (
            "model.topk_group=9",
            "model.n_routed_experts=8 must be a multiple of n_group=4, and topk_group=9 at most",
        ),
        ("adapter=3", "adapter=3 (int) must be a block with fields rank, alpha, targets, quantize"),
        (
            "mesh={'nope':2}",
            "mesh.nope is not a field; allowed: slices, pipeline, data, fsdp, expert, context, tensor",
        ),
        ("mesh={'data':1.5}", "mesh.data=1.5 (float) must be an int"),
        ("mesh=3", "mesh=3 (int) must be a block"),
        (
            "base={}",
            "base lacks num_steps, optimizer, sequence_length, batch_size, num_documents; set",
        ),
        (
            "base.corpus=nope",
            "base.corpus='nope' is not a world's corpus; allowed: arithmetic, arithmetic_numbered,",
        ),
    ],
    "train grpo_small": [
        (
            "loss.ratio_cap=1.0",
            "loss.ratio_cap=1.0 must be above 1 + clip_eps_high = 1.2, which clips gains already,",
        ),
        (
            "loss.unbiased_kl=True",
            "loss.unbiased_kl=True, but kl_coef=0 has no KL; set kl_coef above 0",
        ),
        ("rewards={}", "rewards: there are none; give NAME=WEIGHT, NAME one of exact_answer"),
        ("rewards={'nope':1.0}", "rewards.nope=1.0 is not of a reward; allowed: exact_answer"),
        ("accuracy=nope", "accuracy='nope' is not one of rewards: correct, correct_reasoning"),
        (
            "rollout.top_k=1000",
            "rollout.top_k=1000 with top_p=1.0: an update keeps at most 128 candidates a token; set",
        ),
        (
            "rollout.top_p=0.9",
            "rollout.top_k=0 with top_p=0.9: an update keeps at most 128 candidates a token; set",
        ),
        (
            "minibatches=3",
            "prompts_per_step=16 does not split into minibatches=3 x micro_batches=1 whole groups;",
        ),
    ],
    PACKED: [
        (
            "init_from=model",
            "init_from: model/config.json does not exist; give a Hugging Face folder: config.json",
        )
    ],
    "train pretrain_small": [
        (
            "data.readers=3",
            "data.readers=3 does not divide the rows of a batch, stages.stage_1.batch_size=8; set",
        ),
    ],
    "train distill_small": [
        (
            "students.llama.start=nope",
            "students.llama.start='nope' is not one of starts; allowed: llama, qwen",
        ),
        (
            "students.llama.loss.weights={}",
            "students.llama.loss.weights={} leaves nothing to learn",
        ),
        (
            "students.llama.loss.weights={'sfot':1.0}",
            "students.llama.loss.weights.sfot=1.0 names no term; did you mean soft? allowed: soft,",
        ),
        ("students={}", "students={} is empty; give it at least one block"),
        (
            "comparisons={'x':('a','b')}",
            "comparisons['x']=('a', 'b'): 'a' is not a student; allowed: llama, qwen",
        ),
        (
            "world=nope",
            "world='nope' is not a world; allowed: arithmetic, word_arithmetic, bilingual",
        ),
    ],
}

NOT_HERE = "take another copy of it"
MORE = [
    *of_fields(FIELDS),
    (
        "train sft_small --config.eval_every=7 --config.log_every=2",
        "config.eval_every=7 falls on steps that are not logged; set it to a multiple of log_every=2",
    ),
    ("train sft_small --wandb=/", "--wandb=/ is not PROJECT or ENTITY/PROJECT"),
    ("train sft_small --profile=x:1", "--profile=x:1 is not STEP:COUNT"),
    ("train sft_small --watchdog_requeue --watchdog=0", "--watchdog_requeue needs a watchdog"),
    ("train sft_small --nostrict=3", "--nostrict=3 does not take an argument"),
    (
        "train sft_small --config=x",
        "--config=x is neither the path of a Python file nor a name; allowed: ",
    ),
    ("convert --from= --to=out", "config.json does not exist; give a Hugging Face folder"),
    ("evaluate --checkpoint= --data=arithmetic", "--checkpoint: config.json does not exist"),
    ("compare --context_length=0", "--context_length=0 must be at least 1"),
    ("compare --batch_size=x", "--batch_size=x must be a whole number"),
    *(
        (f"evaluate --checkpoint=model --data=arithmetic --{flag}", f"--{message}")
        for flag, message in (
            ("top_p=2", "top_p=2.0 must be above 0 and at most 1"),
            ("temperature=1e30", "temperature=1e+30 must be 0 or within 0.001..100.0"),
            ("temperature=1e-30", "temperature=1e-30 must be 0 or within 0.001..100.0"),
            ("save_every=0", "save_every=0 must be at least 1"),
            ("max_completion_length=0", "max_completion_length=0 must be at least 1"),
        )
    ),
    (
        "train sft_small --config.data.num_held_out=2000000000",
        "config.data: 1000000000 different questions",
    ),
    (
        "train sft_small --config.answers.num_prompts=2000000000",
        "config.answers.num_prompts=2000000000, and 256 held-out conversations fit a row; lower it",
    ),
    *(
        (
            f"train {name} --config.{path}rollout.{field}=2000000000",
            f"config.{path}rollout.{field}=2000000000 {message}",
        )
        for name, path in (("grpo_small", ""), ("r1_small", "reasoning."))
        for field, message in (
            ("max_completion_length", "leaves no room for a prompt in the model's"),
            ("max_prompt_length", "is beyond the model's max_position_embeddings="),
        )
    ),
    (
        f"{PACKED} --config.data.sources=()",
        "config.data.sources=() names no documents; give a path",
    ),
    (
        f"{PACKED} --config.data.sources=['nope.txt']",
        "config.data.sources='nope.txt' is not a file; set it to a jsonl, json, csv",
    ),
    *(
        (SFT, f"config.data: bad.jsonl, line 1{message}", lines("bad.jsonl", line))
        for line, message in (
            ({"messages": {"role": "user"}}, " has no list under 'messages'"),
            (
                {"messages": [USER | {"content": None}, TALK[1]]},
                ", message 1 has no text under 'content'",
            ),
            (
                {"messages": [USER | {"content": ["a"]}, TALK[1]]},
                ", message 1 has no text under 'content'",
            ),
            ({"messages": [{"content": "1?"}, TALK[1]]}, ", message 1 has no text under 'role'"),
            (
                {"messages": [USER, TALK[1] | {"role": "Assistant"}]},
                ", message 2 has the role 'Assistant'",
            ),
            ({"messages": TALK, "weight": "one"}, " has weight='one'; set a finite number above 0"),
            ({"messages": TALK, "weight": 1e400}, " has weight='inf'; set a finite number above 0"),
            ({"messages": TALK, "weight": -1}, " has weight=-1; set a finite number above 0"),
            ({"messages": TALK, "weight": None}, " has weight=None; set a finite number above 0"),
            ("null", " is not a JSON object; give {...} on each line"),
            ("[" * 100_000, " is not JSON: it is nested too deep; give {...} on each line"),
        )
    ),
    *(
        (
            SFT,
            "config.data: bad.jsonl, line 1 is not JSON: ...; give {...} on each line",
            write("bad.jsonl", text),
        )
        for text in (
            '{"messages": []}'.encode("utf-16"),
            b"{'messages': []}",
            b"messages: []",
        )
    ),
    # Windows' editors write a mark before the text
    (
        SFT,
        "config.data: bad.jsonl, line 1 is no conversation",
        write("bad.jsonl", b"\xef\xbb\xbf{}"),
    ),
    (
        GRPO,
        "config.data: bad.jsonl, line 1 has no text under 'question'",
        lines("bad.jsonl", {"question": ""}),
    ),
    (
        PREFERENCES,
        "config.data: bad.jsonl, line 1, chosen, message 1 is no object with role and content",
        lines("bad.jsonl", {"prompt": "1?", "chosen": ["5"], "rejected": "6"}),
    ),
    *(
        (
            TUNE,
            f"config.init_from: model/config.json{message}",
            tuned(fields("config.json", **{field: value})),
        )
        for field, value, message in (
            ("hidden_size", True, ": config.json.hidden_size=True (bool) must be an int"),
            ("hidden_size", 16.5, ": config.json.hidden_size=16.5 (float) must be an int"),
            ("hidden_size", -16, ": config.json.hidden_size=-16 must be at least 1"),
            ("vocab_size", 10**12, ": config.json.vocab_size=1000000000000 must be at least 1"),
            ("num_hidden_layers", 0, ": config.json.num_hidden_layers=0 must be at least 1"),
            ("rope_theta", "big", ""),
            ("model_type", None, ": model_type=None is not one of"),
            ("model_type", 3, ": model_type=3 is not one of"),
            (
                "tie_word_embeddings",
                "no",
                ": config.json.tie_word_embeddings='no' (str) must be a bool",
            ),
            ("eos_token_id", "<eos>", ""),
        )
    ),
    (TUNE, "config.init_from: model/config.json does not exist", tuned(as_folder("config.json"))),
    (TUNE, "config.init_from: no tokenizer in model", tuned(as_folder("tokenizer.json"))),
    *(
        (
            TUNE,
            f"config.init_from: model ...{NOT_HERE}",
            tuned(replaced("model.safetensors", content)),
        )
        for content in (b"\xff" * 64, HEADER + b"[]")
    ),
    (
        TUNE,
        "config.init_from: ...is missing from model",
        tuned(replaced("model.safetensors", HEADER + b"{}")),
    ),
    (
        TUNE,
        "config.init_from: ...b.safetensors",
        tuned(
            replaced("model.safetensors.index.json", '{"weight_map": {"a": "b.safetensors"}}'),
            without("model.safetensors"),
        ),
    ),
    (
        TUNE,
        "config.init_from: cannot read the tokenizer of model",
        tuned(replaced("tokenizer.json", "null")),
    ),
    (
        TUNE,
        "config.init_from: the...chat template",
        tuned(replaced("chat_template.jinja", "{{ 1/0 }}")),
    ),
    (CONVERT + " --to=model", "model is not empty; give a new folder", copied("model")),
    (CONVERT + " --to=s3://b/x", "s3://b/x is neither a local path nor", copied("model")),
    (CONVERT + " --to=file", "file", both(copied("model"), write("file", "x"))),
    (
        CONVERT + " --to=file/x",
        "file/x cannot be a folder: ...file is a file",
        both(copied("model"), write("file", "x")),
    ),
    (CONVERT + " --from=file", "file/config.json does not exist", write("file", "x")),
    *(
        (SWEEP, f"--sweep: {message}", swept(returned))
        for returned, message in (
            ("[{'seed': i} for i in range(2)] * 2", "every run needs overrides of its own"),
            ("[{'': 1}]", "=1: "),
            ("{'seed': 1}", "sweep(config) returned {'seed': 1}; it must return a list of dicts"),
            ("[{'seed': 1, 'nope.x': 2}]", "...nope"),
        )
    ),
    *(
        ("train mine.py", f"--config=mine.py...{message}", config_file(text))
        for text, message in (
            ("def get_config():\n    return get_config()\n", "line 2: RecursionError"),
            ("class get_config: pass\n", "returned"),
            ("async def get_config(): pass\n", "returned"),
            ("import sys\nsys.modules[__name__] = 3\n", ""),
            ("raise KeyError('a')\n", "line 1: KeyError"),
        )
    ),
    ("train mine.py", "--config=mine.py: mine.py...", write("mine.py", b"\xff\xfe x")),
]

# What quotes an answer of megabytes shows its beginning and its end
LONG = [
    (
        PREFERENCES,
        "config.data: bad.jsonl, line 1 chooses '5555",
        lines("bad.jsonl", {"prompt": "1?", "chosen": "5" * MANY, "rejected": "5" * MANY}),
    ),
    (
        SFT,
        "config.data: bad.jsonl, line 1, message 1 is no object",
        lines("bad.jsonl", {"messages": ["x" * MANY]}),
    ),
    (
        SFT,
        "config.data: bad.jsonl, line 1, message 1 has the role 'xxx",
        lines("bad.jsonl", {"messages": [{"role": "x" * MANY, "content": "1?"}]}),
    ),
    (
        GRPO,
        "config.data: bad.jsonl, line 2: the answer has no final",
        lines(
            "bad.jsonl",
            {"question": "1?", "answer": "#### 3"},
            {"question": "2?", "answer": "x" * MANY},
        ),
    ),
    (
        GRPO + " --config.data.num_held_out=2",
        "config...999...characters left out",
        lines(
            "bad.jsonl", *({"question": f"{i}?" + "9" * MANY, "answer": "#### x"} for i in range(5))
        ),
    ),
    (
        "train sft_small --config.data.template=" + "x" * 100_000,
        "config.data.template='xxx...characters left out",
    ),
]
