"""Settings of every command, strict TOML recipes, and the recipes that ship."""
