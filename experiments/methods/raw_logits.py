"""The losses that the released code of MUSE computes under the names NPO and KLR, from logits that are not normalized.

They are kept to find what they have to do with recovery; `npo.py` and `retain.py` hold the losses of the formulas. Padding,
which the released code counts, is left out.

Source: `baselines/baselines/iterative.py` of github.com/jaechan-repo/muse_bench, in whose issues 2 and 5 both are reported; the code of
arXiv 2410.16454 is built on it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from unforgotten.experiments.methods.ga import GA
from unforgotten.experiments.methods.npo import NPO
from unforgotten.experiments.methods.retain import RETAIN_TERMS
from unforgotten.experiments.methods.terms import ForgetTerm, RetainTerm, by_loss

if TYPE_CHECKING:
    from torch import Tensor

    from unforgotten.experiments.methods.settings import Settings
    from unforgotten.experiments.methods.view import View


def raw_preference(model: Tensor, real: Tensor, reference: Tensor, beta: float) -> Tensor:
    """Return -(2 / beta) mean log sigmoid(beta (z_ref - z)), over all logits of the real tokens.

    It pushes every logit down, whatever token follows: no label enters.

    Args:
        model: z, logits of the model, (batch, length, vocabulary).
        real: True on real tokens, (batch, length).
        reference: z_ref, logits of the target.
        beta: inverse temperature, > 0.
    """
    from torch.nn import functional

    kept = functional.logsigmoid(beta * (reference - model).float()).mean(-1)
    return -(2.0 / beta) * kept.masked_fill(~real, 0.0).sum() / real.sum()


def raw_divergence(model: Tensor, real: Tensor, reference: Tensor) -> Tensor:
    """Return the sum of exp(z_ref) (z_ref - z) over the logits of the real tokens, divided by the number of documents.

    Its gradient in z is -exp(z_ref) wherever z is, so it has no minimum: neither is it 0 only at the reference, nor bounded below.

    Args:
        model: z, logits of the model, (batch, length, vocabulary).
        real: True on real tokens, (batch, length).
        reference: z_ref, logits of the target.
    """
    reference = reference.float()
    terms = (reference.exp() * (reference - model)).sum(-1)
    return terms.masked_fill(~real, 0.0).sum() / len(model)


def _preference_loss(view: View, settings: Settings) -> Tensor:
    return raw_preference(view.logits, view.real, view.target_logits, settings.beta)


def _divergence_loss(view: View, settings: Settings) -> Tensor:
    return raw_divergence(view.logits, view.real, view.target_logits)


SOURCE = "released code of MUSE, github.com/jaechan-repo/muse_bench; not a published loss"
NPO_RAW = ForgetTerm(
    name="NPO_rawlogits",
    statement="all logits pushed below the target's, as released under the name NPO",
    beside="NPO of raw logits, as released",
    loss=_preference_loss,
    source=SOURCE,
    mean="tokens",
)
KLR_RAW = RetainTerm(
    "KLR_rawlogits",
    "KL of raw logits on the retain text, as released under the name KLR",
    _divergence_loss,
    SOURCE,
    "documents",
)
METHODS = (
    by_loss(GA, KLR_RAW),
    by_loss(NPO, KLR_RAW),
    *(by_loss(NPO_RAW, retain) for retain in (*RETAIN_TERMS, KLR_RAW)),
)
