"""What only a plan needs. Programs are compiled for devices that are not there, and read; nothing runs.

topology.py: the devices of a name such as v5p:8x8x16, and an experiment's programs on them. compiled.py: the
compiler's memory and, by hlo*.py, the work that its text shows, as records.py that stored.py keeps;
by_shapes.py: results of what is not compiled. roofline.py: the seconds of that work. report.py, summary.py,
program_table.py and remedies.py: the page of a plan. shards.py, ranking.py, search.py and search_table.py:
--search. published.py: --published.
"""
