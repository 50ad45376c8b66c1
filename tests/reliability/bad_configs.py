"""Mistakes in config files and in the fields of a config; see bad_inputs.py."""

from tests.reliability.goods import config_file, copied, empty, swept, write

HEAD = "from ml_collections import ConfigDict\n"

PACKED = "train pretrain_small --config.mesh={'data':4,'tensor':2}"

CONFIGS = [
    (
        "train mine.py",
        (
            "--config=mine.py: mine.py, line 1: SyntaxError: invalid syntax (mine.py, line "
            "1); correct that line"
        ),
        config_file("def get_config(:\n"),
    ),
    (
        "train mine.py",
        (
            "--config=mine.py: mine.py, line 4: NameError: name 'lr' is not defined; correct "
            "that line"
        ),
        config_file(HEAD + "\ndef get_config():\n    return ConfigDict(lr)\n"),
    ),
    (
        "train mine.py",
        (
            "--config=mine.py: mine.py, line 1: ModuleNotFoundError: No module named "
            "'nothing_here'; correct that line"
        ),
        config_file("import nothing_here\n"),
    ),
    (
        "train mine.py",
        "--config=mine.py: get_config returned {}; it must return a ConfigDict",
        config_file("def get_config():\n    return {}\n"),
    ),
    (
        "train mine.py",
        (
            "--config=mine.py: get_config does not fit: missing a required argument: 'a'; "
            "write def get_config(arg=None)"
        ),
        config_file("def get_config(a, b):\n    return {}\n"),
    ),
    (
        "train mine.py:x",
        (
            "--config=mine.py:x: get_config does not fit: too many positional arguments; "
            "write def get_config(arg=None)"
        ),
        config_file("def get_config():\n    return {}\n"),
    ),
    (
        "train mine.py:seed=x",
        (
            "--config=mine.py:seed=x: mine.py, line 2: ValueError: invalid literal for int() "
            "with base 10: 'x'; correct that line, or the argument"
        ),
        config_file("def get_config(arg):\n    return int(arg.split('=')[1])\n"),
    ),
    (
        "train mine.py",
        "--config=mine.py has no function get_config; define it there",
        config_file("get_config = 3\n"),
    ),
    (
        "train mine.py",
        (
            "--config=mine.py: mine.py, line 1: ZeroDivisionError: division by zero; correct "
            "that line"
        ),
        config_file("1 / 0\n"),
    ),
    (
        "train mine.py",
        (
            "--config=mine.py: mine.py, line 1: SyntaxError: source code string cannot "
            "contain null bytes; correct that line"
        ),
        config_file("\0"),
    ),
    (
        "train mine.py",
        "--config=mine.py has no function get_config; define it there",
        config_file("# nothing\n"),
    ),
    (
        "train mine.py",
        "--config=mine.py: mine.py, line 5: AttributeError: \"'b'\"; correct that line",
        config_file(
            HEAD + "\ndef get_config():\n    c = ConfigDict()\n    c.a = c.b\n    return c\n"
        ),
    ),
    (
        "train mine.py",
        "config.recipe=None is not a recipe; allowed: distill...",
        config_file(HEAD + "\ndef get_config():\n    return ConfigDict()\n"),
    ),
    (
        "train mine.py",
        "config.recipe=3 is not a recipe; allowed: distill...",
        config_file(HEAD + "\ndef get_config():\n    return ConfigDict(dict(recipe=3))\n"),
    ),
    (
        "train mine.py",
        "config.recipe='stf' is not a recipe; did you mean sft? allowed: distill...",
        config_file(HEAD + "\ndef get_config():\n    return ConfigDict(dict(recipe='stf'))\n"),
    ),
    (
        "train mine.py",
        "config lacks num_steps...; set config.num_steps",
        config_file(HEAD + "\ndef get_config():\n    return ConfigDict(dict(recipe='sft'))\n"),
    ),
    ("train mine.txt", "--config=mine.txt is not a Python file", write("mine.txt", "x")),
    (
        "train folder.py",
        "--config=folder.py: there is no such file; give the path of a Python file",
        empty("folder.py"),
    ),
    (
        "train nothing.py",
        "--config=nothing.py: there is no such file; give the path of a Python file",
    ),
    (
        "train sft_small:seed=x",
        "config argument 'seed=x': seed needs an int, given 'x'; write --config=FILE:seed=VALUE",
    ),
    (
        "train sft_small:seed=",
        "config argument 'seed=': seed needs an int, given ''; write --config=FILE:seed=VALUE",
    ),
    (
        "train sft_small:seed=1.5",
        (
            "config argument 'seed=1.5': seed needs an int, given '1.5'; write "
            "--config=FILE:seed=VALUE"
        ),
    ),
    (
        "train sft_small:seed",
        "config argument 'seed': seed needs an int, given no value; write --config=FILE:seed=VALUE",
    ),
    (
        "train sft_small:sed=1",
        "config argument 'sed=1': 'sed' is not a key; did you mean seed? allowed: seed",
    ),
    (
        "train sft_small:seed=1,seed=2",
        "config argument 'seed=1,seed=2': 'seed' is given twice; keep one",
    ),
    (
        "train r1:stage=x",
        (
            "config argument stage='x' must be one of cold_start, reasoning, rejection, "
            "judged, sft, helpfulness, safety, scenarios"
        ),
    ),
    (
        "train reward_model_small:kind=x",
        "config.kind='x' is not allowed; allowed: helpfulness, safety",
    ),
    (
        "train pretrain_small:fp8=maybe",
        (
            "config argument 'fp8=maybe': fp8 needs a bool, given 'maybe'; write "
            "--config=FILE:fp8=true or false"
        ),
    ),
    (
        "train sft_small --config.batch_size=x",
        (
            "--config.batch_size=x cannot be read as a value of type int; write it as in "
            "Python, with quotes around..."
        ),
    ),
    (
        "train sft_small --config.batch_size",
        "--config.batch_size has no value; write --config.batch_size=VALUE",
    ),
    (
        "train sft_small --config.batch_sise=8",
        "config.batch_sise is not a field; did you mean batch_size? allowed: recipe...",
    ),
    ("train sft_small --config.data.template.x=8", "config.data.template=x: 8"),
    ("train sft_small --config.data=3", "config.data=3 (int) must be a block with fields path..."),
    (
        "train sft_small --config.optimizer=None",
        "config.optimizer=None (NoneType) must be a block with fields learning_rate...",
    ),
    (
        "train sft_small --config.seed.x=1",
        "--config.seed.x: config.seed=0 is not a block with fields",
    ),
    ("train sft_small --config.mesh={'data':", "config.mesh=\"{'data':\" (str) must be a block"),
    (
        "train sft_small --config.data.num_held_out=3 --config.data={'task':'arithmetic'}",
        "--config.data would replace --config.data.num_held_out; give it first",
    ),
]

