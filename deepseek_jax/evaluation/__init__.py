"""What a run reached, and how sure that is: intervals, tables and curves."""
