"""Fuzzing of what comes from outside: flags, recipes, data, model directories, completions, a judge's answers."""
