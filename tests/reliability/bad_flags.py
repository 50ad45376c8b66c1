"""Mistakes in flags, plans, sweeps and work directories; see bad_inputs.py."""

from tests.reliability.goods import both, copied, swept, write

SWEEP = "sweep sft_small --sweep=sweep.py"

FLAGS = [
    ("train", "--config is missing; give an experiment, its file or the name of a shipped one, as"),
    (
        "train configs/grpo_smal.py",
        "--config=configs/grpo_smal.py: there is no such file; did you mean ...configs/grpo_small.py?",
    ),
    (
        "train mien.py",
        "--config=mien.py: there is no such file; did you mean mine.py? give the path of a Python",
        write("mine.py", ""),
    ),
    (
        "train grpo_small --lr=1e-4",
        "--lr=1e-4 is not a flag; a field of the experiment is set by "
        "--config.optimizer.learning_rate=1e-4 or --config.base.optimizer.learning_rate=1e-4",
    ),
    (
        "train grpo_small --optimizer.learning_rate=1e-4",
        "--optimizer.learning_rate=1e-4 is not a flag; a field of the experiment is set by "
        "--config.optimizer.learning_rate=1e-4",
    ),
    (
        "train grpo_small --batch_size=4",
        "--batch_size=4 is not a flag; a field of the experiment is set by "
        "--config.prompts_per_step=4 or --config.base.batch_size=4",
    ),
    (
        "train sft_small --epochs=2",
        "--epochs=2 is not a flag; a field of the experiment is set by --config.num_steps=VALUE",
    ),
    (
        "plan sft_small --topology=v5e:1x1 --learning_rat=1",
        "--learning_rat=1 is not a flag; a field of the experiment is set by --config.optimizer.",
    ),
    (
        "train grpo_small --minibatches=2",
        "--minibatches=2 is not a flag; a field of the experiment is set by --config.minibatches=2",
    ),
    ("train sft_small --nothing=1", "Unknown command line flag 'nothing'"),
    ("train nothing --lr=1", "Unknown command line flag 'lr'"),
    ("chat", "RUN is missing: give the folder of a run, a checkpoint or its name"),
    ("chat none", "RUN: there is nothing at none; give a Hugging Face folder, a .gguf file or the"),
    ("chat none other", "other is not a flag; use --FLAG=VALUE"),
    (
        "chat w",
        "RUN: w is the folder of a run; it has left no parameters yet: let it end",
        write("w/config.json", '{"recipe": "sft"}'),
    ),
    (
        "chat model --beside=none --say=x",
        "--beside: there is nothing at none; give a Hugging Face folder",
        copied("model"),
    ),
    (
        "chat model --beside=before --say=x",
        "--beside: model is not in the folder of a run; give the path of a checkpoint",
        copied("model"),
    ),
    (
        "chat model --temperature=-1",
        "--temperature=-1.0 must be 0 or within 0.001..100.0",
        copied("model"),
    ),
    ("chat model --max_tokens=0", "--max_tokens=0 must be at least 1", copied("model")),
    ("chat model --template=x", '--template=\'x\' must be "chat", "r1_zero" or a', copied("model")),
    (
        "chat model --mesh=fspd=2",
        "--mesh=fspd=2: 'fspd' is not a key; did you mean",
        copied("model"),
    ),
    (
        "chat model --mesh=fsdp=3",
        "--mesh.fsdp=3 make 3, which does not divide the 8",
        copied("model"),
    ),
    ("train sft_small --wrkdir=x", "Unknown command line flag 'wrkdir'. Did you mean: workdir ?"),
    ("train sft_small x", "x is not a flag; use --config.FIELD=VALUE"),
    (
        "train sft_small --profile=5",
        (
            "--profile=5 is not STEP:COUNT, a step from 0 and a number of steps from 1; for "
            "example, --profile=100:3 traces steps 100, 101 and 102"
        ),
    ),
    (
        "train sft_small --profile=0:0",
        (
            "--profile=0:0 is not STEP:COUNT, a step from 0 and a number of steps from 1; for"
            " example, --profile=100:3 traces steps 100, 101 and 102"
        ),
    ),
    (
        "train sft_small --watchdog=-1",
        "--watchdog=-1.0 must be at least 1, in medians of earlier steps; 0 for no watchdog",
    ),
    ("train sft_small --watchdog=x", "--watchdog=x must be a number"),
    ("train sft_small --wandb=a/b/c", "--wandb=a/b/c is not PROJECT or ENTITY/PROJECT"),
    (
        "train sft_small --distributed=maybe",
        "flag --distributed=maybe: value should be one of <auto|yes|no>",
    ),
    (
        "train sft_small --flagfile=none.txt",
        "--flagfile='none.txt' cannot be read; name a file of flags, one a line",
    ),
    ("generate sft_small", "config.recipe='sft' is for launch/train.py"),
    (
        "generate generate_small --adapter=none",
        "config.adapter='none' belongs to a checkpoint, and init_from=None; set init_from",
    ),
    (
        "generate generate_small --config.data.num_prompts=100000",
        "config.data.num_prompts=100000 is above the 4096 different questions; lower it",
    ),
    (
        "generate generate_small --config.keep.near_duplicates=2",
        "config.keep.near_duplicates=2.0 must be above 0 and at most 1",
    ),
    (
        "generate generate_small --config.keep.at_least={'x':1.0}",
        (
            "config.keep.at_least.x=1.0 is not of a reward; allowed: language_consistency, "
            "puzzle_answer, think_answer_format, reward"
        ),
    ),
    (
        "generate generate_small --config.teacher_processes=3",
        (
            "config.teacher_processes: 1 processes do not split into groups of 3; set it to a"
            " divisor of 1"
        ),
    ),
    ("evaluate", "--checkpoint is missing (see --help); --data is missing (see --help)"),
    (
        "evaluate --checkpoint=model",
        "--data is missing (see --help)",
    ),
    (
        "evaluate --checkpoint=model --data=",
        "--data=() names no problems; give a path or a small world's task",
    ),
    (
        "evaluate --checkpoint=none --data=arithmetic",
        "--checkpoint: there is nothing at none; give a Hugging Face folder, a .gguf file or the",
    ),
    (
        "evaluate --checkpoint=model --data=arithmetik",
        (
            "--data='arithmetik' is neither a path nor a task; did you mean "
            "arithmetic? allowed: arithmetic, word_arithmetic, bilingual_puzzles, "
            "bilingual_requests"
        ),
        copied("model"),
    ),
    ("evaluate --checkpoint=model --data=arithmetic --samples=0", "--samples=0 must be at least 1"),
    (
        "evaluate --checkpoint=model --data=arithmetic --samples=x",
        "--samples=x must be a whole number",
    ),
    (
        "evaluate --checkpoint=model --data=arithmetic --temperature=-1",
        "--temperature=-1.0 must be 0 or within 0.001..100.0",
    ),
    (
        "evaluate --checkpoint=model --data=arithmetic --top_p=0",
        "--top_p=0.0 must be above 0 and at most 1",
    ),
    (
        "evaluate --checkpoint=model --data=arithmetic --dtype=float64",
        "--dtype='float64' is not allowed; did you mean bfloat16? allowed: float32, bfloat16",
    ),
    (
        "evaluate --checkpoint=model --data=arithmetic --template=ask",
        '--template=\'ask\' must be "chat", "r1_zero" or a text with {question} in it',
    ),
    (
        "evaluate --checkpoint=model --data=arithmetic --mesh=fsdp=x",
        "--mesh=fsdp=x: fsdp needs an int, given 'x'; write --mesh=fsdp=VALUE",
    ),
    (
        "evaluate --checkpoint=model --data=arithmetic --mesh=fsdp=3",
        (
            "--mesh.fsdp=3 make 3, which does not divide the 8 devices; change one of them, "
            "or set one to -1"
        ),
    ),
    (
        "evaluate --checkpoint=model --data=arithmetic --mesh=fspd=2",
        "--mesh=fspd=2: 'fspd' is not a key; did you mean fsdp? allowed: slices...",
    ),
    (
        "evaluate --checkpoint=model --data=arithmetic --against=none.json",
        "--against: none.json is not the results of an evaluation: ...; correct the path",
    ),
    (
        "evaluate --checkpoint=model --data=arithmetic --against=bad.json",
        "--against: bad.json is not the results of an evaluation: ...; correct the path",
        write("bad.json", "{"),
    ),
    (
        "evaluate --checkpoint=model --data=arithmetic --against=bad.json",
        "--against: bad.json is not the results of an evaluation: ...; correct the path",
        write("bad.json", "[]"),
    ),
    (
        "evaluate --checkpoint=model --data=arithmetic --num_problems=0",
        "--num_problems=0 must be at least 1",
    ),
    ("evaluate --checkpoint=model --data=arithmetic --slots=0", "--slots=0 must be at least 1"),
    (
        "compare --models=r1_distil",
        (
            "--models=r1_distil is not in configs/models.py; did you mean r1_distill_qwen_7b?"
            " allowed: deepseek_v2_lite..."
        ),
    ),
    ("compare --tpu=v9", "--tpu=v9 is not a known chip; allowed: v5e, v5p, v6e, tpu7x"),
    ("compare --batch_size=0", "--batch_size=0 must be at least 1"),
    (
        "compare --context_length=10000000",
        (
            "--context_length=10000000 is more than the 163840 of deepseek_v3; lower it, or "
            "leave deepseek_v3 out of --models"
        ),
    ),
    ("compare --models=", "--models= names no model; allowed: deepseek_v2_lite..."),
]

