"""What a run's report.html has, for tests of recipes."""

import html
import json
import re

PARTS = ["results", "rewarded", "curves", "completions", "samples", "configuration", "lineage"]


def parts_of(workdir):
    """{part of the page: its words}, in order."""
    page = (workdir / "report.html").read_text()
    found = re.findall(r'<section id="(\w+)">(.*?)</section>', page, re.DOTALL)
    return {name: _words(body) for name, body in found}


def data_of(workdir, name):
    """What a data element of the page holds: "pairs" or "samples"."""
    page = (workdir / "report.html").read_text()
    return json.loads(re.search(f'id="{name}-data">(.*?)</script>', page)[1])


def facts_of(workdir):
    """The words under the page's title."""
    page = (workdir / "report.html").read_text()
    return _words(re.search(r'<div id="facts">(.*?)</div>', page, re.DOTALL)[1])


def _words(body):
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", body)).strip())
