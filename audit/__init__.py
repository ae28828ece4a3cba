"""A pair of checkpoints in, what quantization leaves of the update between them out."""

from unforgotten.audit.checkpoints import Checkpoint as Checkpoint
from unforgotten.audit.checkpoints import open_checkpoint as open_checkpoint
from unforgotten.audit.headers import CheckpointError as CheckpointError
from unforgotten.audit.result import AuditResult as AuditResult
from unforgotten.audit.run import DEFAULT_FORMATS as DEFAULT_FORMATS
from unforgotten.audit.run import VERDICTS as VERDICTS
from unforgotten.audit.run import audit_pair as audit_pair
from unforgotten.audit.sources import open_pair as open_pair
from unforgotten.audit.sources import open_source as open_source
from unforgotten.audit.summary import print_summary as print_summary
from unforgotten.audit.weights import WeightsLeg as WeightsLeg
from unforgotten.audit.weights import weights_leg as weights_leg
