"""Where the stages of a run stand in the graph."""

import xml.etree.ElementTree as xml

from deepseek_jax.reports.svg_lineage import lineage_graph


def test_in_the_graph_a_stage_stands_to_the_right_of_all_that_it_was_made_from():
    """Oracle: the places of the boxes, read by an XML parser; R1's arrows by hand. What has not begun is
    not there.
    """
    made_from = {
        "base": [],
        "zero": ["base"],
        "dev1": ["base"],
        "dev2": ["dev1"],
        "dev3": ["base", "dev2"],
    }
    stages = [
        dict(
            name=name,
            title=name,
            hash=name,
            state="complete",
            inputs={p: ("a1", p) for p in parents},
        )
        for name, parents in made_from.items()
    ]
    to_come = dict(name="r1", title="R1", hash=None, state="not begun", inputs={})
    graph = xml.fromstring(lineage_graph([*stages, to_come]))
    at = {
        box.find("text").text: tuple(float(box.find("rect").get(key)) for key in "xy")
        for box in graph.iter("g")
    }
    assert at.keys() == made_from.keys() and len(set(at.values())) == len(at)
    assert all(at[parent][0] < at[child][0] for child in made_from for parent in made_from[child])
    assert len({at[name][1] for name in ("base", "dev1", "dev2", "dev3")}) == 1
    assert sum(edge.get("class") == "edge" for edge in graph.iter("path")) == 5
