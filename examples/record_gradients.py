"""Records the gradients of a `transformers.Trainer` for `unforgotten forecast`; some 60 steps in float32 are enough.

trainer.add_callback(RecordGradients(trainer.model, "gradients.npz"))
"""

import numpy as np
from transformers import TrainerCallback


class RecordGradients(TrainerCallback):
    """Keeps what AdamW is given at each step for some blocks of 64 weights; writes them when training ends."""

    def __init__(self, model, path, blocks=1000):
        """Draw blocks from the projections of the model, as many from each matrix."""
        matrices = [
            w for name, w in model.named_parameters() if "proj" in name and w.ndim == 2 and w.shape[1] % 64 == 0
        ]
        draw, each = np.random.default_rng(0), -(-blocks // len(matrices))
        self.parts = [(w, draw.integers(w.numel() // 64, size=each)) for w in matrices]
        self.path, self.gradients, self.lr, self.settings = path, [], [], {}
        self.weights = self.sample(lambda w: w)
        rows = [w.detach().float().abs().amax(1).cpu().numpy()[at * 64 // w.shape[1]] for w, at in self.parts]
        self.row_absmax = np.concatenate(rows)

    def sample(self, part):
        """Return the drawn blocks of every matrix, or of its gradient."""
        return np.concatenate([part(w).detach().float().reshape(-1, 64).cpu().numpy()[at] for w, at in self.parts])

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        """Record a step: its gradients are clipped, and not yet used."""
        self.gradients.append(self.sample(lambda w: w.grad))
        self.lr.append(optimizer.param_groups[0]["lr"])
        self.settings = {"beta1": args.adam_beta1, "beta2": args.adam_beta2, "eps": args.adam_epsilon}
        self.settings["weight_decay"] = args.weight_decay

    def on_train_end(self, args, state, control, **kwargs):
        """Write the file."""
        recorded = {"weights": self.weights, "row_absmax": self.row_absmax, "gradients": np.stack(self.gradients)}
        np.savez(self.path, **recorded, lr=np.array(self.lr), **self.settings)
