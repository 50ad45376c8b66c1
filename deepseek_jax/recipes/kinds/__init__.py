"""The kinds of stages, one file each: what its hash covers, what can be known to be wrong beforehand, what it
compiles, and the run. recipes.stage says what these functions get.
"""
