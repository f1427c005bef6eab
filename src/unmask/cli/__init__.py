"""The command `unmask`: flags, and what each subcommand does."""