PLANS = [
    (
        "plan",
        "--config is missing (see --help)",
    ),
    (
        "plan sft_small",
        "--topology is missing (see --help)",
    ),
    (
        "plan sft_small --topology=h100:0",
        "--topology=h100:0 needs a number of GPUs; examples: v5e:1x1...",
    ),
    (
        "plan sft_small --topology=h100:x",
        "--topology=h100:x needs a number of GPUs; examples: v5e:1x1...",
    ),
    (
        "plan sft_small --topology=v99:2x2",
        "--topology=v99:2x2 is unknown to libtpu: ...; examples: v5e:1x1...",
    ),
    ("plan sft_small --topology=", "--topology= is unknown to libtpu: ...; examples: v5e:1x1..."),
    (
        "plan sft_small --topology=v5e:3x3",
        "--topology=v5e:3x3 is unknown to libtpu: ...; examples: v5e:1x1...",
    ),
    (
        "plan sft_small --topology=v5e:4x4 --config.mesh={'expert':3}",
        (
            "config.mesh.expert=3 make 3, which does not divide the 16 devices; change one of"
            " them, or set one to -1"
        ),
    ),
    (
        "plan sft_small --topology=v5e:4x4 --config.batch_size=1",
        (
            "config.batch_size=1, sequence_length=64: a batch of 1 rows does not split into "
            "mesh.data=16; set the number of rows to a multiple of 16, or lower one of these"
        ),
    ),
    (
        "plan sft_small --topology=v5e:1x1 --config.recipe=x",
        "config.recipe='x' is not a recipe; allowed: distill...",
    ),
    (
        "plan generate_small:teacher=model --topology=v5e:1x1",
        (
            "config.model={} does not name the architecture of model, and the checkpoint is "
            "not there: a plan needs one of them; set model to one of configs/models.py"
        ),
    ),
]

