"""Tables of the page."""


def html_table(heads, rows, kind=""):
    """A table of HTML cells; the first cell of a row is its heading. kind: its class."""
    head = "".join(f'<th scope="col">{cell}</th>' for cell in heads)
    body = "\n".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>'
        for first, *rest in rows
    )
    return (
        f'<div class="wide"><table class="{kind}"><thead><tr>{head}</tr></thead>'
        f"\n<tbody>{body}</tbody></table></div>"
    )
