"""The kinds of stages, one file each: subclasses of stage.Stage, and the sources that they read."""
