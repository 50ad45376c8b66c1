"""The parts of launch/sweep.py: runs, their folder, the plan's verdicts, the table, the loop."""
