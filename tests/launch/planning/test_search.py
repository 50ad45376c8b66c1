"""launch/plan.py --search: which layouts it compiles, and a small experiment as a user starts it."""

import json
import re

import pytest

from deepseek_jax.costs.chips import CHIPS
from launch.planning import search as searching
from launch.planning.ranking import RankedMesh
from launch.planning.records import CompiledProgram
from launch.planning.search import REMAT, Search, print_search, try_layouts
from tests.experiments import RUNS
from tests.launch.test_plan import planned
from tests.rollout.test_tpu_decode import compile_apart

CONFIG = """
from configs import pretrain_small

def get_config():
    config = pretrain_small.get_config("fp8=False")
    sizes = dict(hidden_size=256, q_lora_rank=128, kv_lora_rank=128, moe_intermediate_size=128)
    sizes |= dict(qk_nope_head_dim=128, qk_rope_head_dim=128, v_head_dim=128, num_attention_heads=4)
    sizes |= dict(num_hidden_layers=2, intermediate_size=512, scan_layers=True)
    config.model.update(sizes | dict(num_nextn_predict_layers=0))
    del config.stages["stage_2_long"]
    with config.ignore_type():
        config.stages.stage_1.update(dict(batch_size=16, mtp_weight=0.0))
    config.mesh = dict(data=1, fsdp=4)
    return config
"""


# Ranks each experiment for four chips, and places its updates on the meshes that split them by the recipe too
RANK = """
import json, sys
from deepseek_jax.costs.program import argument_bytes
from launch.planning.layouts import Layout
from launch.planning.ranking import rank
from launch.planning.search import layouts_of
from tests.experiments import CONFIGS, load

def by_recipe(what, one):
    # Which numbers of micro-batches a recipe refuses is its own matter
    for count in sorted(one.micro_batches):
        try:
            return what.planned(Layout(one.mesh, count, "full"))
        except ValueError:
            pass
    return []

found = []
for name, arg in json.loads(sys.argv[1]):
    try:
        what, chip = layouts_of(load(CONFIGS / f"{name}.py", arg), "v5e:2x2", None)
    except ValueError as error:
        assert str(error).endswith("names none"), (name, error)
        continue
    ranked, dropped = rank(what.updates, what.meshes, what.mesh_of, chip)
    held = []
    for one in ranked:
        updates = by_recipe(what, one)
        whole = [(u.arguments, u.arguments[0].params, [h.tree for h in u.beside]) for u in updates]
        if whole:
            held.append([one.state, max(map(argument_bytes, whole))])
    found.append([name, arg, len(what.meshes), len(ranked), held, dropped])
print("result", json.dumps(found))
"""


# Of the first, gathers take long, of the second, exchanges; the third splits into more micro-batches
MESHES = [
    RankedMesh(dict(fsdp=4), {1, 3, 5, 15}, state=1, gathers=4.0, exchanges=1.0),
    RankedMesh(dict(expert=4), {1, 3, 5, 15}, state=1, gathers=1.0, exchanges=5.0),
    RankedMesh(dict(context=4), {1, 2, 3, 4, 5, 15, 60}, state=1, gathers=5.0, exchanges=9.0),
]


def layouts_tried(count, fits):
    """[(axis, micro_batches, remat)] of try_layouts on MESHES, each once. fits(*layout): its verdict."""
    tried = []

    def verdict(one, *how):
        (axis,) = one.mesh
        if (axis, *how) not in tried:
            tried.append((axis, *how))
        return fits(axis, *how)

    try_layouts(MESHES, count, verdict)
    return tried


def test_what_fits_at_once_is_compiled_without_recomputation_on_the_best_meshes():
    """Oracle: by hand: full remat, then none, and the two meshes with the cheapest collectives."""
    tried = layouts_tried(2, lambda axis, micro_batches, remat: True)
    assert tried == [("fsdp", 1, "full"), ("fsdp", 1, "none"), ("expert", 1, "none")]


def test_more_micro_batches_are_tried_on_the_mesh_that_is_best_for_them():
    """Oracle: by hand: of 1, 2, 3, 4, 5, 15, 60, those that at least double are 1, 2, 4, 15. Only one mesh
    splits into 2 and 4; with 15, gathers take longest. There the policies follow until one fits.
    """

    def fits(axis, micro_batches, remat):
        return micro_batches == 15 and REMAT.index(remat) >= REMAT.index("selective")

    assert layouts_tried(3, fits) == [
        ("fsdp", 1, "full"),
        ("context", 2, "full"),
        ("context", 4, "full"),
        ("expert", 15, "full"),
        ("expert", 15, "none"),
        ("expert", 15, "dots"),
        ("expert", 15, "selective"),
        ("fsdp", 15, "selective"),
        ("context", 15, "selective"),
    ]


