"""What the output leg and the behaviour leg hold in `audit.json`: plain numbers, lists and names, no nan."""

from __future__ import annotations

from typing import TypedDict


class _Counted(TypedDict, total=False):
    """What rows of earlier audits do not have.

    `effective`: number of items of equal removal that vary as much (Kish); None where nothing was removed. `bootstrap`:
    percentile interval of rho, [low, high], None where that one is undefined; in a row without it, `low` and `high` are it.
    """

    effective: float | None
    bootstrap: list[float] | None


class RecoveryRow(_Counted):
    """T16 of one metric in one format; rho and its interval are None while nothing to recover is measurable.

    `low`, `high`: 95 % interval of rho by Fieller with pseudo-items (`theory/models/fieller.py`).
    `removed`: unlearning took something at full precision, by the interval of the difference. `change`: what
    quantization does to the unlearned model, as [low, high]. `p_undone`, `p_survives`: against rho <= SURELY and
    against rho >= MATERIAL (see `evidence`); 1 where rho is None.
    """

    metric: str
    n: int
    target: float
    unlearned: float
    quantized_target: float
    quantized_unlearned: float
    removed: bool
    rho: float | None
    low: float | None
    high: float | None
    change: list[float]
    p_undone: float
    p_survives: float


class Leak(TypedDict):
    """Items that come back at least half way, of the `items` from which unlearning took a good part.

    `formats`: how many in each format; `leaking`: formats in which they are more than MATERIAL of the items, at a false
    discovery rate of LEVEL under any dependence; `union`: items that any format brings back, as a number, and its
    share with a Clopper-Pearson interval.
    """

    metric: str
    items: int
    formats: dict[str, int]
    leaking: list[str]
    union: int
    share: float
    low: float
    high: float


class Mean(TypedDict):
    """A mean over items with its standard error."""

    value: float
    stderr: float | None
    n: int


class Effects(TypedDict):
    """T14 of one metric: lost effect = gating + base shift."""

    metric: str
    lost: Mean
    gating: Mean
    base_shift: Mean


class Distance(TypedDict):
    """How two models differ on the texts, token by token.

    `kl`: KL(first || second), nats a token; `agreement`: share of equal top-1 tokens; `tv_upper_bound`: T15, on the
    change of any expectation of a next token; `certified`: share of tokens whose top-1 no change of the logits as
    large as the token's own could alter.
    """

    first: str
    second: str
    kl: Mean
    agreement: Mean
    tv_upper_bound: float
    certified: float


class RoundedRow(TypedDict):
    """What rounding to the dtype of the models changes, in one format, over the weights that it touches.

    `format`: "none" for the models themselves, over all weights. `weights`: weights of each model that are rounded;
    `target`, `unlearned`: those of each, quantized, that are other values then. `moved`: weights whose values differ between
    the two; `swallowed`: those of them that are equal once rounded. `gain`: D·delta / |delta|^2 of the float32 values,
    `gain_ran`: of the rounded ones, which ran; None without an update.
    """

    format: str
    weights: int
    target: int
    unlearned: int
    moved: int
    swallowed: int
    gain: float | None
    gain_ran: float | None


DEPLOYED = "deployed"
"""Name of the format of the pair as it was really quantized, where its own runtime was measured."""


class Ran(TypedDict):
    """How models ran.

    `dtype`: dtype of their weights and activations, of a real runtime's that of those which are not quantized; losses are
    computed from logits in float32 or wider. `devices`: where their weights lay. `runtime`: "simulated": a plain model takes
    the values of a quantized one; otherwise the libraries that ran it, with their versions. `rounded`: one row for the models
    and one a format; none in float32, and none of a real runtime.
    """

    dtype: str
    devices: list[str]
    runtime: str
    rounded: list[RoundedRow]


class _RanItself(TypedDict, total=False):
    """What a format has whose models ran otherwise than the leg says."""

    ran: Ran


class OutputFormat(_RanItself):
    """One format of the output leg."""

    format: str
    losses: dict[str, Mean]
    distances: list[Distance]
    recoveries: list[RecoveryRow]
    effects: list[Effects]


class FunctionalRow(TypedDict):
    """T20 in one format, over the weights that it touches.

    `first_order`: g·delta, nats a token, g the gradient of the forget loss at the unlearned weights: positive where the
    update raises it. `gain`: D·delta / |delta|^2; `functional_gain`: g·D / g·delta; None without an update.
    `sham_gain`: the gain of random updates, as long in each tensor; `sham_shift`: the largest |g·(D - delta)| of theirs over
    |g·delta| of the update, which is how far from 1 the functional gain may lie by chance.
    """

    format: str
    weights: int
    first_order: float
    gain: float | None
    functional_gain: float | None
    sham_gain: float | None
    sham_shift: float | None


class FunctionalLeg(TypedDict):
    """T20 from one backward pass over `texts` of the `of` forget texts, `tokens` in all; `shams` random updates."""

    texts: int
    of: int
    tokens: int
    shams: int
    formats: list[FunctionalRow]


class _Functional(TypedDict, total=False):
    """What a leg has that took the gradient of the forget loss, and how its models ran, unless it was made elsewhere.

    `items_sha256`: digest of what was asked and what counts as right, of the items that were measured; legs of earlier
    versions have none. Of an evaluation made elsewhere it is over the ids, and the prompts and truths where the files have them.
    """

    functional: FunctionalLeg
    ran: Ran
    items_sha256: str


class OutputLeg(_Functional):
    """Models on given texts, one item a text; `losses` in nats a token, by model. `cut`: texts longer than the context."""

    texts: str
    count: int
    tokens: int
    cut: int
    losses: dict[str, Mean]
    distances: list[Distance]
    formats: list[OutputFormat]
    notes: list[str]


class BehaviourFormat(_RanItself):
    """One format of the behaviour leg; metrics by model: "Q(target)" and "Q(unlearned)"."""

    format: str
    metrics: dict[str, dict[str, Mean]]
    recoveries: list[RecoveryRow]
    effects: list[Effects]


class _Named(_Functional, total=False):
    """What a leg has whose metrics are not M1, M2 and M4: those that decide, and those of the retain split."""

    deciding: list[str]
    retained: list[str]


class BehaviourLeg(_Named):
    """M1-M4 on a benchmark; metrics by model: "target", "unlearned", and "retrained" where given."""

    benchmark: str
    metrics: dict[str, dict[str, Mean]]
    formats: list[BehaviourFormat]
    leaks: list[Leak]
    notes: list[str]


DECIDES_BEHAVIOUR = ("M1", "M2")


def deciding_of(leg: BehaviourLeg | None) -> tuple[str, ...]:
    """Return the metrics on which a verdict by behaviour rests."""
    return DECIDES_BEHAVIOUR if leg is None else tuple(leg.get("deciding", DECIDES_BEHAVIOUR))


def retained_of(leg: BehaviourLeg) -> tuple[str, ...]:
    """Return the metrics of the retain split of which more is more knowledge."""
    return tuple(leg.get("retained", ("M4",)))
