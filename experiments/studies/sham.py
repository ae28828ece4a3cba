"""Functional gains of runs beside those of random updates of the same size: the rows of `functional_gain`, on models at hand.

In go folders of runs with their models:

    unforgotten study sham --set runs=[runs/demo] --out runs/sham

Out come the rows of `functional_gain`.
"""

from unforgotten.experiments.studies.functional_gain import STUDY

__all__ = ["STUDY"]
