"""Tables of the page.

Tests: tests/reports/test_html_report.py.
"""


def html_table(heads, rows, kind=""):
    """Write a table of HTML cells, where the first cell of a row is its heading.

    Args:
        kind: The table's CSS class.
    """
    head = "".join(f'<th scope="col">{cell}</th>' for cell in heads)
    body = "\n".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>'
        for first, *rest in rows
    )
    return (
        f'<div class="wide"><table class="{kind}"><thead><tr>{head}</tr></thead>'
        f"\n<tbody>{body}</tbody></table></div>"
    )
