"""Faults put into the code of evaluations and projections on purpose, each of which some test must notice.

python tests/mutants.py [WORD ...]     those whose name has one of the words, else all; `make mutants` runs it

A mutant is a copy of the project in which one line is changed. Its last line says how many no test noticed.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
SEARCH = "threat_specification/attacks/search.py"
DIRECTIONS = "threat_specification/projected_displacement/directions.py"
FIXED_SHAPES = "threat_specification/projected_displacement/fixed_shapes.py"
PGD = "threat_specification/attacks/pgd.py"
EVALUATIONS = "testing/evaluations.py"
ON_SEARCH = "tests/testing/test_evaluations.py tests/threat_specification/attacks/test_far_starts.py"
ON_ATTACKS = "tests/threat_specification/attacks"
ON_SHARDS = "tests/testing/test_testing.py"
ON_CONFIG = "tests/cli/test_config_files.py"
ON_SWEEPS = "tests/runners/test_sweeps.py"
ON_RUNS = "tests/runners/test_runs.py"
PD_TESTS = "tests/threat_specification/projected_displacement"
ON_PROJECTION = f"{PD_TESTS}/test_projection.py tests/threat_specification/test_intersection.py"
ON_PROCESSES = f"{PD_TESTS}/test_distributed_matrix.py"
ON_FIXED_SHAPES = f"{PD_TESTS}/test_fixed_shapes.py"
TANGENTS = "threat_specification/projected_displacement/tangents.py"
ON_TANGENTS = f"{PD_TESTS}/test_tangents.py"
ON_COVERAGE = "tests/testing/test_coverage.py"
ON_PD = f"{PD_TESTS}/test_threat.py"
SPACE = "threat_specification/safe_moves/space.py"
MIXTURES = "threat_specification/safe_moves/mixtures.py"
ON_CLAIMS = "tests/testing/test_claims.py"
ON_SPACE = "tests/threat_specification/safe_moves/test_space.py"
HALF_SPACES, PLAIN_NETWORKS = "testing/half_spaces.py", "foundations/plain_networks.py"
ON_CERTIFICATES = "tests/testing/test_certificates.py"
ON_PLAIN_NETWORKS = "tests/foundations/test_plain_networks.py"
ON_MIXTURES = "tests/threat_specification/safe_moves/test_mixtures.py"


@dataclass(frozen=True)
class Mutant:
    """A fault: in a file `before`, which stands there once, becomes `after`; the tests that should notice."""

    name: str
    file: str
    before: str
    after: str
    tests: str


MUTANTS = [
    Mutant(
        "any coverage is taken by name",
        "testing/coverage.py",
        "    if not 0 <= coverage <= 1:",
        "    if coverage < 0:",
        ON_COVERAGE,
    ),
    Mutant(
        "safe changes of people all have one seed",
        "threat_specification/safe_moves/changes.py",
        "    made = changed(images, rows, seed, moves)",
        "    made = changed(images, rows, 0, moves)",
        "tests/threat_specification/safe_moves/test_changes.py",
    ),
    Mutant(
        "a site may load things from elsewhere",
        "docs/site/build.py",
        '            if re.match(r"(https?:)?//", address):',
        '            if re.match(r"http://", address):',
        "tests/test_site.py",
    ),
    Mutant(
        "thresholds by coverage are of one threat, in a notebook",
        "docs/notebooks/3_threshold_by_coverage.ipynb",
        "nonisotropic.threshold_at_coverage(sizes, 0.95) for name, sizes in safe.items()}",
        "nonisotropic.threshold_at_coverage(safe['PD'], 0.95) for name, sizes in safe.items()}",
        "tests/test_notebooks.py",
    ),
    Mutant(
        "the ensemble runs its first member only",
        SEARCH,
        "enumerate(attacks.items(), start=1)",
        "enumerate(list(attacks.items())[:1], start=1)",
        ON_SEARCH,
    ),
    Mutant(
        "half the threshold",
        SEARCH,
        "max(cell.threshold, SMALLEST)))",
        "max(cell.threshold / 2, SMALLEST)))",
        ON_SEARCH,
    ),
    Mutant(
        "half the radius",
        SEARCH,
        "(-x).clamp_min(-cell.radius), (1 - x).clamp_max(cell.radius)",
        "(-x).clamp_min(-cell.radius / 2), (1 - x).clamp_max(cell.radius / 2)",
        ON_SEARCH,
    ),
    Mutant("a tenth of the steps", SEARCH, "self.index, self.steps)", "self.index, self.steps // 10)", ON_SEARCH),
    Mutant(
        "every eighth image is left to the first member",
        SEARCH,
        "robust = self.robust(cell)\n            if name",
        "robust = self.robust(cell) & ((number == 1) | (self.index % 8 != 0))\n            if name",
        "tests/testing/test_evaluations.py",
    ),
    Mutant(
        "the gauge curve from survivors only",
        SEARCH,
        "                robust = self.right\n",
        "                pass\n",
        ON_SEARCH,
    ),
    Mutant("only the last attack counts", SEARCH, "self._found.append(", "self._found[:] = [] or (", ON_SEARCH),
    Mutant(
        "what was found before is forgotten",
        SEARCH,
        "        self._found.append((_where",
        "        self._found.clear()\n        self._found.append((_where",
        ON_SEARCH,
    ),
    Mutant(
        "bound at rolled labels",
        EVALUATIONS,
        "self.threat.bind(shard.images, shard.labels, **context)",
        "self.threat.bind(shard.images, shard.labels.roll(1), **context)",
        ON_SEARCH,
    ),
    Mutant(
        "an attack is believed that it broke the model",
        SEARCH,
        "wrong = self.right & (answers != self.labels)",
        "wrong = self.right & result.success",
        ON_SEARCH,
    ),
    Mutant(
        "NaN passes for class 0",
        "threat_specification/attacks/base.py",
        "torch.where(logits.amax(1).isfinite() & ~logits.isnan().any(1), logits.argmax(1), NO_CLASS)",
        "logits.argmax(1)",
        ON_SEARCH,
    ),
    Mutant(
        "NaN is counted without a word",
        SEARCH,
        "self.no_answer |= answers == NO_CLASS",
        "pass",
        ON_SEARCH,
    ),
    Mutant(
        "the radius is not looked at again",
        SEARCH,
        "at_most(threat, self.threshold) & at_most(length, self.radius)",
        "at_most(threat, self.threshold)",
        ON_SEARCH,
    ),
    Mutant(
        "the threat is not looked at again",
        SEARCH,
        "at_most(threat, self.threshold) & at_most(length, self.radius)",
        "at_most(length, self.radius)",
        ON_SEARCH,
    ),
    Mutant(
        "a slack of a percent",
        "threat_specification/attacks/base.py",
        "SLACK = (1e-5, 1e-7)",
        "SLACK = (1e-2, 1e-7)",
        ON_SEARCH,
    ),
    Mutant("no slack", "threat_specification/attacks/base.py", "SLACK = (1e-5, 1e-7)", "SLACK = (0.0, 0.0)", ON_SEARCH),
    Mutant(
        "a frozen background may move",
        SEARCH,
        "amax(1), ~((delta != 0) & fixed).flatten(1).any(1)",
        "amax(1), ~((delta != delta) & fixed).flatten(1).any(1)",
        ON_SEARCH,
    ),
    Mutant("the wrong member is named", SEARCH, "torch.where(new, number,", "torch.where(new, number + 1,", ON_SEARCH),
    Mutant(
        "an example that is wrong anyway counts as broken",
        SEARCH,
        "self.broken_by = torch.where(self.right, STANDING, WRONG_WITHOUT)",
        "self.broken_by = torch.where(self.right, STANDING, STANDING)",
        ON_SEARCH,
    ),
    Mutant(
        "the gauge looks at the threat alone",
        SEARCH,
        "gauge = torch.maximum(*levels)",
        "gauge = levels[0]",
        ON_SEARCH,
    ),
    Mutant(
        "the passes of the last attack alone",
        SEARCH,
        "self.forwards += result.forwards",
        "self.forwards = result.forwards",
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
        "all begin near the image",
        "threat_specification/attacks/starts.py",
        "return STARTS[start](replace(",
        'return STARTS["scaled_noise"](replace(',
        ON_ATTACKS + "/test_far_starts.py",
    ),
    Mutant(
        "a start outside the set",
        "threat_specification/attacks/starts.py",
        "return allowed.project(allowed.corner(uniform(seed, index, draw, tuple(allowed.lower.shape[1:]))))",
        "return allowed.corner(uniform(seed, index, draw, tuple(allowed.lower.shape[1:])))",
        ON_ATTACKS + "/test_far_starts.py",
    ),
    Mutant(
        "all corners are the same",
        "threat_specification/attacks/starts.py",
        "allowed.corner(uniform(seed, index, draw,",
        "allowed.corner(uniform(seed, index, 0,",
        ON_ATTACKS + "/test_far_starts.py",
    ),
    Mutant(
        "no projection in the steps",
        PGD,
        "delta = allowed.project(moved if going is None else torch.where(per_image(going), moved, delta))",
        "delta = moved if going is None else torch.where(per_image(going), moved, delta)",
        ON_ATTACKS + "/test_attacks.py",
    ),
    Mutant(
        "steps lead downhill",
        PGD,
        "moved = delta + schedule(step, steps)",
        "moved = delta - schedule(step, steps)",
        ON_ATTACKS + "/test_attacks.py",
    ),
    Mutant(
        "momentum is lost",
        PGD,
        "direction = momentum * direction + allowed.ascend(gradient)",
        "direction = allowed.ascend(gradient)",
        ON_ATTACKS + "/test_attacks.py",
    ),
    Mutant(
        "the likeliest target alone",
        PGD,
        "in task.likeliest_others(count).unbind(1):",
        "in task.likeliest_others(1).unbind(1):",
        ON_ATTACKS + "/test_far_starts.py",
    ),
    Mutant(
        "one start instead of several",
        PGD,
        "for number, start in enumerate(starts):",
        "for number, start in enumerate(starts[:1]):",
        ON_ATTACKS + "/test_far_starts.py",
    ),
    Mutant(
        "a loss above 0 passes for a mistake",
        "threat_specification/attacks/base.py",
        "fails = active & (answers != self.labels)",
        "fails = active & (value > 0)",
        ON_ATTACKS + "/test_attacks.py",
    ),
    Mutant(
        "the model is asked outside the pixel box",
        "threat_specification/attacks/base.py",
        "return (self.bound.examples + delta).clamp(0, 1)",
        "return self.bound.examples + 1.2 * delta",
        ON_ATTACKS + "/test_attacks.py",
    ),
    Mutant(
        "APGD's steps never shrink",
        "threat_specification/attacks/apgd.py",
        "step = torch.where(per_image(stuck), step / 2, step)",
        "step = torch.where(per_image(stuck), step, step)",
        ON_ATTACKS + "/test_attacks.py",
    ),
    Mutant(
        "the random search keeps what is worse",
        "threat_specification/attacks/random_search.py",
        "better = active & (value > margin)",
        "better = active & (value < margin)",
        ON_ATTACKS + "/test_attacks.py",
    ),
    Mutant(
        "useless gradients are not noticed",
        "threat_specification/attacks/gradients.py",
        "return torch.isin(found, torch.tensor(USELESS, device=found.device))",
        "return torch.zeros_like(found).bool()",
        "tests/testing/test_gradient_masking.py",
    ),
    Mutant(
        "gradients of the wrong sign pass",
        "threat_specification/attacks/gradients.py",
        "return self.both / (self.predicted * self.true)",
        "return self.both.abs() / (self.predicted * self.true)",
        "tests/testing/test_gradient_masking.py",
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
        "robust_accuracy has another second bound",
        "threat_specification/norms.py",
        "RADIUS = 8 / 255",
        "RADIUS = 16 / 255",
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
        "the run attacks half the radius",
        "runners/test/under_attack.py",
        "Cell(testing.N_threshold, testing.N_radius),",
        "Cell(testing.N_threshold, testing.N_radius / 2),",
        ON_RUNS + " -k independent_count",
    ),
    Mutant(
        "the run takes a fifth of the steps",
        "runners/test/under_attack.py",
        "        testing.N_attack_iter,\n",
        "        max(1, testing.N_attack_iter // 5),\n",
        ON_RUNS + " -k independent_count",
    ),
    Mutant(
        "the run's ball is smaller than it says",
        "runners/test/under_attack.py",
        "return autoattack(testing.adv_test_attack_norm, power,",
        "return autoattack(testing.adv_test_attack_norm, power / 2,",
        ON_RUNS + " -k isotropic",
    ),
    Mutant(
        "the model stays in training mode",
        "foundations/modes.py",
        "    model.eval()\n",
        "",
        ON_SHARDS,
    ),
    Mutant(
        "anchors of the same class count too",
        DIRECTIONS,
        "self.masked = labels.view(-1, 1) == anchor_labels.view(1, -1)",
        "self.masked = labels.view(-1, 1) == anchor_labels.view(1, -1) - 100",
        ON_PD,
    ),
    Mutant("beta is 1", DIRECTIONS, "BETA = 0.5\n", "BETA = 1.0\n", ON_PD),
    Mutant(
        "near anchors lose their digits",
        DIRECTIONS,
        "        if len(self.near[0]):\n",
        "        if False:\n",
        ON_PD,
    ),
    Mutant(
        "the gauge of an intersection is its smallest member's",
        "threat_specification/intersection.py",
        "for member, level in self.members]).amax(0)",
        "for member, level in self.members]).amin(0)",
        ON_PROJECTION,
    ),
    Mutant(
        "an intersection forgets its radius",
        "threat_specification/intersection.py",
        "lower, upper = lower.clamp_min(-threshold * level), upper.clamp_max(threshold * level)",
        "pass",
        ON_PROJECTION,
    ),
    Mutant(
        "points of fixed shapes are kept without the check that they are feasible",
        FIXED_SHAPES,
        "return done & good & near &",
        "return done & near &",
        ON_FIXED_SHAPES,
    ),
    Mutant(
        "the other solver gets displacements of other points",
        FIXED_SHAPES,
        "    along = along.clone()",
        "    pass",
        ON_FIXED_SHAPES,
    ),
    Mutant(
        "the projection in the caller's precision",
        "threat_specification/projected_displacement/bound.py",
        "        with full_precision(self.examples.device.type):\n            return project(self,",
        "        if True:\n            return project(self,",
        f"{PD_TESTS}/test_lowered_precision.py",
    ),
    Mutant(
        "float64 does not decide",
        "threat_specification/projected_displacement/projection.py",
        "    if doubtful:",
        "    if False:",
        ON_PROJECTION,
    ),
    Mutant(
        "the l2 ball by the wrong bounds",
        "threat_specification/norms.py",
        "torch.where(delta > 0, upper, -lower)",
        "torch.where(delta > 0, upper, upper)",
        "tests/threat_specification/test_norms.py",
    ),
    Mutant(
        "processes in lockstep with gradients of their own",
        "testing/lockstep.py",
        "return _of_first(gradient)",
        "return gradient",
        "tests/testing/test_lockstep.py",
    ),
    Mutant(
        "processes that work apart keep the answers to others",
        "threat_specification/projected_displacement/apart_matrix.py",
        "start = sum(counts[: distributed.get_rank()])",
        "start = sum(counts[distributed.get_rank() + 1 :])",
        ON_PROCESSES,
    ),
    Mutant(
        "a process that has finished answers no more",
        "threat_specification/projected_displacement/apart_matrix.py",
        "while self._sessions == 1 and self._round()[0]:",
        "while False:",
        ON_PROCESSES,
    ),
    Mutant(
        "the projection knows no upper bound",
        "threat_specification/projected_displacement/projection.py",
        "    point = torch.minimum(torch.maximum(shifted, lower), upper)\n",
        "    point = torch.maximum(shifted, lower)\n",
        ON_PROJECTION,
    ),
    Mutant(
        "the projection stops early",
        "threat_specification/projected_displacement/projection.py",
        "done = at_rest & (at_zero | ~missing.any(1))",
        "done = at_rest",
        ON_PROJECTION,
    ),
    Mutant(
        "scaling passes for the nearest point",
        "threat_specification/projected_displacement/bound.py",
        '"exact": BoundProjectedDisplacement.nearest,',
        '"exact": BoundProjectedDisplacement.scale,',
        ON_PROJECTION,
    ),
    Mutant(
        "tangents cost what they cost without lambda",
        TANGENTS,
        "strength / (self.weight + strength), 0)",
        "strength / (2 * self.weight + strength), 0)",
        ON_TANGENTS,
    ),
    Mutant(
        "tangents of masked images are those of whole ones",
        TANGENTS,
        "            made *= mask[start : start + len(images)].unsqueeze(1)\n",
        "            pass\n",
        ON_TANGENTS,
    ),
    Mutant(
        "the tangent form divides by the plain norm",
        DIRECTIONS,
        "divisors, lengths = found.inner, found.outer",
        "divisors, lengths = squared, found.outer",
        ON_TANGENTS,
    ),
    Mutant(
        "near pairs of the tangent form forget the metric",
        DIRECTIONS,
        "            self.metric.shorten(rows.unsqueeze(1), which)\n",
        "            pass\n",
        ON_TANGENTS,
    ),
    Mutant(
        "products of working sets forget the tangents",
        DIRECTIONS,
        "            products.sub_((removed + removed.transpose(1, 2)) / 2)\n",
        "            pass\n",
        ON_TANGENTS,
    ),
    Mutant(
        "an image that is an anchor of its own class has no length",
        "threat_specification/projected_displacement/lengths.py",
        "return squared.clamp_min_(0), scale",
        "return squared, scale",
        ON_TANGENTS,
    ),
    Mutant(
        "coverage counts one safe change too few",
        "testing/coverage.py",
        "known[needed - 1]",
        "known[max(needed - 2, 0)]",
        ON_COVERAGE,
    ),
    Mutant(
        "thresholds come from all changes, unsafe ones too",
        "runners/inputs.py",
        'arrays[name][:, arrays["group"] == "safe"]',
        "arrays[name]",
        "tests/runners/test_coverage.py",
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
        "who does not look at a study counts",
        "datasets/human_answers.py",
        "FAILED = 0.2",
        "FAILED = 0.9",
        "tests/datasets/test_human_pairs.py",
    ),
    Mutant(
        "safe moves: weights may add up to any sum",
        SPACE,
        " & at_most(weights.sum(1), 1.0)",
        "",
        ON_SPACE,
    ),
    Mutant(
        "safe moves: rounding of a mixture counts as noise",
        SPACE,
        "self.moves.mixture(weights)).clamp(0, 1)\n        change",
        "self.moves.mixture(weights))\n        change",
        ON_SPACE,
    ),
    Mutant(
        "safe moves: a point that the solver misses is taken all the same",
        MIXTURES,
        "torch.where(per_image(holds), here, mixture))",
        "here)",
        ON_SPACE,
    ),
    Mutant(
        "safe moves: nobody asks what noise alone broke",
        "runners/test/runner.py",
        'moves.add_noise_alone(arrays, self.evaluations["N_adv"], self.evaluations[MOVES])',
        "pass",
        "tests/runners/test_safe_moves.py",
    ),
    Mutant(
        "exact answers: a bound of a maximum counts a candidate beside the largest bound",
        "testing/exact_bounds.py",
        "(up * known + down).T",
        "(up + down).T",
        "tests/testing/test_exact.py",
    ),
    Mutant(
        "safe moves: what noise alone broke is robust",
        "runners/test/moves.py",
        'arrays[of("correct")] = arrays[of("correct")] & ~new',
        'arrays[of("correct")] = arrays[of("correct")] | new',
        ON_SPACE,
    ),
    Mutant(
        "safe moves: noise of a free background counts",
        MIXTURES,
        '(kind := getattr(threat, "background", "")) != "radius"',
        '(kind := getattr(threat, "background", "")) == "frozen"',
        f"{ON_MIXTURES} -k refused",
    ),
    Mutant(
        "safe moves: the nearest point ignores the sum of the weights",
        "threat_specification/projected_displacement/lifted.py",
        "(weights.sum(1) * sums).unsqueeze(1)",
        "(weights.sum(1) * 0 * sums).unsqueeze(1)",
        f"{ON_MIXTURES} -k together",
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
        "a protocol compares no digests",
        "runners/test/runner.py",
        "            self._check_protocol()\n",
        "            pass\n",
        "tests/runners/test_protocol.py -k other_anchors",
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
        "certificates: an interval is a little too narrow",
        PLAIN_NETWORKS,
        "return middle - reach, middle + reach",
        "return middle - 0.999 * reach, middle + 0.999 * reach",
        ON_PLAIN_NETWORKS,
    ),
    Mutant(
        "certificates: the lines of a ReLU on the wrong sides",
        PLAIN_NETWORKS,
        "return up * flat + down * steep, added",
        "return up * steep + down * flat, added",
        ON_PLAIN_NETWORKS,
    ),
    Mutant(
        "certificates: the line above a maximum is too low",
        PLAIN_NETWORKS,
        "least - (steep * lows).sum",
        "least - (steep * highs).sum",
        ON_PLAIN_NETWORKS,
    ),
    Mutant(
        "certificates: one that an attack broke is no failure",
        "runners/test/certified.py",
        "if wrong.any():",
        "if wrong.all():",
        "tests/runners/test_certificates.py -k first_image",
    ),
    Mutant(
        "certified training: the best side of the box instead of the worst",
        "training/certified.py",
        "torch.minimum(slope * low[which], slope * high[which])",
        "torch.maximum(slope * low[which], slope * high[which])",
        "tests/training/test_certified.py",
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
        "a file of flags wins over the command line",
        "cli/main.py",
        "[*read.words, *arguments]",
        "[*arguments, *read.words]",
        f"{ON_CONFIG} -k test_flags_win_over_tables_and_tables_over_the_rest",
    ),
    Mutant(
        "test takes the device of train from a file of flags",
        "cli/config_files.py",
        "if _flags_set(runner, entry) <= describing(table)]",
        "]",
        f"{ON_CONFIG} -k test_a_table_speaks_for_its_run_not_for_how_others_are_run",
    ),
    Mutant(
        "a run's own file leaves out what is as by default",
        "runners/commands.py",
        "    if usual:\n",
        "    if not usual:\n",
        f"{ON_CONFIG} -k test_a_run_is_repeated_when_defaults_have_changed",
    ),
    Mutant(
        "a sweep does not wait for what its runs build on",
        "runners/multi/sweep.py",
        "max((1 + depth(below)",
        "max((depth(below)",
        f"{ON_SWEEPS} -k test_called_by_hand_the_script_submits_stage_after_stage",
    ),
    Mutant(
        "a task that was cancelled goes back into the queue",
        "runners/multi/sweep.py",
        '[ "$asked" != TERM ]',
        '[ "$asked" != KILL ]',
        f"{ON_SWEEPS} -k test_what_goes_back_into_the_queue",
    ),
    Mutant(
        "a tracker draws from the random numbers of the run",
        "runners/trackers.py",
        "with self._random_states_kept(), contextlib",
        "with contextlib",
        "tests/runners/test_trackers.py -k random",
    ),
    Mutant(
        "release: a version without a date",
        "release/refusals.py",
        "if newest != version or not DATE.fullmatch(when):",
        "if newest != version:",
        "tests/test_release.py -k refused",
    ),
    Mutant(
        "release: builds that differ pass",
        "release/artefacts.py",
        "if one.name != other.name or one.read_bytes() != other.read_bytes():",
        "if one.name != other.name:",
        "tests/test_release.py -k refused",
    ),
    Mutant(
        "release: a wheel may have more files",
        "release/artefacts.py",
        "if inside != expected:",
        "if expected - inside:",
        "tests/test_release.py -k refused",
    ),
    Mutant(
        "an old name warns every time",
        "foundations/deprecation.py",
        "        _told.add(old)\n",
        "        pass\n",
        "tests/test_public_surface.py -k once",
    ),
    Mutant(
        "an old flag is dropped",
        "cli/published_flags.py",
        'words.append(f"{old.instead}{equals}{value}" if old.instead else word)',
        "words += [] if old.instead else [word]",
        "tests/test_public_surface.py -k old_flag",
    ),
]


def survives(mutant: Mutant) -> bool:
    """True when its tests pass all the same."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "project"
        files = subprocess.run(["git", "ls-files", "-z"], cwd=PROJECT, capture_output=True, text=True, check=True)
        for name in files.stdout.split("\0")[:-1]:
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(PROJECT / name, copy / name)
        text = (copy / mutant.file).read_text()
        (copy / mutant.file).write_text(text.replace(mutant.before, mutant.after))
        words = ["-x", "-q", "--no-header", "-p", "no:cacheprovider", *mutant.tests.split()]
        return subprocess.run([sys.executable, "-m", "pytest", *words], cwd=copy, capture_output=True).returncode == 0


def main(words: list[str]) -> None:
    chosen = [mutant for mutant in MUTANTS if not words or any(word in mutant.name for word in words)]
    left = []
    with ThreadPoolExecutor(2) as workers:
        for number, (mutant, survived) in enumerate(zip(chosen, workers.map(survives, chosen), strict=True), start=1):
            print(f"{number:2} {'SURVIVED' if survived else 'noticed '} {mutant.name}", flush=True)
            left += [mutant] if survived else []
    print(f"mutants: {len(chosen)}, survived: {len(left)}")


if __name__ == "__main__":
    main(sys.argv[1:])
