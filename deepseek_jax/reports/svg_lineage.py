"""The stages of a run as a graph: the inputs of a stage are on its left."""

import html

# Width and height of a stage's box, and of the space between boxes
BOX, GAP = (112, 40), (28, 22)
# Height of an arc per column that it spans
ARC = 14


def lineage_graph(stages):
    """Draw an <svg> of the stages that have begun, in columns by the length of the path to them.

    In a column the stage with the longest path ahead comes first, so that the longest path is
    straight. An edge that passes other columns is an arc above them; from a lower row it reaches
    the stage from below.

    Args:
        stages: As in Page.stages.
    """
    stages = [stage for stage in stages if stage["hash"] is not None]
    made_from = {s["name"]: [p for _, p in s["inputs"].values() if p is not None] for s in stages}
    column = {name: _longest(name, made_from) for name in made_from}
    children = {name: [c for c in made_from if name in made_from[c]] for name in made_from}
    ahead = {name: _longest(name, children) for name in made_from}
    row: dict[str, int] = {}
    # sorted is stable: stages with equal paths ahead keep their order
    for name in sorted(made_from, key=lambda name: -ahead[name]):
        row[name] = sum(column[other] == column[name] for other in row)
    spans = [column[child] - column[p] for child in made_from for p in made_from[child]]
    top = 4 + ARC * max(max(spans, default=1), 1)
    at = {
        n: (2 + column[n] * (BOX[0] + GAP[0]), top + row[n] * (BOX[1] + GAP[1])) for n in made_from
    }
    width = 4 + max((x for x, _ in at.values()), default=0) + BOX[0]
    height = 4 + max((y for _, y in at.values()), default=0) + BOX[1]
    edges = [_edge(at[p], at[child]) for child in made_from for p in made_from[child]]
    boxes = [_box(stage, *at[stage["name"]]) for stage in stages]
    label = "; ".join(f"{c} from {' and '.join(p)}" for c, p in made_from.items() if p)
    return (
        f'<svg class="lineage" width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img"'
        f' aria-label="{html.escape(label)}"><defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4"'
        ' markerWidth="7" markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z"/></marker></defs>'
        f"{''.join(edges)}{''.join(boxes)}</svg>"
    )


def as_class(state):
    """Return a stage's state as a CSS class."""
    return html.escape(state.replace(" ", "-"))


def _longest(name, onward):
    return max((1 + _longest(other, onward) for other in onward[name]), default=0)


def _edge(parent, child):
    (x, y), (to_x, to_y) = parent, child
    if to_x - x > BOX[0] + GAP[0] and to_y < y:
        x, y, to_x, to_y = x + BOX[0], y + BOX[1] / 2, to_x + BOX[0] / 2, to_y + BOX[1]
        path = f"M{x} {y}C{to_x - BOX[0]} {y} {to_x} {y} {to_x} {to_y}"
    elif to_x - x > BOX[0] + GAP[0]:
        x, to_x = x + BOX[0] * 3 / 4, to_x + BOX[0] / 4
        # A cubic curve rises to 3/4 of its control points' height, hence 4/3
        peak = min(y, to_y) - ARC * (to_x - x) / (BOX[0] + GAP[0]) * 4 / 3
        path = f"M{x} {y}C{x} {peak:.0f} {to_x} {peak:.0f} {to_x} {to_y}"
    else:
        x, y, to_y = x + BOX[0], y + BOX[1] / 2, to_y + BOX[1] / 2
        path = f"M{x} {y}C{x + GAP[0] / 2} {y} {to_x - GAP[0] / 2} {to_y} {to_x} {to_y}"
    return f'<path class="edge" d="{path}" marker-end="url(#tip)"/>'


def _box(stage, x, y):
    middle = x + BOX[0] / 2
    return (
        f'<g class="{as_class(stage["state"])}">'
        f'<rect x="{x}" y="{y}" width="{BOX[0]}" height="{BOX[1]}" rx="6"/>'
        f'<text x="{middle}" y="{y + 17}" class="name">{html.escape(stage["title"])}</text>'
        f'<text x="{middle}" y="{y + 32}">{html.escape(str(stage["hash"]))}</text></g>'
    )
