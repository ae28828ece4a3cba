"""What each stage of a run takes: steps, operations, memory, disk.

Operations are those of products of matrices: 2 a weight and token forward, twice that backward, and those of attention. What is not
counted: quantizers and their calibration, elementwise work, reading and writing; and what a method does beside one pass of a forget
and a retain batch a step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from unforgotten.experiments.arms.arm import Arm, arms
from unforgotten.experiments.arms.states import planned
from unforgotten.experiments.config import RunConfig, TrainingConfig
from unforgotten.experiments.methods.registry import method_named
from unforgotten.experiments.methods.terms import LossMethod
from unforgotten.experiments.models.bases.registry import BASES
from unforgotten.experiments.models.training import training_steps
from unforgotten.experiments.plan.shapes import Shape
from unforgotten.experiments.plan.texts import Texts
from unforgotten.experiments.quantizers.registry import text_of
from unforgotten.experiments.run import stages

BACKWARD = 3
"""Operations of a forward and a backward pass, by those of a forward pass."""
FLOAT = 4
MOMENTS = 2
LOGIT_COPIES = 3
"""Logits, their logarithms normalized, and their gradient."""


@dataclass(frozen=True)
class Memory:
    """Bytes of a stage on its device.

    Attributes:
        parameters: weights, all copies at once.
        gradients: gradients.
        moments: what the optimizer keeps.
        reference: what is kept of the target for losses.
        activations: estimate of what a pass keeps.
    """

    parameters: int
    gradients: int = 0
    moments: int = 0
    reference: int = 0
    activations: int = 0

    @property
    def total(self) -> int:
        """Their sum."""
        return self.parameters + self.gradients + self.moments + self.reference + self.activations


@dataclass(frozen=True)
class Work:
    """What a stage does.

    Attributes:
        stage: name.
        steps: steps of training at most, 0 where nothing is trained.
        tokens: tokens that are passed forward.
        operations: floating-point operations in products of matrices; None where the model's sizes are not known.
        generated: operations of new tokens, as of one prompt at a time.
        together: prompts that generate at once, so that their weights are read once.
        memory: bytes on the device; None as `operations`.
        disk: bytes written; None as `operations`.
    """

    stage: str
    steps: int = 0
    tokens: int = 0
    operations: float | None = None
    generated: float = 0.0
    together: int = 1
    memory: Memory | None = None
    disk: int | None = None


@dataclass(frozen=True)
class Planner:
    """Says what each stage of a run takes.

    Attributes:
        config: configuration of the run.
        shape: sizes of its model, where they are known.
        texts: lengths of its text, where they are known.
    """

    config: RunConfig
    shape: Shape | None
    texts: Texts | None

    def works(self) -> Iterator[Work]:
        """Yield the work of every stage of the run, in order."""
        unlearned = {arm.name: arm for arm in arms(self.config)}
        for stage in stages(self.config):
            kind, name, *_ = stage.split(" ")
            match kind:
                case "train" | "load":
                    yield self._prepare(stage, name)
                case "unlearn":
                    yield self._unlearn(stage, unlearned[name])
                case "stand-in":
                    yield self._read(stage)
                case _:
                    yield self._measure(stage, kind)

    def _prepare(self, stage: str, name: str) -> Work:
        shape = self.shape
        training: TrainingConfig | None = self.config.finetuning
        if name == "base":
            base = BASES.get(self.config.base.kind)
            training = None if base is not None and base.trained else self.config.pretraining
        if stage.startswith("load ") or training is None:
            if shape is None:
                return Work(stage)
            weights = shape.parameters
            stored = shape.stored if stage.startswith("load ") else FLOAT
            return Work(stage, operations=0.0, memory=Memory(FLOAT * weights), disk=stored * weights)
        if self.texts is None:
            return Work(stage, steps=training.steps or 0)
        lengths = self.texts.training[name]
        return self._train(stage, training, lengths, FLOAT if name == "base" else FLOAT // 2)

    def _train(self, stage: str, training: TrainingConfig, lengths: Sequence[int], saved: int) -> Work:
        steps = training_steps(training, len(lengths))
        batch = min(training.batch, len(lengths))
        tokens = int(steps * batch * _mean(lengths))
        if self.shape is None:
            return Work(stage, steps, tokens)
        weights = self.shape.parameters
        width = FLOAT // 2 if training.autocast == "bf16" else FLOAT
        activations = activation_bytes(self.shape, batch, max(lengths), width)
        memory = Memory(FLOAT * weights, FLOAT * weights, MOMENTS * FLOAT * weights, 0, activations)
        return Work(stage, steps, tokens, self._passes(tokens, lengths, BACKWARD), memory=memory, disk=saved * weights)

    def _unlearn(self, stage: str, arm: Arm) -> Work:
        """Return the work of one arm: its steps at most, the checks of its rule at most, and what it needs of the target."""
        settings = self.config.unlearning
        own = settings.methods[arm.method]
        steps = int(getattr(own, "max_steps", None) or settings.max_steps[arm.storage])
        if self.texts is None:
            return Work(stage, steps)
        parts = self.texts.parts
        forget, retain, passages = (parts[name] for name in ("forget", "retain", "passages"))
        sizes = min(settings.batch, len(forget)), min(settings.retain_batch, len(retain)) if _retains(arm) else 0
        tokens = int(steps * (sizes[0] * _mean(forget) + sizes[1] * _mean(retain)))
        states = planned(self.config, arm)
        often = settings.keep == "nearest" and len(settings.depths) > 0
        checked = (steps if often else steps // settings.check_every + 1) * sum(passages)
        first = next(a for a in arms(self.config) if a.storage == arm.storage)
        seen = sum(forget) + sum(retain) if arm == first else 0  # the target sees both once for all arms of a storage
        if self.shape is None:
            return Work(stage, steps, tokens + checked + seen)
        operations = self._passes(tokens, forget, BACKWARD) + self._passes(checked + seen, passages, 1)
        weights, kept = self.shape.parameters, arm.kept.dtype.itemsize
        copies = 1 if states[0].depth is None else 1 + len(states)  # those of states wait in memory until the arm ends
        width = FLOAT // 2 if kept < FLOAT or settings.autocast == "bf16" else FLOAT
        longest = max(*forget, *retain) if sizes[1] else max(forget)
        memory = Memory(
            parameters=kept * weights * copies + FLOAT * weights,
            gradients=kept * weights,
            moments=MOMENTS * kept * weights,
            reference=kept * self.shape.width * (sum(forget) + sum(retain) + self.shape.vocabulary),
            activations=activation_bytes(self.shape, sum(sizes), longest, width),
        )
        return Work(stage, steps, tokens + checked + seen, operations, memory=memory, disk=kept * weights * len(states))

    def _read(self, stage: str) -> Work:
        """Return the work of a stage that reads the weights of a model that is there."""
        if self.shape is None:
            return Work(stage)
        return Work(stage, operations=0.0, memory=Memory(FLOAT * self.shape.parameters), disk=0)

    def _measure(self, stage: str, kind: str) -> Work:
        """Return the work of measuring one state, or the two mixed ones of a decomposition."""
        if self.texts is None:
            return Work(stage)
        parts, probes, times = self.texts.parts, self.texts.probes, 2 if kind == "decompose" else 1
        scored = [n for name in ("passages", "holdout", "retain texts measured") for n in parts[name]]
        prompts = [n for name in parts if name.startswith("prompts of") for n in parts[name]]
        answers = self.config.evaluation.answer_tokens
        new = sum(map(len, probes.verbatim_tokens)) + answers * (
            len(probes.forget_prompts) + len(probes.retain_prompts)
        )
        tokens = times * (sum(scored) + sum(prompts) + new)
        if self.shape is None:
            return Work(stage, tokens=tokens)
        together = max(1, min(self.config.evaluation.batch, len(prompts)))
        calibrated = (
            text_of(stage.rsplit(" ", 1)[-1]) is not None
        )  # its weights are held whole once, then read from disk
        longest = max([*scored, *prompts]) + max(answers, self.config.corpus.probe_tokens)
        cached = FLOAT * self.shape.layers * self.shape.key_width * together * longest
        return Work(
            stage,
            tokens=tokens,
            operations=self._passes(times * (sum(scored) + sum(prompts)), [*scored, *prompts], 1),
            generated=self._passes(times * new, prompts, 1),
            together=together,
            memory=Memory((1 + calibrated) * FLOAT * self.shape.parameters, activations=cached),
            disk=FLOAT * self.shape.parameters if calibrated and kind == "evaluate" else 0,
        )

    def _passes(self, tokens: int, lengths: Sequence[int], times: int) -> float:
        return 0.0 if self.shape is None else times * tokens * self.shape.products(_mean(lengths))


def _retains(arm: Arm) -> bool:
    """Tell whether a method passes a retain batch; of one that is not made of losses, and not around such a one, it is assumed."""
    method = method_named(arm.method)
    inner = getattr(method, "base", method)
    return not (isinstance(inner, LossMethod) and inner.retain is None)


def _mean(lengths: Sequence[int]) -> float:
    return sum(lengths) / max(1, len(lengths))


def activation_bytes(shape: Shape, batch: int, length: int, width: int) -> int:
    """Return an estimate of what a backward pass needs of a forward pass, without checkpointing, with whole attention matrices.

    batch * length * (layers * hidden * (34 + 5 heads length / hidden) * width / 2 + 3 vocabulary * 4); the first part is that of a
    transformer of 16-bit activations in Korthikanti et al. 2022, arXiv 2205.05198, eq. 1, the second that of the logits. It is within
    a factor of 2 of what small Llamas keep for the backward pass, with the gradient of their logits.

    Args:
        shape: sizes of the model.
        batch: documents that are passed together.
        length: tokens of the longest.
        width: bytes of an activation.
    """
    layer = (34 * shape.width + 5 * shape.heads * length) * width // 2
    return batch * length * (shape.layers * layer + LOGIT_COPIES * FLOAT * shape.vocabulary)
