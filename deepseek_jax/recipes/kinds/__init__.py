"""The kinds of stages, one file each: classes that extend stage.Stage, and the sources that they read."""
