"""A run of the workflow: the map of its files, inputs of its rules, jobs, kept work."""
