"""Other tools, and this one, each in a process and an environment of its own, asked for the same pictures."""
