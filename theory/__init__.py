"""The mathematics: formats as data, cells, flips, gating, dead zones, response, recovery. numpy and scipy only.

`theory/README.md` is the readable form. A function that shares its name with its module (`cells`, `quantize`, `predict`,
`bound`, `block_law`, `auc`, `gptq`) is not re-exported: import it from there. `design` needs jax and `proofs` sympy and z3.
Modules say `import scipy` and then `scipy.special.ndtr`, never `from scipy import special`: scipy loads a part of itself
on its first use, so that what needs names alone, as `unforgotten formats` does, loads none.
"""

from unforgotten.theory.absmax import AbsmaxLaw as AbsmaxLaw
from unforgotten.theory.absmax import absmax_cdf as absmax_cdf
from unforgotten.theory.absmax import absmax_law as absmax_law
from unforgotten.theory.absmax import expected_absmax as expected_absmax
from unforgotten.theory.absmax import expected_inverse_absmax as expected_inverse_absmax
from unforgotten.theory.absmax import observed_absmax as observed_absmax
from unforgotten.theory.adamw import (
    adamw_displacement_upper_bound as adamw_displacement_upper_bound,
)
from unforgotten.theory.adamw import adamw_limit_ratio as adamw_limit_ratio
from unforgotten.theory.adamw import adamw_ratio_upper_bound as adamw_ratio_upper_bound
from unforgotten.theory.adamw import adamw_step_upper_bound as adamw_step_upper_bound
from unforgotten.theory.adamw import extremal_gradients as extremal_gradients
from unforgotten.theory.auc import AucRange as AucRange
from unforgotten.theory.auc import auc_change_upper_bound as auc_change_upper_bound
from unforgotten.theory.auc import auc_range as auc_range
from unforgotten.theory.awq import search_clip as search_clip
from unforgotten.theory.awq import search_scales as search_scales
from unforgotten.theory.block_law import Expected as Expected
from unforgotten.theory.bound import Answer as Answer
from unforgotten.theory.bound import Question as Question
from unforgotten.theory.boundary import Moments as Moments
from unforgotten.theory.boundary import boundary_density as boundary_density
from unforgotten.theory.boundary import levels_moved as levels_moved
from unforgotten.theory.boundary import pinned_levels as pinned_levels
from unforgotten.theory.cells import Cells as Cells
from unforgotten.theory.cells import position as position
from unforgotten.theory.claims import CLAIMS as CLAIMS
from unforgotten.theory.claims import PROOFS as PROOFS
from unforgotten.theory.claims import Claim as Claim
from unforgotten.theory.claims import Proof as Proof
from unforgotten.theory.claims import claim as claim
from unforgotten.theory.claims import proof as proof
from unforgotten.theory.concentration import concentrated_cosine as concentrated_cosine
from unforgotten.theory.concentration import needed_share as needed_share
from unforgotten.theory.curvature import (
    curvature_remainder_upper_bound as curvature_remainder_upper_bound,
)
from unforgotten.theory.curvature import gating_curvature as gating_curvature
from unforgotten.theory.dead_zone import BinadeCounts as BinadeCounts
from unforgotten.theory.dead_zone import DeadZone as DeadZone
from unforgotten.theory.dead_zone import add_binades as add_binades
from unforgotten.theory.dead_zone import count_binades as count_binades
from unforgotten.theory.dead_zone import find_dead_zone as find_dead_zone
from unforgotten.theory.dead_zone import frozen_exponent as frozen_exponent
from unforgotten.theory.decomposition import LostEffect as LostEffect
from unforgotten.theory.decomposition import lost_effect as lost_effect
from unforgotten.theory.densities import Density as Density
from unforgotten.theory.densities import Empirical as Empirical
from unforgotten.theory.densities import Gaussian as Gaussian
from unforgotten.theory.densities import Laplace as Laplace
from unforgotten.theory.densities import StudentT as StudentT
from unforgotten.theory.densities import density_named as density_named
from unforgotten.theory.densities import empirical as empirical
from unforgotten.theory.divergence import metric_change_upper_bound as metric_change_upper_bound
from unforgotten.theory.divergence import total_variation_upper_bound as total_variation_upper_bound
from unforgotten.theory.drift import certified_codes as certified_codes
from unforgotten.theory.drift import keeps_code as keeps_code
from unforgotten.theory.drift import scale_drift_upper_bound as scale_drift_upper_bound
from unforgotten.theory.drift import unflipped_update_upper_bound as unflipped_update_upper_bound
from unforgotten.theory.energy import effective_step as effective_step
from unforgotten.theory.energy import energy_density as energy_density
from unforgotten.theory.energy import expected_cosine as expected_cosine
from unforgotten.theory.energy import gated_energy as gated_energy
from unforgotten.theory.flips import flip_probability as flip_probability
from unforgotten.theory.formats import FAMILIES as FAMILIES
from unforgotten.theory.formats import Format as Format
from unforgotten.theory.formats import format_named as format_named
from unforgotten.theory.gating import gated_mean as gated_mean
from unforgotten.theory.gating import gated_variance as gated_variance
from unforgotten.theory.gating import riemann_gain as riemann_gain
from unforgotten.theory.gptq import GptqRule as GptqRule
from unforgotten.theory.gptq import calibration_hessian as calibration_hessian
from unforgotten.theory.greedy import certified_prefix as certified_prefix
from unforgotten.theory.greedy import certified_tokens as certified_tokens
from unforgotten.theory.greedy import (
    greedy_metric_change_upper_bound as greedy_metric_change_upper_bound,
)
from unforgotten.theory.greedy import top_two_gap as top_two_gap
from unforgotten.theory.lattice import error_norm_upper_bound as error_norm_upper_bound
from unforgotten.theory.lattice import is_swallowed as is_swallowed
from unforgotten.theory.lattice import lost_update_upper_bound as lost_update_upper_bound
from unforgotten.theory.lattice import nearest_plane_loss as nearest_plane_loss
from unforgotten.theory.lattice import one_feature_shift as one_feature_shift
from unforgotten.theory.lattice import sequential_cell as sequential_cell
from unforgotten.theory.lattice import sequential_flip_probability as sequential_flip_probability
from unforgotten.theory.lattice import sequential_loss_variance as sequential_loss_variance
from unforgotten.theory.motion import StepLaw as StepLaw
from unforgotten.theory.motion import expected_displacement as expected_displacement
from unforgotten.theory.motion import rounded_velocity as rounded_velocity
from unforgotten.theory.motion import step_law as step_law
from unforgotten.theory.motion_fit import observed_moves as observed_moves
from unforgotten.theory.motion_fit import stationary_fit as stationary_fit
from unforgotten.theory.multiplicity import Discoveries as Discoveries
from unforgotten.theory.multiplicity import false_discoveries as false_discoveries
from unforgotten.theory.optimizers import STEP_UPPER_BOUNDS as STEP_UPPER_BOUNDS
from unforgotten.theory.optimizers import (
    adam_uncorrected_step_upper_bound as adam_uncorrected_step_upper_bound,
)
from unforgotten.theory.optimizers import decay_step_upper_bound as decay_step_upper_bound
from unforgotten.theory.optimizers import frozen_magnitude as frozen_magnitude
from unforgotten.theory.optimizers import largest_step as largest_step
from unforgotten.theory.optimizers import lion_step_upper_bound as lion_step_upper_bound
from unforgotten.theory.optimizers import lora_change_upper_bound as lora_change_upper_bound
from unforgotten.theory.optimizers import sgd_step_upper_bound as sgd_step_upper_bound
from unforgotten.theory.optimizers import sign_step_upper_bound as sign_step_upper_bound
from unforgotten.theory.predict import Prediction as Prediction
from unforgotten.theory.predict import predict_moves as predict_moves
from unforgotten.theory.preimages import Interval as Interval
from unforgotten.theory.preimages import block_box as block_box
from unforgotten.theory.preimages import weight_cells as weight_cells
from unforgotten.theory.quantize import Grid as Grid
from unforgotten.theory.quantize import round_trip as round_trip
from unforgotten.theory.recovery import Recovery as Recovery
from unforgotten.theory.recovery import recovered_fraction as recovered_fraction
from unforgotten.theory.regimes import hidden_energy_upper_bound as hidden_energy_upper_bound
from unforgotten.theory.regimes import hidden_wash_z as hidden_wash_z
from unforgotten.theory.regimes import on_grid_gain as on_grid_gain
from unforgotten.theory.regimes import on_grid_survivor as on_grid_survivor
from unforgotten.theory.regimes import swallowing_absmax as swallowing_absmax
from unforgotten.theory.response import Response as Response
from unforgotten.theory.response import linear_response as linear_response
from unforgotten.theory.response import (
    response_variance_upper_bound as response_variance_upper_bound,
)
from unforgotten.theory.retained import Retained as Retained
from unforgotten.theory.retained import memory_direction as memory_direction
from unforgotten.theory.retained import quantization_robustness as quantization_robustness
from unforgotten.theory.retained import retained_ratios as retained_ratios
from unforgotten.theory.retained import symmetric_robustness as symmetric_robustness
from unforgotten.theory.sandwich import Sandwich as Sandwich
from unforgotten.theory.sandwich import (
    displacement_norm_upper_bound as displacement_norm_upper_bound,
)
from unforgotten.theory.sandwich import displacement_sandwich as displacement_sandwich
from unforgotten.theory.scaling import flip_rate as flip_rate
from unforgotten.theory.scaling import flip_ratio as flip_ratio
from unforgotten.theory.tails import bernstein_radius as bernstein_radius
from unforgotten.theory.tails import bernstein_tail_upper_bound as bernstein_tail_upper_bound
from unforgotten.theory.tails import empirical_bernstein_radius as empirical_bernstein_radius
from unforgotten.theory.update import GRID_MODES as GRID_MODES
from unforgotten.theory.update import GridMode as GridMode
from unforgotten.theory.update import Survival as Survival
from unforgotten.theory.update import survival as survival
from unforgotten.theory.wash import WashTest as WashTest
from unforgotten.theory.wash import exact_wash_test as exact_wash_test
from unforgotten.theory.wash import permutation_wash_test as permutation_wash_test
from unforgotten.theory.wash import wash_test as wash_test
