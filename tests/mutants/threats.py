"""Faults of threats, projections and safe moves."""

from __future__ import annotations

from .mutant import Mutant

DIRECTIONS = "threat_specification/projected_displacement/directions.py"
FIXED_SHAPES = "threat_specification/projected_displacement/fixed_shapes.py"
PD_TESTS = "tests/threat_specification/projected_displacement"
ON_PROJECTION = f"{PD_TESTS}/test_projection.py tests/threat_specification/test_intersection.py"
ON_PROCESSES = f"{PD_TESTS}/test_distributed_matrix.py"
ON_FIXED_SHAPES = f"{PD_TESTS}/test_fixed_shapes.py"
TANGENTS = "threat_specification/projected_displacement/tangents.py"
ON_TANGENTS = f"{PD_TESTS}/test_tangents.py"
ON_PD = f"{PD_TESTS}/test_threat.py"
SPACE = "threat_specification/safe_moves/space.py"
MIXTURES = "threat_specification/safe_moves/mixtures.py"
ON_SPACE = "tests/threat_specification/safe_moves/test_space.py"
ON_MIXTURES = "tests/threat_specification/safe_moves/test_mixtures.py"

MUTANTS = [
    Mutant(
        "a function changes images in parts",
        "threat_specification/measuring.py",
        "return change(images.clone()) if len(images) else images",
        "return torch.cat([change(part.clone()) for part in images.split(TOGETHER)]) if len(images) else images",
        "tests/test_api.py -k random_numbers_of_its_own",
    ),
    Mutant(
        "weights that the solver misses are not counted",
        "threat_specification/safe_moves/mixtures.py",
        "outside & (missed | ~found)",
        "outside & ~found",
        "tests/threat_specification/safe_moves/test_space.py",
    ),
    Mutant(
        "what a member of an intersection misses is not counted",
        "threat_specification/safe_moves/mixtures.py",
        "yield from _with_counters(member)",
        "pass",
        "tests/threat_specification/safe_moves/test_space.py",
    ),
    Mutant(
        "safe changes of people all have one seed",
        "threat_specification/safe_moves/changes.py",
        "    made = changed(images, rows, seed, moves)",
        "    made = changed(images, rows, 0, moves)",
        "tests/threat_specification/safe_moves/test_changes.py",
    ),
    Mutant(
        "robust_accuracy has another second bound",
        "threat_specification/norms.py",
        "RADIUS = 8 / 255",
        "RADIUS = 16 / 255",
        "tests/testing/test_robust_accuracy.py",
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
        "lower, upper = member.tighten(lower, upper, threshold * level)",
        "pass",
        ON_PROJECTION,
    ),
    Mutant(
        "a radius bounds a background that is free in the sets of attacks",
        "threat_specification/attacks/search.py",
        "BoundLinf(x, bound.counted)",
        "BoundLinf(x)",
        "tests/threat_specification/projected_displacement/test_masks.py",
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
        "safe moves: noise of a free background counts",
        MIXTURES,
        '            if kind != "radius":',
        '            if kind == "frozen":',
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
        "safe moves: noise beyond a threat without an exact projection is dropped",
        "threat_specification/base.py",
        "        return self._towards(centre, point, threshold)",
        "        return point, self.evaluate(point) <= threshold",
        f"{ON_MIXTURES} -k next_to_the_nearest",
    ),
    Mutant(
        "an intersection counts no points that could not be solved",
        "threat_specification/intersection.py",
        'sum((getattr(member, "scaled", none) for member, _ in self.members), none)',
        "none",
        "tests/threat_specification/test_intersection.py -k could_not_solve",
    ),
    Mutant(
        "a point of an l2 ball and a threat may stop short",
        "threat_specification/ball.py",
        "(high - low > SHORT * high)",
        "(high - low > 0.5 * high)",
        "tests/threat_specification/test_intersection.py -k nearest_point",
    ),
    Mutant(
        "SSIM in the caller's precision",
        "threat_specification/ssim.py",
        "        with full_precision(examples.device.type):",
        "        if True:",
        "tests/threat_specification/test_full_precision.py -k SSIM",
    ),
    Mutant(
        "corruptions in the caller's precision",
        "threat_specification/perturbations/registry.py",
        "        with full_precision(x.device.type, convolutions=True):",
        "        if True:",
        "tests/threat_specification/test_full_precision.py -k blur",
    ),
    Mutant(
        "each form of a run has anchors of its own",
        "threat_specification/projected_displacement/threat.py",
        "        if shared is None or kind is not AnchorMatrix:",
        "        if True:",
        "tests/runners/test_shared_anchors.py",
    ),
    Mutant(
        "images wait for others while two threats take turns",
        "threat_specification/intersection.py",
        "            point = torch.where(going, member.project(shifted, level, lower, upper), point)",
        "            point = member.project(shifted, level, lower, upper)",
        "tests/threat_specification/test_intersection.py -k beside_it",
    ),
    Mutant(
        "a background that no member of an intersection counts is bounded",
        "threat_specification/intersection.py",
        "        low, high = free(*given, inside, examples)",
        "        low, high = lower, upper",
        "tests/testing/test_exact.py -k no_member_bounds",
    ),
    Mutant(
        "the longest way between classes",
        "threat_specification/projected_displacement/class_weights.py",
        "        shortest[here] = torch.minimum(shortest[here], up.view(-1, 1) + up)",
        "        shortest[here] = up.view(-1, 1) + up",
        "tests/threat_specification/projected_displacement/test_class_weights.py -k wordnet",
    ),
    Mutant(
        "soft masks are nearly all object",
        "threat_specification/projected_displacement/masks.py",
        "        if largest not in (0, 1, 255) or bool(((masks != 0) & (masks != largest)).any()):",
        "        if False:",
        "tests/threat_specification/projected_displacement/test_masks.py",
    ),
]
