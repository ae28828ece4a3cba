"""A pair of checkpoints in, what quantization leaves of the update between them out.

In: a target (before unlearning) and an unlearned checkpoint, from files, adapters, GGUF or the Hub (`sources`), or a pair
that is quantized already (`codes`). Out: `audit.json`, tables, a page (`outputs`). As in

    audit_pair(Path("target"), Path("unlearned"), ["int4-g64", "nf4-b64"], Path("audits/mine"))

Words of our own, all over this package:

- **leg**: one kind of evidence, measured by itself: the weights leg (`weights`: what is left of every matrix), the output
  leg (what the quantized models say of texts), the behaviour leg (what they know, on a benchmark). `verdict` weighs them.
- **update**, delta: the unlearned weights less the target's. **Surviving update**, D: the same after quantization.
- **gain**: D·delta / delta·delta, the share of the update that is left along itself; 1 is all of it, 0 is none.
- **swallowed**: a gain near 0. **dead zone**: weights so large that the storage dtype cannot hold a step of training.
- **wash**: an update that changes fewer codes than chance would, as if it had been placed so.
- **recovery**, rho: of what unlearning took from a metric, the share that quantization brings back.
- **finding**: a sentence with its numbers, from one leg (`findings`). A verdict needs a measured leg besides the weights.
"""

from unforgotten.audit.outputs.result import AuditResult as AuditResult
from unforgotten.audit.outputs.summary import print_summary as print_summary
from unforgotten.audit.run import DEFAULT_FORMATS as DEFAULT_FORMATS
from unforgotten.audit.run import audit_pair as audit_pair
from unforgotten.audit.sources.checkpoint import Checkpoint as Checkpoint
from unforgotten.audit.sources.checkpoint import open_checkpoint as open_checkpoint
from unforgotten.audit.sources.open import open_pair as open_pair
from unforgotten.audit.sources.open import open_source as open_source
from unforgotten.audit.sources.safetensors_header import CheckpointError as CheckpointError
from unforgotten.audit.verdict.gate import VERDICTS as VERDICTS
from unforgotten.audit.weights.leg import WeightsLeg as WeightsLeg
from unforgotten.audit.weights.leg import weights_leg as weights_leg
