"""What launch/sweep.py does: its runs, its folder, the plan's verdict on each run, and following them."""
