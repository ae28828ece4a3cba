"""T17 in symbols and in rationals: GPTQ is Babai's nearest plane, and what follows from it.

A proof takes nothing and returns nothing; it raises AssertionError where its statement fails.

>>> gptq_residuals_are_skewed_errors()
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from itertools import product
from math import prod
from typing import Any

import sympy as sp

from unforgotten.theory.claims import proof

Vector = list[Fraction]
Matrix = list[Vector]
HALF = Fraction(1, 2)


def upper_factor(n: int) -> sp.Matrix:
    """Return the U of every positive definite H: upper triangular symbols, positive on the diagonal."""
    return sp.Matrix(n, n, lambda i, j: sp.Symbol(f"u{i}{j}", positive=i == j, real=True) if i <= j else 0)


def gptq_residuals(u: Any, weights: Any, values: Any) -> Any:
    """Return the residuals v - q of GPTQ's loop, whatever values q the columns are rounded to."""
    v = weights.copy()
    for i in range(u.rows):
        error = (v[i] - values[i]) / u[i, i]
        for j in range(i + 1, u.rows):
            v[j] = v[j] - error * u[i, j]
    return v - values


@proof("T17", method="derivation", domain="every positive definite H up to 4 columns, every code vector")
def gptq_residuals_are_skewed_errors() -> None:
    """GPTQ leaves v - q = diag(U) U^-T (w - q), and sum_i ((v_i - q_i) / U_ii)^2 = (w - q)' H (w - q), H = (U'U)^-1."""
    for n in range(1, 5):
        u = upper_factor(n)
        w, q = sp.Matrix(sp.symbols(f"w:{n}")), sp.Matrix(sp.symbols(f"q:{n}"))
        residual, root = gptq_residuals(u, w, q), u.inv().T
        skewed = sp.diag(*u.diagonal()) * root * (w - q)
        assert (residual - skewed).applyfunc(sp.cancel) == sp.zeros(n, 1), f"{n} columns"
        whitened = residual.applyfunc(sp.expand)
        scaled = sp.Matrix([whitened[i] / u[i, i] for i in range(n)])
        assert (scaled - root * (w - q)).applyfunc(sp.cancel) == sp.zeros(n, 1), f"norm, {n} columns"


@proof("T17", method="derivation", domain="2 columns, every pair of positive definite Hessians by their factors")
def two_hessians_are_compared_by_an_eigenvalue() -> None:
    """|e|_H^2 = |A^-T e|^2 and A^-T = (B A^-1)' B^-T, H^-1 = A'A, H'^-1 = B'B: the norm of B A^-1 turns one into the other.

    Its square is lambda_max(B H B') = lambda_max(H B'B) = lambda_max(H H'^-1), as XY and YX have one spectrum.
    """
    a = upper_factor(2)
    b = sp.Matrix([[sp.Symbol("v0", positive=True), sp.Symbol("v01", real=True)], [0, sp.Symbol("v1", positive=True)]])
    stretch = b * a.inv()
    assert (a.inv().T - stretch.T * b.inv().T).applyfunc(sp.cancel) == sp.zeros(2, 2)
    h, h_new_inverse = (a.T * a).inv(), b.T * b
    x = sp.Symbol("x")
    left = (stretch * stretch.T).charpoly(x).as_expr()
    right = (h * h_new_inverse).charpoly(x).as_expr()
    assert sp.cancel(left - right) == 0


@proof("T17", method="derivation", domain="every H = xx' + damping up to 4 columns")
def one_feature_pushes_the_output() -> None:
    """(M delta)_i = delta_i + x_i sum_{j<i} x_j delta_j / (damping + sum_{k>=i} x_k^2), M from its definition.

    Row i of M holds least-squares shares: the part that column i takes of what the errors before it left, once the
    columns behind it are free, is the first entry of the solution e of `H[i:, i:] e = H[i:, :i] delta`.
    """
    damping = sp.Symbol("damping", positive=True)
    for n in range(1, 5):
        x: Any = sp.Matrix(sp.symbols(f"x:{n}"))
        delta: Any = sp.Matrix(sp.symbols(f"delta:{n}"))
        h = x * x.T + damping * sp.eye(n)
        for i in range(1, n):
            before = sum((x[j] * delta[j] for j in range(i)), sp.Integer(0))
            remaining = sum((x[k] ** 2 for k in range(i, n)), damping)
            shares = x[i:, :] * before / remaining
            gap = h[i:, i:] * shares - h[i:, :i] * delta[:i, :]
            assert gap.applyfunc(sp.cancel) == sp.zeros(n - i, 1), f"column {i} of {n}"


