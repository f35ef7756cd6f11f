"""Faults of evaluations, exact answers, certificates and claims."""

from __future__ import annotations

from .mutant import Mutant

EVALUATIONS = "testing/evaluations.py"
ON_SEARCH = "tests/testing/test_evaluations.py tests/threat_specification/attacks/test_far_starts.py"
ON_SHARDS = "tests/testing/test_testing.py"
ON_COVERAGE = "tests/testing/test_coverage.py"
ON_CLAIMS = "tests/testing/test_claims.py"
HALF_SPACES, PLAIN_NETWORKS = "testing/half_spaces.py", "foundations/plain_networks.py"
ON_CERTIFICATES = "tests/testing/test_certificates.py"

MUTANTS = [
    Mutant(
        "points beyond the set are lost without a word",
        "testing/gradient_masking.py",
        "            beyond |= before & result.success\n",
        "",
        "tests/testing/test_robust_accuracy.py -k beyond",
    ),
    Mutant(
        "any coverage is taken by name",
        "testing/coverage.py",
        'check_number("coverage", coverage, 0, 1)',
        'check_number("coverage", coverage, 0)',
        ON_COVERAGE,
    ),
    Mutant(
        "bound at rolled labels",
        EVALUATIONS,
        "self.threat.bind(shard.images, shard.labels, **context)",
        "self.threat.bind(shard.images, shard.labels.roll(1), **context)",
        ON_SEARCH,
    ),
    Mutant(
        "only the headline is attacked",
        EVALUATIONS,
        "for cell in [self.headline, *(cell for cell in self.cells if cell != self.headline)]:",
        "for cell in [self.headline]:",
        ON_SEARCH,
    ),
    Mutant(
        "nothing is tried elsewhere",
        "testing/gradient_masking.py",
        "if bool(before.any()):",
        "if False:",
        "tests/testing/test_gradient_masking.py",
    ),
    Mutant(
        "robust_accuracy does not warn",
        "testing/robust_accuracy.py",
        "    for message in told:\n",
        "    for message in []:\n",
        "tests/testing/test_robust_accuracy.py",
    ),
    Mutant(
        "the last shard is lost",
        "testing/shards.py",
        "range(first, -(-count // shard_size), stride)",
        "range(first, count // shard_size, stride)",
        ON_SHARDS,
    ),
    Mutant(
        "processes in lockstep with gradients of their own",
        "testing/lockstep.py",
        "return _of_first(gradient)",
        "return gradient",
        "tests/testing/test_lockstep.py",
    ),
    Mutant(
        "coverage counts one safe change too few",
        "testing/coverage.py",
        "known[needed - 1]",
        "known[max(needed - 2, 0)]",
        ON_COVERAGE,
    ),
    Mutant(
        "answers about pairs of one image count as independent",
        "testing/judged.py",
        "counts[:, images[rows]]",
        "counts[:, numpy.arange(len(images))[rows] % counts.shape[1]]",
        "tests/testing/test_judged.py",
    ),
    Mutant(
        "rounding decides between changes of one size",
        "testing/judged.py",
        "TIED = 1e-6",
        "TIED = 0.0",
        "tests/testing/test_judged.py",
    ),
    Mutant(
        "exact answers: a bound of a maximum counts a candidate beside the largest bound",
        "testing/exact_bounds.py",
        "(up * known + down).T",
        "(up + down).T",
        "tests/testing/test_exact_program.py",
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
        "tests/testing/test_exact_program.py",
    ),
    Mutant(
        "exact answers: a unit of a cone is forgotten",
        "testing/exact_cones.py",
        "used[one.parts[number].indices] = True",
        "used[one.parts[number].indices[1:]] = True",
        "tests/testing/test_exact_cones.py",
    ),
    Mutant(
        "claims with other rows are merged",
        "testing/claims/claim.py",
        '"rows": ("index",),',
        '"rows": (),',
        "tests/testing/test_claims.py",
    ),
    Mutant(
        "corruptions of files without a severity asked for are left out",
        "runners/corruptions.py",
        "for name, levels in found.items() if expected - levels]:",
        "for name, levels in found.items() if levels & expected and expected - levels]:",
        "tests/runners/test_corruption_runs.py -k fewer_severities",
    ),
    Mutant(
        "exact answers: a point beyond half-spaces that the program does not have counts",
        "testing/exact_program.py",
        "self._farthest(solved.x, BEYOND)",
        "self._farthest(solved.x, numpy.inf)",
        "tests/testing/test_exact_program.py",
    ),
    Mutant(
        "the ensemble of an audit attacks what is broken again",
        "testing/audit.py",
        "left &= ~self.broken[:, number, self.headline]\n            rows.append",
        "rows.append",
        "tests/testing/test_audit.py",
    ),
    Mutant(
        "points of foreign attacks count where they are",
        "testing/foreign.py",
        "memory.ask(task.allowed.project(points.detach().to(images) - images))",
        "memory.ask(points.detach().to(images) - images)",
        "tests/testing/test_foreign.py",
    ),
    Mutant(
        "an audit attacks every cell in the headline's",
        "testing/audit.py",
        "search.record(attack(search.task(cell, search.right)), 1)",
        "search.record(attack(search.task(self.attacked.headline, search.right)), 1)",
        "tests/testing/test_audit.py",
    ),
    Mutant(
        "foreign attacks draw at random",
        "testing/foreign.py",
        "        torch.manual_seed(seed)\n",
        "",
        "tests/testing/test_foreign.py",
    ),
    Mutant(
        "certificates: the sum of the multipliers is left out",
        HALF_SPACES,
        "constant = constant - space.limit * l.sum(1)",
        "constant = constant - 0 * l.sum(1)",
        f"{ON_CERTIFICATES} -k linear_program",
    ),
    Mutant(
        "certificates: points that count as inside are left out of the box",
        HALF_SPACES,
        "wide = outer(cell.radius)",
        "wide = cell.radius",
        f"{ON_CERTIFICATES} -k inside",
    ),
    Mutant(
        "claims: a point outside the set counts",
        "testing/claims/judging.py",
        "inside = whole & lawful & cell_of(each).holds(threat, length)",
        "inside = whole & lawful",
        ON_CLAIMS,
    ),
    Mutant(
        "claims: images that are right count as doubtful",
        "testing/claims/judging.py",
        "return self.value >= -self.doubt",
        "return self.value >= -self.doubt - 1",
        ON_CLAIMS,
    ),
    Mutant(
        "claims: merging keeps the first witness, not the smallest",
        "testing/claims/claim.py",
        "least = numpy.minimum.reduce(values)",
        "least = values[0]",
        ON_CLAIMS,
    ),
    Mutant(
        "claims: a zip file of any form is read",
        "testing/claims/archive.py",
        "if _joined(members) != file:",
        "if False:",
        ON_CLAIMS,
    ),
    Mutant(
        "claims: rounding may leave the set",
        "testing/claims/rounding.py",
        "inside = lawful & well_inside(cell).holds(threat, length)",
        "inside = lawful",
        ON_CLAIMS,
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
]
