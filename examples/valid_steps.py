"""A reward of one's own: partial credit for arithmetic, written as TRL's are."""

from unmask.rewards import cached
from unmask.tasks import Arithmetic


@cached
def valid_steps(prompts, completions, **columns):
    """The share of a completion's steps that are worth the answer."""
    return Arithmetic().metrics(prompts, completions, **columns)["chain_valid"]