EXITS = [
    *(
        (
            "train mine.py",
            f"--config=mine.py: mine.py, line {line}: SystemExit: {status}; correct that line",
            config_file(text),
        )
        for text, line, status in (
            ("import sys\nsys.exit(0)\n", 2, "0"),
            ("raise SystemExit\n", 1, ""),
            ("def get_config():\n    exit(0)\n", 2, "0"),
            ("def get_config():\n    quit('no')\n", 2, "no"),
        )
    ),
    (
        "sweep sft_small --sweep=sweep.py",
        "--sweep=sweep.py: sweep.py, line 2: SystemExit: 0; correct that line",
        swept("exit(0)"),
    ),
    (
        "sweep sft_small --sweep=sweep.py",
        "--sweep=sweep.py: sweep.py, line 1: SystemExit: 3; correct that line",
        write("sweep.py", "raise SystemExit(3)\n"),
    ),
    (
        "plan mine.py --topology=v5e:1x1",
        "--config=mine.py: mine.py, line 1: SystemExit: 0; correct that line",
        config_file("exit(0)\n"),
    ),
    (
        "generate mine.py",
        "--config=mine.py: mine.py, line 1: SystemExit: 0; correct that line",
        config_file("exit(0)\n"),
    ),
]

# Mistakes in stages that come late
STAGES = [
    *(
        (
            f"train distill_small --config.{block}.max_completion_length=256",
            f"config.{block}.max_completion_length=256 leaves no room for a prompt in the model's "
            "max_position_embeddings=256; lower it",
        )
        for block in ("evaluation", "text")
    ),
    *(
        (
            f"train distill_small --config.{block}.sequence_length=257",
            f"config.{block}.sequence_length=257 is beyond the model's max_position_embeddings=256",
        )
        for block in ("students.llama", "teacher.fine_tune", "teacher.base", "starts.llama.base")
    ),
    *(
        (
            f"train distill_small --config.{block}.tokenizer=nope",
            f"config.{block}.tokenizer: nothing at nope; give a Hugging Face folder",
        )
        for block in ("teacher", "starts.llama")
    ),
    (
        "train distill_small --config.students.qwen.sequence_length=200 "
        "--config.starts={'qwen':{'init_from':'model','max_position_embeddings':100}} "
        "--config.students.llama.start=qwen",
        "config.students.qwen.sequence_length=200 is beyond the model's max_position_embeddings=100",
        copied("model"),
    ),
    (
        "train judge_small --config.max_completion_length=256",
        "config.max_completion_length=256 leaves no room for a prompt in the model's",
    ),
    (
        "train r1_small --config.judge.max_completion_length=256",
        "config.judge.max_completion_length=256 leaves no room for a prompt in the model's",
    ),
    *(
        (
            f"train r1_small --config.{block}.max_completion_length=250",
            f"config.{block}.max_completion_length=250 after the longest prompt's ... tokens is beyond",
        )
        for block in ("traces", "rejection", "judged", "evaluation")
    ),
    (
        "train r1_small --config.helpfulness_model.sequence_length=4",
        "config.helpfulness_model.sequence_length=4: none of 4096 training records fits a row; raise it",
    ),
]

