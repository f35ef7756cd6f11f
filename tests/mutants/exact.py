"""Faults of exact answers."""

from __future__ import annotations

from .mutant import Mutant

ON_PROGRAM = "tests/testing/test_exact_program.py"
ON_BRANCHES = "tests/testing/test_exact_branches.py"
ON_UNITS = "tests/testing/test_exact_units.py"
ON_ASCENT = "tests/testing/test_exact_ascent.py"

MUTANTS = [
    Mutant(
        "exact answers: a bound of a maximum counts a candidate beside the largest bound",
        "testing/exact_bounds.py",
        "(up * known + down).T",
        "(up + down).T",
        ON_PROGRAM,
    ),
    Mutant(
        "exact answers: the optimum that the solver tells is taken for a bound",
        "testing/exact_bounds.py",
        "    size = abs(slope).max() or 1.0",
        '    return -linprog(-slope, region.rows, region.limits, bounds=bounds, method="highs").fun\n    size = 1.0',
        "tests/testing/test_exact.py",
    ),
    Mutant(
        "exact answers: weights beyond the solver's tolerances prove something",
        "testing/exact_program.py",
        " or not self.is_in_scale(margin)",
        "",
        ON_PROGRAM,
    ),
    Mutant(
        "exact answers: a unit of a cone is forgotten",
        "testing/exact_cones.py",
        "used[one.parts[number].indices] = True",
        "used[one.parts[number].indices[1:]] = True",
        "tests/testing/test_exact_cones.py",
    ),
    Mutant(
        "exact answers: bounds that are no numbers prove",
        "testing/exact.py",
        "not bool(most.max() < -self.tolerance)",
        "bool(most.max() >= -self.tolerance)",
        "tests/testing/test_exact.py",
    ),
    Mutant(
        "exact answers: float32 proves",
        "testing/exact_branches.py",
        "sure[sure.clone()] = self.dual.bounds(parts.take(sure)) < self.goal",
        "pass",
        ON_BRANCHES,
    ),
    Mutant(
        "exact answers: ascents go on when the time is over",
        "testing/exact_ascent.py",
        " or time.monotonic() > end or ",
        " or ",
        ON_BRANCHES,
    ),
    Mutant(
        "exact answers: linear programs of half-spaces take the time they want",
        "testing/exact_bounds.py",
        "min(max(end - time.monotonic(), 0.01), 1e9)",
        "1e9",
        ON_BRANCHES,
    ),
    Mutant(
        "exact answers: one half of a part is forgotten",
        "testing/exact_branches.py",
        "for sign in (1, -1)])",
        "for sign in (1, 1)])",
        ON_BRANCHES,
    ),
    Mutant(
        "exact answers: multipliers of signs take the wrong side",
        "testing/exact_dual.py",
        "pull = signs /",
        "pull = -signs /",
        ON_BRANCHES,
    ),
    Mutant(
        "exact answers: a part of given signs is a part of others",
        "testing/exact_dual.py",
        "beyond = -own * value",
        "beyond = own * value",
        ON_BRANCHES,
    ),
    Mutant(
        "exact answers: an empty part of one margin is not proven",
        "testing/exact_dual.py",
        "PRICE * max(abs(margin[:-1]).max(), 1)",
        "PRICE * abs(margin[:-1]).max()",
        ON_BRANCHES,
    ),
    Mutant(
        "exact answers: an empty part is not proven",
        "testing/exact_dual.py",
        "numpy.append(upper, to_move.max(initial=0))",
        "numpy.append(upper, 0)",
        ON_BRANCHES,
    ),
    Mutant(
        "exact answers: a ReLU that is on has no constant",
        "testing/exact_dual.py",
        "constant += moved @ one.constant",
        "pass",
        ON_BRANCHES,
    ),
    Mutant(
        "exact answers: the gradient takes the point where a bound is smallest",
        "testing/exact_ascent.py",
        "dual.half * found.pixels.sign()",
        "dual.half * -found.pixels.sign()",
        ON_ASCENT,
    ),
    Mutant(
        "exact answers: parts that are done are worked on to the end",
        "testing/exact_ascent.py",
        "if int(more.sum()) < FEWER * len(left):",
        "if False:",
        ON_ASCENT,
    ),
    Mutant(
        "exact answers: a unit has the bound of one of its parts",
        "testing/exact_units.py",
        'self.sure, "amax")',
        'self.sure, "amin")',
        ON_UNITS,
    ),
    Mutant(
        "exact answers: float32 bounds units",
        "testing/exact_units.py",
        "found = self.dual.bounds(parts)",
        "found = self.quick.bounds(parts).double() - 1e-3",
        ON_UNITS,
    ),
    Mutant(
        "exact answers: bounds of units that are no numbers count",
        "testing/exact_units.py",
        "torch.where(found < known, found, known)",
        "torch.where(found > known, known, found)",
        ON_UNITS,
    ),
    Mutant(
        "exact answers: small triangles come first",
        "testing/exact_units.py",
        "numpy.argsort(-height",
        "numpy.argsort(height",
        ON_UNITS,
    ),
    Mutant(
        "exact answers: no bounds of units where a threat has no half-spaces",
        "testing/exact.py",
        " or better is BranchedBounds or ",
        " or ",
        ON_UNITS,
    ),
    Mutant(
        "exact answers: a point beyond half-spaces that the program does not have counts",
        "testing/exact_program.py",
        "self._farthest(solved.x, BEYOND)",
        "self._farthest(solved.x, numpy.inf)",
        ON_PROGRAM,
    ),
    Mutant(
        "programs are set up when the time is over",
        "testing/exact.py",
        "            if self._left() <= 0:  # to set up a program takes time too, for each class",
        "            if False:",
        "tests/testing/test_exact.py -k time_is_over",
    ),
    Mutant(
        "margins that float32 does not see are proofs",
        "testing/exact.py",
        "self.tolerance = max(self.tolerance, NOISES * self._noise(region))",
        "pass",
        "tests/testing/test_exact.py -k float32_does_not_see",
    ),
    Mutant(
        "variables of a program keep their own scale",
        "testing/exact_program.py",
        "self._units = [_size(low, high) for low, high in self.bounds.after]",
        "self._units = [numpy.ones_like(low) for low, _ in self.bounds.after]",
        "tests/testing/test_exact_program.py -k layers",
    ),
    Mutant(
        "exact answers: points that branch and bound comes upon are not looked at",
        "testing/exact.py",
        "            if self._verified(found.point):\n",
        "            if False:\n",
        ON_BRANCHES,
    ),
]
