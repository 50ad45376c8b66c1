"""What only a plan needs: it compiles programs for absent devices and reads the result.

Nothing runs. The files:

    topology.py: the devices of a name such as v5p:8x8x16, and an experiment's programs on them
    compiled.py: the memory that the compiler reports, and by hlo*.py the work in its text
    records.py, stored.py: the records of both, and their files on disk
    by_shapes.py: the results of programs that are not compiled
    roofline.py: the seconds of that work
    report.py, summary.py, program_table.py, remedies.py: the page of a plan
    shards.py, ranking.py, layouts.py, search.py, search_table.py: --search
    published.py: --published
"""