SWEEPS = [
    (
        SWEEP,
        "--sweep=sweep.py: there is no such file; did you mean ...seeds.py? give the path of a Python file",
    ),
    (
        SWEEP,
        (
            "--sweep=sweep.py: sweep.py, line 1: SyntaxError: invalid syntax (sweep.py, line "
            "1); correct that line"
        ),
        write("sweep.py", "def sweep(:\n"),
    ),
    (
        SWEEP,
        "--sweep=sweep.py has no function sweep; define it there",
        write("sweep.py", "def sweeps(config):\n    return []\n"),
    ),
    (
        SWEEP,
        "--sweep=sweep.py: sweep.py, line 2: AttributeError: \"'nothing'\"; correct that line",
        swept("config.nothing"),
    ),
    (
        SWEEP,
        (
            "--sweep=sweep.py: sweep.py, line 1: TypeError: sweep() takes 0 positional "
            "arguments but 1 was given; correct that line"
        ),
        write("sweep.py", "def sweep():\n    return []\n"),
    ),
    (
        SWEEP,
        (
            '--sweep: sweep(config) returned None; it must return a list of dicts, {"FIELD": '
            "VALUE} for each run"
        ),
        swept("None"),
    ),
    (
        SWEEP,
        "--sweep: sweep(config) names no runs; return at least one dict of fields",
        swept("[]"),
    ),
    (
        SWEEP,
        (
            '--sweep: sweep(config) returned [3]; it must return a list of dicts, {"FIELD": '
            "VALUE} for each run"
        ),
        swept("[3]"),
    ),
    (SWEEP, "--sweep: every run needs overrides of its own, given [{}]", swept("[{}]")),
    (
        SWEEP,
        (
            "--sweep: sweep(config) returned [{3: 4}]; it must return a list of dicts, "
            '{"FIELD": VALUE} for each run'
        ),
        swept("[{3: 4}]"),
    ),
    (
        SWEEP,
        "--sweep: every run needs overrides of its own, given [{'seed': 1}, {'seed': 1}]",
        swept("[{'seed': 1}, {'seed': 1}]"),
    ),
    (
        SWEEP,
        "--sweep: sed=1: config.sed is not a field; did you mean seed? allowed: recipe...",
        swept("[{'sed': 1}]"),
    ),
    (
        SWEEP,
        "--sweep: seed=-1: config.seed=-1 must be at least 0 and below 2147483648",
        swept("[{'seed': -1}]"),
    ),
    (
        SWEEP,
        "--sweep: seed.x=1: --config.seed.x: config.seed=0 is not a block with fields",
        swept("[{'seed.x': 1}]"),
    ),
    (
        SWEEP,
        (
            "--sweep: optimizer.learning_rate=x: config.optimizer.learning_rate='x' (str) "
            "must be a float"
        ),
        swept("[{'optimizer.learning_rate': 'x'}]"),
    ),
    ("sweep sft_small", "--sweep is missing (see --help)"),
    (SWEEP + " --engine=k8s", "flag --engine=k8s: value should be one of <local|slurm|gke>"),
    (SWEEP + " --max_jobs=0", "flag --max_jobs=0: 0 is not a positive integer"),
    (
        SWEEP + " --workdir=gs://b/x",
        (
            "--workdir=gs://b/x: the folder of a sweep holds the logs and the exit statuses "
            "of other processes, and cannot be in a bucket; give a folder"
        ),
    ),
    (
        SWEEP + " --cancel",
        "there is no sweep in ...w; set --workdir to the folder",
        swept("[{'seed': 1}]"),
    ),
]

