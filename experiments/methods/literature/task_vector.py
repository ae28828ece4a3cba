"""The task vector: theta_0 - strength (theta_ft - theta_0), theta_ft the target trained further on the forget text."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from unforgotten.experiments.methods.literature.settings import TaskVectorConfig
    from unforgotten.experiments.methods.method import Outcome, Task
    from unforgotten.experiments.methods.settings import Settings
    from unforgotten.experiments.methods.view import View


def negated(before: Tensor, after: Tensor, strength: float) -> Tensor:
    """Return before - strength (after - before), float32."""
    start = before.float()
    return start - strength * (after.float() - start)


def _cross_entropy(view: View, settings: Settings) -> Tensor:
    from unforgotten.experiments.models.log_probs import cross_entropy

    return cross_entropy(view.scored)


class TaskVector:
    """Negation of the task vector of the forget text. A `Method`."""

    name = "TaskVector"
    statement = "further training on the forget text, subtracted from the target"
    source = "Ilharco et al. 2023, arXiv 2212.04089; as in MUSE, Shi et al. 2024, arXiv 2407.06460"

    @property
    def settings(self) -> type[TaskVectorConfig]:
        """Type of what a profile may set for it."""
        from unforgotten.experiments.methods.literature.settings import TaskVectorConfig

        return TaskVectorConfig

    def unlearn(self, model: PreTrainedModel, task: Task, settings: TaskVectorConfig) -> Outcome:
        """Train on the forget text for all steps, in the arm, and subtract; what comes out is rounded as the arm rounds."""
        import math
        from dataclasses import replace

        import torch

        from unforgotten.experiments.arms.rounding import rounded
        from unforgotten.experiments.methods.descent import descend
        from unforgotten.experiments.methods.method import not_plain
        from unforgotten.experiments.methods.settings import settings_of
        from unforgotten.experiments.models.scoring import mean_loss

        found = replace(settings_of(task, settings), stop_forget_loss=math.inf)
        task.arithmetic.cast(model)
        start = {name: p.detach().clone() for name, p in model.named_parameters()}
        outcome = descend(model, _cross_entropy, None, found, task, None, ("followers", None))
        generator = torch.Generator(model.device).manual_seed(task.seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(rounded(negated(start[name], parameter, settings.strength), task.storage, generator))
        with task.arithmetic.computing():
            loss = mean_loss(model, task.watched, 4 * found.batch)
        common = settings_of(task, settings)
        return not_plain(replace(outcome, forget_loss=loss, settings=common.recorded()))


METHODS = (TaskVector(),)
