"""Traits that the pieces of every method declare, against finite differences of their losses."""

from helpers.every_method import DENOISER, REFERENCE, VARIANTS, batches_of, every_method, frozen
from helpers.small import EOS
from helpers.traits import check_surrogate, check_term

# Elementwise by chance of their settings: the k3 to the old policy is flat on policy, a Rényi bound of one row linear,
# and RSPO's loss is linear once its advantages are final.
DECLARE_LESS = (VARIANTS["unigrpo, independent"], VARIANTS["spg, one row"], VARIANTS["rspo"])


@every_method
def test_surrogate_traits_are_those_of_its_loss(method):
    for term in method.terms(EOS):
        check_surrogate(term.surrogate)


@every_method
def test_term_is_elementwise_as_its_derivatives_are(method):
    for term, batch in batches_of(method):
        if term.blend is None:  # blends are not log-probs of one row
            check_term(term, batch, exactly=method not in DECLARE_LESS)
        else:
            assert not any(term.is_elementwise(old_is_now=flag) for flag in (True, False))


@every_method
def test_metric_names_are_those_of_the_loss(method):
    for term, batch in batches_of(method):
        now = term.answers(DENOISER, batch, REFERENCE)
        _, sums = term.loss(batch, now, *frozen(term, batch), term.normalizer(batch))
        assert tuple(sums) == ("count", *term.metric_names)