# The home folder of a user that is not there
HOMELESS = (
    "~nobody_here/x begins with the home folder of a user that is not there; write ./~nobody_here/x"
)

HOMES = [
    ("train sft_small --workdir=~nobody_here/x", f"--workdir: {HOMELESS}"),
    ("generate generate_small --workdir=~nobody_here/x", f"--workdir: {HOMELESS}"),
    (f"{SWEEP} --workdir=~nobody_here/x", f"--workdir: {HOMELESS}", swept("[{'seed': 1}]")),
    ("train ~nobody_here/x", HOMELESS),
    ("sweep sft_small --sweep=~nobody_here/x", HOMELESS),
    ("plan sft_small --topology=v5e:1x1 --cache=~nobody_here/x", HOMELESS),
    ("convert --from=~nobody_here/x --to=out", HOMELESS),
    ("convert --from=model --to=~nobody_here/x", HOMELESS),
    ("evaluate --checkpoint=~nobody_here/x --data=arithmetic", f"--checkpoint: {HOMELESS}"),
    ("train sft_small --config.data.path=~nobody_here/x", f"config.data: {HOMELESS}"),
    (
        "train sft_small --config.base=None --config.init_from=~nobody_here/x",
        f"config.init_from: {HOMELESS}",
    ),
    (
        "train grpo_small --config.reward_models={'safety':{'path':'~nobody_here/x'}}",
        f"config.reward_models.safety: {HOMELESS}",
    ),
]