def unit_lower_matrices(n: int) -> Iterator[Matrix]:
    """Yield the M of every lattice with entries in {-3/4, 1/4, 1} below the diagonal."""
    choices = (Fraction(-3, 4), Fraction(1, 4), Fraction(1))
    below = [(i, j) for i in range(n) for j in range(i)]
    for entries in product(choices, repeat=len(below)):
        m = [[Fraction(int(i == j)) for j in range(n)] for i in range(n)]
        for (i, j), entry in zip(below, entries, strict=True):
            m[i][j] = entry
        yield m


def nearest_plane(w: Vector, m: Matrix) -> tuple[list[int], Vector]:
    """Return codes and residuals on the integers: v_i = w_i + sum_{j<i} M_ij (w_j - q_j), q_i = round(v_i)."""
    codes: list[int] = []
    residual: Vector = []
    for i, row in enumerate(m):
        v = w[i] + sum((row[j] * (w[j] - codes[j]) for j in range(i)), Fraction(0))
        codes.append(round(v))
        residual.append(v - codes[-1])
    return codes, residual


def babai(w: Vector, m: Matrix, weight: Vector) -> list[int]:
    """Run Babai 1986 on unit vectors, norm |T e|^2 = sum weight_i (M e)_i^2, by Gram–Schmidt, last vector first.

    The basis is taken from the last column of the order back to the first, so that the first column is rounded first.
    """
    n = len(m)
    basis = [[m[k][n - 1 - b] for k in range(n)] for b in range(n)]  # M e_b, b from the last
    star: list[Vector] = []
    for column in basis:
        vector = list(column)
        for s in star:
            share = dot(column, s, weight) / dot(s, s, weight)
            vector = [x - share * y for x, y in zip(vector, s, strict=True)]
        star.append(vector)
    target = [sum((m[k][j] * w[j] for j in range(n)), Fraction(0)) for k in range(n)]
    codes = [0] * n
    for b in reversed(range(n)):
        codes[n - 1 - b] = round(dot(target, star[b], weight) / dot(star[b], star[b], weight))
        target = [x - codes[n - 1 - b] * y for x, y in zip(target, basis[b], strict=True)]
    return codes


def dot(a: Vector, b: Vector, weight: Vector) -> Fraction:
    """Return the inner product of H in whitened coordinates."""
    return sum((x * y * z for x, y, z in zip(a, b, weight, strict=True)), Fraction(0))


@proof("T17", method="exact", domain="31 lattices of 1 to 3 columns, 7^n points each")
def gptq_is_babais_nearest_plane() -> None:
    """GPTQ's codes are those of Babai's algorithm by Gram–Schmidt, and e'He <= 1/4 sum_i weight_i, weight = U_ii^-2."""
    for n in range(1, 4):
        weight = [Fraction(2 + i, 1 + 2 * i) for i in range(n)]
        for m in unit_lower_matrices(n):
            for steps in product(range(-3, 4), repeat=n):
                w = [Fraction(k, 5) * 2 + Fraction(1, 17) for k in steps]
                codes, residual = nearest_plane(w, m)
                assert codes == babai(w, m, weight), f"w={w}, M={m}"
                e = [Fraction(a) - b for a, b in zip(w, codes, strict=True)]
                image = [sum((row[j] * e[j] for j in range(n)), Fraction(0)) for row in m]
                assert image == residual
                assert dot(image, image, weight) <= sum(weight) / 4


@proof("T17", method="exact", domain="3 lattices of 2 columns, 81 updates each, the mean over a whole period")
def the_mean_update_passes() -> None:
    """E[D | delta] = delta and E|delta - D|_H^2 = E sum_i weight_i phi_i (1 - phi_i), w uniform on a period.

    M and delta are multiples of 1/4, so every code is constant on cells of side 1/16 of the residuals: the mean over
    their midpoints is the integral.
    """
    points = [Fraction(2 * k + 1, 32) - HALF for k in range(16)]
    weight = [Fraction(2), Fraction(3, 5)]
    quarters = [Fraction(k, 4) for k in range(-4, 5)]
    for m in unit_lower_matrices(2):
        for delta in product(quarters, repeat=2):
            mean, loss, law = [Fraction(0), Fraction(0)], Fraction(0), Fraction(0)
            for u in product(points, repeat=2):
                w = [u[0], u[1] - m[1][0] * u[0]]  # residuals u, codes 0
                codes, moved = nearest_plane([a + b for a, b in zip(w, delta, strict=True)], m)
                lost = [b - a for a, b in zip(u, moved, strict=True)]
                shift = [a + q for a, q in zip(lost, codes, strict=True)]
                phi = [abs(s) % 1 for s in shift]
                mean = [a + q for a, q in zip(mean, codes, strict=True)]
                loss += dot(lost, lost, weight)
                law += sum((z * f * (1 - f) for z, f in zip(weight, phi, strict=True)), Fraction(0))
            count = prod([len(points)] * 2)
            assert [a / count for a in mean] == list(delta), f"delta={delta}, M={m}"
            assert loss == law, f"delta={delta}, M={m}"
