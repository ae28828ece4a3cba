"""The mathematics: formats as data, cells, code flips, surviving updates, dead zones, recovery. numpy and scipy only.

`cells` and `quantize` are not re-exported: each shares its name with the module that holds it.
"""

from unforgotten.theory.cells import Cells as Cells
from unforgotten.theory.cells import position as position
from unforgotten.theory.claims import CLAIMS as CLAIMS
from unforgotten.theory.claims import Claim as Claim
from unforgotten.theory.claims import claim as claim
from unforgotten.theory.dead_zone import BinadeCounts as BinadeCounts
from unforgotten.theory.dead_zone import DeadZone as DeadZone
from unforgotten.theory.dead_zone import add_binades as add_binades
from unforgotten.theory.dead_zone import count_binades as count_binades
from unforgotten.theory.dead_zone import find_dead_zone as find_dead_zone
from unforgotten.theory.dead_zone import frozen_exponent as frozen_exponent
from unforgotten.theory.decomposition import LostEffect as LostEffect
from unforgotten.theory.decomposition import lost_effect as lost_effect
from unforgotten.theory.flips import flip_probability as flip_probability
from unforgotten.theory.formats import FAMILIES as FAMILIES
from unforgotten.theory.formats import Format as Format
from unforgotten.theory.formats import format_named as format_named
from unforgotten.theory.quantize import Grid as Grid
from unforgotten.theory.quantize import round_trip as round_trip
from unforgotten.theory.recovery import Recovery as Recovery
from unforgotten.theory.recovery import recovered_fraction as recovered_fraction
from unforgotten.theory.update import GRID_MODES as GRID_MODES
from unforgotten.theory.update import GridMode as GridMode
from unforgotten.theory.update import Survival as Survival
from unforgotten.theory.update import survival as survival
from unforgotten.theory.wash import WashTest as WashTest
from unforgotten.theory.wash import wash_test as wash_test