WORKDIRS = [
    (
        "train sft_small --workdir=s3://b/x",
        "--workdir: s3://b/x is neither a local path nor an address gs://BUCKET/NAME",
    ),
    (
        "train sft_small --workdir=file",
        (
            "--workdir=...file cannot be a directory: [Errno 17] File exists: '...file'; give"
            " another --workdir"
        ),
        write("file", "x"),
    ),
    (
        "train sft_small --workdir=file/below",
        (
            "--workdir=...file/below cannot be a directory: [Errno 20] Not a directory: "
            "'...file/below'; give another --workdir"
        ),
        write("file", "x"),
    ),
    (
        "train sft_small",
        (
            "--workdir=...w is not empty and has no config.json: it is not a run's directory,"
            " and is left as it is; give a new or an empty --workdir"
        ),
        write("w/notes.txt", "mine"),
    ),
    (
        "train sft_small",
        "...w has stages that are of other inputs, and is left as it is:\n  pretrain (complete): ..."
        "\nchanged fields:...config.seed: 3 -> 0...\ngive --redo to run these stages anew",
        both(
            write("w/config.json", '{"recipe": "sft", "seed": 3}'),
            write(
                "w/pretrain/stage.json",
                '{"stage": "pretrain", "inputs": {}, "hash": "0", "format": 3, "complete": true}',
            ),
            write("w/pretrain/params/config.json", "{}"),
        ),
    ),
    (
        "train sft_small",
        '...w belongs to another config, and is left as it is:...config.recipe: "grpo" -> "sft"',
        write("w/config.json", '{"recipe": "grpo"}'),
    ),
    (
        "train sft_small",
        "...w/sft/stage.json has format 2, and this version writes format 3 and reads no other",
        both(
            write("w/config.json", '{"recipe": "sft"}'),
            write("w/sft/stage.json", '{"stage": "sft", "format": 2}'),
        ),
    ),
    (
        "train sft_small",
        (
            "...w/config.json is damaged, as it is not JSON ...; put back a copy, or remove "
            "what it belongs to"
        ),
        write("w/config.json", "{"),
    ),
    (
        "train sft_small",
        (
            "...w/config.json is damaged, as it holds no JSON object; put back a copy, or "
            "remove what it belongs to"
        ),
        write("w/config.json", "[]"),
    ),
    (
        "train sft_small",
        (
            "...w/config.json is damaged, as it holds no JSON object; put back a copy, or "
            "remove what it belongs to"
        ),
        write("w/config.json", "3"),
    ),
    (
        "train sft_small",
        "--workdir=...w: owner.json there is not a run's; move it away, or give another --workdir",
        write("w/owner.json", "{"),
    ),
    (
        "train sft_small",
        "--workdir=...w: owner.json there is not a run's; move it away, or give another --workdir",
        write("w/owner.json", "[]"),
    ),
    (
        "generate generate_small",
        "...w belongs to another config, and is left as it is:",
        write("w/config.json", '{"recipe": "sft"}'),
    ),
    (
        SWEEP,
        (
            "--workdir=...w is not empty and has no sweep.json: it is not a sweep's folder, "
            "and is left as it is; give a new or an empty --workdir"
        ),
        both(swept("[{'seed': 1}]"), write("w/notes.txt", "x")),
    ),
    (
        SWEEP,
        (
            "...w/sweep.json is damaged, as it is not JSON ...; put back a copy, or remove "
            "what it belongs to"
        ),
        both(swept("[{'seed': 1}]"), write("w/sweep.json", "{")),
    ),
    (
        SWEEP,
        (
            "...w belongs to another sweep, and is left as it is: --config is None there, and"
            " ...configs/sft_small.py here; give another --workdir"
        ),
        both(swept("[{'seed': 1}]"), write("w/sweep.json", "{}")),
    ),
    (
        SWEEP,
        (
            "...w belongs to another sweep, and is left as it is: --config is a there, and "
            "...configs/sft_small.py here; give another --workdir"
        ),
        both(
            swept("[{'seed': 1}]"),
            write("w/sweep.json", '{"config": "a", "sweep": "b", "engine": "local"}'),
        ),
    ),
    (
        "train sft_small --workdir=/proc/nothing",
        (
            "--workdir=/proc/nothing cannot be a directory: [Errno 2] No such file or "
            "directory: '/proc/nothing'; give another --workdir"
        ),
    ),
]
