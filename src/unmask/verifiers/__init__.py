"""Scorers of written answers: where a completion states its answer, and whether that is the right one.

Nothing here runs what a model wrote in this process: numbers and expressions are read by whitelists, LaTeX is compared
in processes that the kernel kills in time, programs are run inside bubblewrap.
"""
