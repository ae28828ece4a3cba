"""What lies where in the arrays that the kernel of sixteen weights shares with those who fill and read them."""

from __future__ import annotations

from unforgotten.audit.kernel.lanes import LANES
from unforgotten.theory.geometry import dead_zone

# rows of `narrow`; of the buckets, two each
SURELY_FROM, SURELY_TO, LEVELS, ORIGIN, INVERSE = range(5)
CODES, LIMITS, THRESHOLDS, ROWS = 5, 7, 9, 10
INVERSE64, LOWER64, WIDTH64, WIDE_ROWS = range(4)  # rows of `wide`
UNIT, EDGE, AROUND, REACH, STEPS, FIRST, LAST, SURE = range(8)  # of `constants`
FLIPS, CHANGES, PINNED = range(3)  # of `counts`
EXPECTED, SQUARES, SURVIVING, DOT, DELTA = range(5)  # of `sums`

TILE = 2048  # weights whose passes stay in the first-level cache
MOST = TILE // LANES  # blocks of a tile

BINS, BIN_BITS = 256, 9
FRACTION = 12  # bits of the fraction of a bin
ENDMOST, FIRST_BIN, STAYED = (0, 1, 257)  # weights in an end cell, in bins, and where they do not move
# of weights that stay each lane has a bin of its own: counts of one slot would wait for each other
OWN_BINS = STAYED + LANES
END_PLACE = float((ENDMOST << FRACTION) + (1 << (FRACTION - 1)))  # far from the end of any bin
# of the binades that are counted: the biased exponent of the first, and how many there are
LOWEST, BINADES = 127 + dead_zone.BINADES[0], len(dead_zone.BINADES)
