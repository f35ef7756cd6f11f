"""Faults of evaluations, certificates and claims."""

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
        "a warning is shown for the first model of a loop alone",
        "foundations/notices.py",
        "frame.f_lineno, module, None, frame.f_globals",
        'frame.f_lineno, module, frame.f_globals.setdefault("__warningregistry__", {}), frame.f_globals',
        "tests/testing/test_notices.py",
    ),
    Mutant(
        "batch statistics pass for rounding",
        "testing/among_others.py",
        "ROUNDING = 0.01",
        "ROUNDING = 1.0",
        "tests/testing/test_among_others.py",
    ),
    Mutant(
        "a model whose answers depend on the batch is bundled",
        "runners/bundle/runner.py",
        "            self._refuse_answers_of_batches()\n",
        "",
        "tests/runners/test_claims.py -k not_bundled",
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
        "claims with other rows are merged",
        "testing/claims/claim.py",
        '"rows": ("index",),',
        '"rows": (),',
        "tests/testing/test_claims.py",
    ),
    Mutant(
        "robust accuracy is a mean in float32",
        "testing/robust_accuracy.py",
        "int(correct.sum()) / len(correct)",
        "float(correct.float().mean())",
        "tests/testing/test_robust_accuracy.py -k whole_number",
    ),
    Mutant(
        "a figure looks like 1 and is not",
        "foundations/results.py",
        'return next((text for text in texts if float(text.rstrip("%")) not in edges), plain)',
        "return plain",
        "tests/foundations/test_results.py",
    ),
    Mutant(
        "claims: what two logits have in common puts any margin in doubt",
        "testing/claims/judging.py",
        ".clamp_max(MOST_ROUNDING)",
        ".clamp_max(math.inf)",
        "tests/testing/test_margins.py",
    ),
    Mutant(
        "claims: equal weights in two networks are one model",
        "testing/claims/claim.py",
        'facts["model"]["description"].get("model_name", "")',
        '""',
        "tests/testing/test_claims.py -k another_network",
    ),
    Mutant(
        "claims: anchors in the file need not be those that it tells",
        "testing/claims/claim.py",
        ') != told["sha256"]:',
        ') == "":',
        "tests/testing/test_claims.py -k anchors_in_the_file",
    ),
    Mutant(
        "corruptions of files without a severity asked for are left out",
        "runners/corruptions.py",
        "for name, levels in found.items() if expected - levels]:",
        "for name, levels in found.items() if levels & expected and expected - levels]:",
        "tests/runners/test_corruption_runs.py -k fewer_severities",
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
        ON_CLAIMS + " tests/testing/test_margins.py",
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
]
