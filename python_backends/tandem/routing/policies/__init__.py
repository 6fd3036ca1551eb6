"""How a worker is chosen among those that can do a task: one file per policy."""
