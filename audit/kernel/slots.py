"""What lies where in the arrays that kernels, and those who fill and read them, share. No number of these is elsewhere."""

from __future__ import annotations

from unforgotten.audit.kernel.lanes import LANES
from unforgotten.theory.geometry import dead_zone

# grids: of all results the first axis
FIXED, ADAPTIVE = GRIDS = range(2)
# `counts` and `sums` of a grid: what is handed out, then what only the kernel of sixteen weights keeps for itself
FLIPS, CHANGES, OVERFLOWS, PINNED = range(4)
EXPECTED, VARIANCE, SURVIVING, DOT, SQUARES, DELTA = range(6)
COUNTS, ALL_COUNTS = 3, 4
SUMS, ALL_SUMS = 4, 6
REGISTER_COUNTS = FLIPS, CHANGES, PINNED  # what the kernel of sixteen weights adds up
REGISTER_SUMS = EXPECTED, SURVIVING, DOT, SQUARES, DELTA

BY_ROUNDING, BY_COMPARISON, BY_LOOKUP = range(3)  # `kind` of a `rules.Rule`

# of a `vector_rules.VectorRule`: rows of `tables`; of the buckets, two each
SURELY_FROM, SURELY_TO, LEVELS, ORIGIN, INVERSE = range(5)
CODES, LIMITS, THRESHOLDS, TABLE_ROWS = 5, 7, 9, 10
INVERSE64, LOWER64, WIDTH64, CELL_ROWS = range(4)  # rows of `cells`
UNIT, EDGE, AROUND, REACH, STEPS, FIRST, LAST, SURE = range(8)  # `constants`

TILE = 2048  # weights whose passes stay in the first-level cache
SCALAR_TILE = 512  # the same of the scalar kernel, whose intermediate numbers are wider
MOST_BLOCKS = TILE // LANES  # blocks of a tile

BINS, BIN_BITS = 256, 9
FRACTION = 12  # bits of the fraction of a bin
ENDMOST, FIRST_BIN, STAYED = (0, 1, 257)  # weights in an end cell, in bins, and where they do not move
# of weights that stay each lane has a bin of its own: counts of one slot would wait for each other
OWN_BINS = STAYED + LANES
END_PLACE = float((ENDMOST << FRACTION) + (1 << (FRACTION - 1)))  # far from the end of any bin
# of the binades that are counted: the biased exponent of the first, and how many there are
LOWEST, BINADES = 127 + dead_zone.BINADES[0], len(dead_zone.BINADES)
