"""Whole runs, each told in order: a module with run(config, mesh, workdir, should_stop) is one."""