def test_the_next_mesh_takes_the_place_of_one_that_the_recipe_refuses():
    """Oracle: by hand: without fsdp, two of the others are compiled."""
    tried = layouts_tried(2, lambda axis, *how: None if axis == "fsdp" else True)
    compiled = [each for each in tried if each[0] != "fsdp"]
    assert compiled == [("expert", 1, "full"), ("expert", 1, "none"), ("context", 1, "none")]


def test_a_search_without_a_layout_that_fits_ends():
    """Oracle: by hand: one mesh for each number of micro-batches; none where no mesh splits."""
    tried = layouts_tried(3, lambda *how: False)
    assert [micro_batches for _, micro_batches, _ in tried] == [1, 2, 4, 15, 60]
    assert {remat for *_, remat in tried} == {"full"}
    try_layouts([], 3, None)


@pytest.mark.parametrize(
    ("ranked", "words"),
    [
        (MESHES, "in a plan of the last: context=4, micro_batches=60, remat=full"),
        ([], "None was compiled; more devices would help, or a smaller model."),
    ],
)
def test_a_search_that_finds_nothing_says_what_would_help(monkeypatch, capsys, ranked, words):
    """Oracle: the words a reader needs; why a mesh was dropped."""
    monkeypatch.setattr(searching, "rank", lambda *how: (ranked, ["24 rows, not a multiple of 5"]))
    refused = [(None, CompiledProgram(refusal="20 GiB are too much"))]
    monkeypatch.setattr(searching, "compile_programs", lambda *how: refused)
    what = Search([], [], mesh_of=None, flags=str, planned=lambda layout: [])
    assert not print_search(what, 3, CHIPS["v5e"], None)
    out = capsys.readouterr().out
    assert words in out and "1 dropped, such as: 24 rows, not a multiple of 5" in out


def searched(folder, *args):
    """(exit status, stdout, stderr) of one launch."""
    (folder / "small.py").write_text(CONFIG)
    return planned(folder, *args, config="small.py")


@pytest.mark.slow
def test_a_search_compiles_the_best_and_prints_their_flags(tmp_path):
    """Oracle: the compiler's own count of the memory, which is more than the state; the printed flags, which
    a plan takes and compiles, from the cache, to the memory in the search's table.
    """
    status, out, err = searched(tmp_path, "--topology=v5e:2x2", "--search=2")
    assert status == 0, err
    rows = re.findall(r"^ +(\w+=.*?) +(\d+) +(\w+) +yes +([\d.]+) +([\d.]+) +", out, re.M)
    assert [remat for _, _, remat, *_ in rows] == ["full", "none", "none"], out
    for *_, state, peak in rows:
        assert 0 < float(state) < float(peak)
    (flags,) = re.findall("the best of them: (.*)", out)
    status, out, err = searched(tmp_path, "--topology=v5e:2x2", *flags.split())
    assert status == 0, err
    assert any(f" {peak} GiB" in out for *_, peak in rows)


OF_CONFIGS = {
    # The leaves of a frozen base have an order of axes in memory
    "adapters": [("grpo_lora", None), ("sft_lora", None), ("r1_own", None)],
    "all": [(path.stem, arg) for path, arg in RUNS],
}


@pytest.mark.slow
@pytest.mark.parametrize("runs", OF_CONFIGS)
def test_the_updates_of_an_experiment_are_ranked_on_every_mesh_that_splits_them(runs):
    """Oracle: the updates that the recipe places on the mesh: the bytes of their arguments, of gradients
    as large as their parameters, and of what lies beside; why any other mesh is dropped.
    """
    found = compile_apart(RANK, json.dumps(OF_CONFIGS[runs]), timeout=900)
    for name, arg, meshes, ranked, held, dropped in found:
        assert ranked + len(dropped) == meshes, (name, arg)
        for state, by_recipe in held:
            # Rows are padded for their mesh: 2% of a tiny network's state
            assert state == pytest.approx(by_recipe, rel=0.02), (name, arg)
        reasons = ("multiple of", "the training state alone takes")
        assert all(any(words in why for words in reasons) for why in dropped), (name, arg, dropped)
    assert runs == "all" or all(held for *_, held, _ in found)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ("--topology=v5e:2x2 --search=0", "0 is not a positive number of layouts"),
        ("--topology=h100:8 --search", "--search compiles for TPUs; --topology=h100:8 has none"),
        ("--search", "--topology is missing"),
    ],
)
def test_a_mistake_is_one_message_and_exit_status_two(tmp_path, args, words):
    """Oracle: the words a reader needs, no traceback."""
    status, _, err = searched(tmp_path, *args.split())
    assert status == 2 and words in err and "Traceback" not in err, err
