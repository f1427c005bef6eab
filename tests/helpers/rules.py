"""The built-in unmasking rules with their settings, as tests of the sampler go through them."""

from unmask.sampling.unmasking import RULES, RunningConfidence

RCR = [
    RunningConfidence(confidence=confidence, statistic=statistic, scope=scope)
    for confidence in ("probability", "margin", "entropy")
    for statistic in ("latest", "max")
    for scope in ("block", "completion")
]
SCHEDULED = [rule() for rule in RULES.values() if not rule.adaptive]
