"""A pair of checkpoints in, what quantization leaves of the update between them out."""

from unforgotten.audit.outputs.result import AuditResult as AuditResult
from unforgotten.audit.outputs.summary import print_summary as print_summary
from unforgotten.audit.run import DEFAULT_FORMATS as DEFAULT_FORMATS
from unforgotten.audit.run import VERDICTS as VERDICTS
from unforgotten.audit.run import audit_pair as audit_pair
from unforgotten.audit.sources.checkpoint import Checkpoint as Checkpoint
from unforgotten.audit.sources.checkpoint import open_checkpoint as open_checkpoint
from unforgotten.audit.sources.open import open_pair as open_pair
from unforgotten.audit.sources.open import open_source as open_source
from unforgotten.audit.sources.safetensors_header import CheckpointError as CheckpointError
from unforgotten.audit.weights.leg import WeightsLeg as WeightsLeg
from unforgotten.audit.weights.leg import weights_leg as weights_leg
