"""What the metrics in the rows of a run mean."""

from __future__ import annotations

from collections.abc import Mapping

METRICS: Mapping[str, str] = {
    "M1": "verbatim memory of the forget split: ROUGE-L F1, 0-100",
    "M2": "knowledge of the forget split: ROUGE-L F1, 0-100",
    "M3": "privacy leakage against this run's retrained model, percent; 0 is ideal, -100 not unlearned",
    "M4": "knowledge of the retain split: ROUGE-L F1, 0-100",
    "auc": "P[Min-K % of a holdout text > Min-K % of a forget text]",
    "forget_loss": "mean negative log-probability per token of the forget passages, nats",
    "retain_loss": "the same of the retain documents, question sheets among them",
    "gain": "<D, delta> / <delta, delta> of the update, adaptive grid; likewise cosine and the counts of codes",
    "gating_effect": "effect of the update on the forget loss lost because D replaces delta (T14)",
    "base_shift_effect": "effect lost because Q(w) replaces w (T14)",
    "rho_M1": "recovered fraction of M1 (T16); likewise rho_M2 and rho_forget_loss",
}

ALWAYS = ("M1", "M2", "M3", "M4", "forget_loss", "retain_loss", "auc", "auc_gap")
"""What every model of a run is measured by, whatever its configuration asks for."""

ASSUMED = "Llama-2-7B, assumed"
"""The model that small ones stand in for, where none was read: weights N(0, 0.02^2) in 32 layers."""

STAND_IN: Mapping[str, str] = {
    "weight_std": "Weight std",
    "bf16_edge": "bf16 edge",
    "below_edge": "Weights below the edge",
    "layers": "Layers",
    "tied_share": "Tied share",
    "block_absmax": "Median block absmax",
    "edge_over_threshold": "Edge / first threshold",
    "swallowing_blocks": "Blocks that swallow",
}
"""What tells how near a model is to that, with the heads of its columns."""

RISING = ("M1", "M2", "M4")
"""What knows more where it is higher; of M3 the best is 0."""
FALLING = ("forget_loss", "retain_loss")


def higher_is_better(metric: str) -> bool | None:
    """Tell whether a model that knows more has a higher value, as harnesses ask; None where neither end is better."""
    return True if metric in RISING else False if metric in FALLING else None
