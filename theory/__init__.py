"""The mathematics: formats as data, cells, flips, gating, dead zones, response, recovery. numpy and scipy only.

`theory/README.md` is the readable form. Re-exported is what a first script needs, ten names that load nothing of scipy;
everything else is imported from its module, as `from unforgotten.theory.laws.gating import riemann_gain`.
`calculators.design` needs jax, and `proofs` sympy and z3.
Modules say `import scipy` and then `scipy.special.ndtr`, never `from scipy import special`: scipy loads a part of itself
on its first use.
"""

from unforgotten.theory.claims import Claim as Claim
from unforgotten.theory.claims import load_claims as load_claims
from unforgotten.theory.formats.names import FAMILIES as FAMILIES
from unforgotten.theory.formats.names import Format as Format
from unforgotten.theory.formats.names import format_named as format_named
from unforgotten.theory.laws.flips import flip_probability as flip_probability
from unforgotten.theory.laws.update import GRID_MODES as GRID_MODES
from unforgotten.theory.laws.update import Survival as Survival
from unforgotten.theory.laws.update import survival as survival
from unforgotten.theory.models.recovery import recovered_fraction as recovered_fraction
