"""The unlearning methods by name: a forget term and a retain term. Names as in MUSE and the paper's tables."""

from __future__ import annotations

from collections.abc import Mapping

from unforgotten.experiments.methods.method import Method

METHODS: Mapping[str, Method] = {
    "GA": Method("GA", None, "gradient ascent on the forget text"),
    "GA_GDR": Method("GA", "GDR", "gradient ascent, cross entropy on the retain text"),
    "GA_KLR": Method("GA", "KLR", "gradient ascent, KL(target || model) on the retain text"),
    "NPO": Method("NPO", None, "negative preference optimization of the forget text"),
    "NPO_GDR": Method("NPO", "GDR", "NPO, cross entropy on the retain text"),
    "NPO_KLR": Method("NPO", "KLR", "NPO, KL(target || model) on the retain text"),
}
