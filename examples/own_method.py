"""An unlearning method of one's own: `unforgotten run tiny --method examples/own_method.py:less_likely`."""

from unforgotten.experiments.methods.method import Outcome
from unforgotten.experiments.methods.optimizers import make_optimizer
from unforgotten.experiments.models.batches import shuffled_batches
from unforgotten.experiments.models.log_probs import cross_entropy
from unforgotten.experiments.models.scoring import mean_loss, score_batch


def less_likely(model, task, settings):
    """Lower the probability of each token of the forget text, and keep the retain text."""
    optimizer = make_optimizer(model, settings, task)
    forget = shuffled_batches(task.forget, settings.batch, pad_id=0, seed=task.seed)
    retain = shuffled_batches(task.retain, settings.retain_batch, pad_id=0, seed=task.seed + 1)
    for step in range(1, settings.max_steps + 1):
        with task.arithmetic.computing():
            lost, kept = (score_batch(model, next(batches)) for batches in (forget, retain))
            loss = lost.label.exp()[lost.mask].mean() + settings.alpha * cross_entropy(kept)
            loss.backward()
        task.before_step(model, settings.lr)  # `unforgotten forecast` listens here
        optimizer.step()
        optimizer.zero_grad()
        task.progress(step, settings.max_steps, f"loss {loss.item():.3f}")
    with task.arithmetic.computing():
        forgotten = mean_loss(model, task.watched, settings.batch)
    return Outcome(settings.max_steps, "max_steps", forgotten, settings.recorded())
