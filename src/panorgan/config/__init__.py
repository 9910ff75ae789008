"""What the user chooses: typed settings, the class table, the registry of what has a name."""