SEEDED = (
    "sft_small",
    "grpo_small",
    "pretrain_small",
    "r1_small",
    "reward_model_small",
    "distill_small",
    "judge_small",
)

SEEDS = [
    (
        f"{'generate' if name == 'generate_small' else 'train'} {name}{how}",
        "config.seed=... must be at least 0 and below 2147483648",
    )
    for name in (*SEEDED, "generate_small")
    for how in (":seed=-1", " --config.seed=2147483648", " --config.seed=18446744073709551616")
] + [
    (
        "evaluate --checkpoint=model --data=arithmetic --seed=-1",
        "--seed=-1 must be at least 0 and below 2147483648",
    ),
    (
        "evaluate --checkpoint=model --data=arithmetic --seed=4294967296",
        "--seed=4294967296 must be at least 0 and below 2147483648",
    ),
]

SIZES = [
    *(
        (f"train sft_small --config.{field}=0", f"config.{field}=0 must be at least")
        for field in (
            "batch_size",
            "sequence_length",
            "num_steps",
            "eval_every",
            "log_every",
            "save_every",
            "micro_batches",
            "data.num_held_out",
            "data.readers",
            "answers.num_prompts",
            "answers.max_completion_length",
            "answers.slots",
            "model.hidden_size",
            "model.num_hidden_layers",
            "model.vocab_size",
            "model.n_routed_experts",
            "base.num_documents",
            "base.num_steps",
            "base.batch_size",
            "base.sequence_length",
        )
    ),
    *(
        (f"train grpo_small --config.{field}=-1", f"config.{field}=-1... must be")
        for field in (
            "num_steps",
            "prompts_per_step",
            "group_size",
            "rollout.max_prompt_length",
            "rollout.max_completion_length",
            "rollout.temperature",
            "loss.clip_eps",
            "loss.kl_coef",
            "optimizer.learning_rate",
        )
    ),
    *(
        (f"train pretrain_small --config.{field}=0", f"config.{field}=0 must be at least")
        for field in (
            "data.num_documents",
            "data.num_held_out",
            "data.eval_batches",
            "stages.stage_1.num_steps",
            "stages.stage_1.sequence_length",
            "stages.stage_1.micro_batch_size",
        )
    ),
    (
        "train sft_small --config.mesh={'data':0}",
        "config.mesh.data=0: give a positive size, or -1 for the rest",
    ),
    (
        "train sft_small --config.mesh={'data':-2}",
        "config.mesh.data=-2: give a positive size, or -1 for the rest",
    ),
    (
        "train sft_small --config.mesh={'data':3}",
        (
            "config.mesh.data=3 make 3, which does not equal the 8 devices; change one of "
            "them, or set one to -1"
        ),
    ),
    (
        "train sft_small --config.mesh={'data':-1,'fsdp':-1}",
        "config.mesh: data, fsdp are all -1; only one axis can take what is left",
    ),
    (
        "train sft_small --config.batch_size=12",
        (
            "config.batch_size=12, sequence_length=64: a batch of 12 rows does not split into"
            " mesh.data=8; set the number of rows to a multiple of 8, or lower one of these"
        ),
    ),
    (
        "train sft_small --config.micro_batches=3",
        (
            "config.batch_size=16, sequence_length=64: a batch of 16 rows does not split into"
            " micro_batches=3 x mesh.data=8; set the number of rows to a multiple of 24, or "
            "lower one of these"
        ),
    ),
    (
        "train distill_study --config.students.on_policy.loss.on_policy.slots=24",
        (
            "config.students.on_policy.loss.on_policy.prompts=20: a batch of 20 rows does not split into "
            "mesh.data=8; set the number of rows to a multiple of 8, or lower one of these"
        ),
    ),
    (
        "train distill_study --config.students.features.loss.weights={'hidden':0.1}",
        "config.students.features.optimizer.weight_decay=0.05 would shrink what loss.weights=",
    ),
    (
        "train sft_small --config.sequence_length=1000",
        "config.sequence_length=1000 is beyond the model's max_position_embeddings=256; lower it",
    ),
    (
        "train sft_small --config.model.vocab_size=7",
        "config.model.vocab_size=7 is below the tokenizer's 21; raise it",
    ),
    (
        "train sft_small --config.model.num_experts_per_tok=9",
        (
            "config.model.num_experts_per_tok=9 exceeds the 4 experts of topk_group=2 groups;"
            " lower it or raise topk_group"
        ),
    ),
    (
        "train sft_small --config.model.qk_rope_head_dim=3",
        "config.model.qk_rope_head_dim=3 is the rotary width; set it to an even number",
    ),
    (
        "train sft_small --config.model.n_group=3",
        (
            "config.model.n_routed_experts=8 must be a multiple of n_group=3, and "
            "topk_group=2 at most n_group"
        ),
    ),
    (
        "train sft_small --config.data.num_held_out=100000",
        (
            "config.data: 50000 different questions requested, but there are only 156; lower "
            "num_held_out."
        ),
    ),
    (
        "train sft_small --config.data.num_held_out=8",
        (
            "config.answers.num_prompts=256, and 8 held-out conversations fit a row; lower "
            "it, or raise data.num_held_out"
        ),
    ),
    (
        "train sft_small --config.sequence_length=4",
        (
            "config.sequence_length=4 is too short: 0 of the first 1000 sft training "
            "conversations fit a row, and the shortest has 19 tokens; raise it"
        ),
    ),
    (
        "train sft_small --config.answers.max_completion_length=1000",
        (
            "config.answers.max_completion_length=1000 after the longest prompt's 9 tokens is"
            " beyond the model's max_position_embeddings=256; lower it to 247 or less, or "
            "leave out the longest prompts"
        ),
    ),
    (
        "train sft_small --config.answers.slots=3",
        (
            "config.answers.slots=3 does not split over the mesh's 8 devices, each of which "
            "decodes its own; set slots to a multiple of 8"
        ),
    ),
    (
        "train sft_small --config.rewards={'correkt':1.0}",
        "config.rewards.correkt=1.0 is not of a reward; did you mean correct?",
    ),
    (
        "train sft_small --config.accuracy=correkt",
        "config.rewards.correkt=0.0 is not of a reward; did you mean correct?",
    ),
    (
        "train sft_small --config.data.task=arithmetik",
        (
            "config.data.task='arithmetik' is not a world's task; did you mean arithmetic? "
            "allowed: arithmetic, word_arithmetic, bilingual_puzzles, bilingual_requests"
        ),
    ),
    (
        "train sft_small --config.data.template=ask",
        'config.data.template=\'ask\' must be "chat", "r1_zero" or a text with {question} in it',
    ),
    (
        "train sft_small --config.base.corpus=arithmetik",
        (
            "config.base.corpus='arithmetik' is not a world's corpus; did you mean "
            "arithmetic? allowed: arithmetic, arithmetic_numbered, bilingual, bilingual_teaching"
        ),
    ),
    (
        "train sft_small --config.base=None",
        (
            "config.init_from=None and base=None: set just one of them, a checkpoint or how "
            "to pre-train one"
        ),
    ),
    (
        "train grpo_small --config.prompts_per_step=3 --config.group_size=5",
        (
            "config.prompts_per_step=3 in 1 micro-batches does not split over the 8 parts of "
            "the mesh (slices x data x fsdp x expert); set it to a multiple of 8"
        ),
    ),
    (
        "train grpo_small --config.rollout.max_prompt_length=2",
        (
            "config.rollout.max_prompt_length=2 is below all 1146 training prompts; the "
            "shortest has 7 tokens; raise it"
        ),
    ),
    (
        PACKED + " --config.data.tokenizer=byte",
        "config.data.tokenizer: nothing at byte; give a Hugging Face folder or a .gguf file.",
    ),
    (
        PACKED + " --config.data.weights=[1.0]",
        (
            "config.data.weights=(1.0,) of 2 sources: there must be one weight for each "
            "source, and at least one source."
        ),
    ),
    (
        "train pretrain_small --config.data.weights=[0.0,1.0]",
        "config.data.weights[0]=0.0 must be above 0",
    ),
    (
        "train pretrain_small --config.stages={}",
        "config.stages={} is empty; give it at least one block of a stage's fields",
    ),
    (
        "train sft_small --config.optimizer.learning_rate=nan",
        (
            "--config.optimizer.learning_rate=nan cannot be read as a value of type float; "
            "write it as in Python, with quotes around..."
        ),
    ),
    (
        "train sft_small --config.optimizer.schedule=cosin",
        (
            "config.optimizer.schedule='cosin' is not allowed; did you mean cosine? allowed: "
            "constant, cosine"
        ),
    ),
    (
        "train sft_small --config.optimizer.warmup_steps=1000",
        "config.optimizer.warmup_steps=1000 must be below 80, the number of all updates",
    ),
    (
        "train effort_small --config.effort.values=(50,200)",
        "config.effort.values[1]=200 must be within 1..100",
    ),
    (
        "train effort_small --config.effort.max_penalty=1.0",
        (
            "config.effort.max_penalty=1.0 must be below 1.0, the most that rewards can pay: a right "
            "answer could earn less than an empty one; lower it, or raise the weights"
        ),
    ),
    (
        "train effort_small --config.effort.line=Effort:{effort}",
        "config.effort.line='Effort:50' has words that this tokenizer does not know...",
    ),
]
