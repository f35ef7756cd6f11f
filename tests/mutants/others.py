"""Faults of data, models, training, documents and releases."""

from __future__ import annotations

from .mutant import Mutant

ON_SHARDS = "tests/testing/test_testing.py"
HALF_SPACES, PLAIN_NETWORKS = "testing/half_spaces.py", "foundations/plain_networks.py"
ON_PLAIN_NETWORKS = "tests/foundations/test_plain_networks.py"

MUTANTS = [
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
        "AugMix: chains are always as long as they may be",
        "training/augmix.py",
        "kinds.masked_fill(unused, -1)",
        "kinds",
        "tests/training/test_augmix.py -k loop",
    ),
    Mutant(
        "AugMix: a brighter image never becomes darker",
        "training/augmix.py",
        "sign * (has_sign & (level > 0))",
        "sign * 0",
        "tests/training/test_augmix.py -k spread",
    ),
    Mutant(
        "pixels are changed before they move",
        "training/batch.py",
        "self.change(self.move(images, index, self.draw), index, self.draw)",
        "self.move(self.change(images, index, self.draw), index, self.draw)",
        "tests/training/test_augmentation.py",
    ),
    Mutant(
        "cutout is left out beside AugMix",
        "runners/train/objectives.py",
        "    if augmentation.cutout:",
        "    if augmentation.cutout and not made:",
        "tests/runners/test_objectives.py -k augmentation",
    ),
    Mutant(
        "the model stays in training mode",
        "foundations/modes.py",
        "    model.eval()\n",
        "",
        ON_SHARDS,
    ),
    Mutant(
        "who does not look at a study counts",
        "datasets/human_answers.py",
        "FAILED = 0.2",
        "FAILED = 0.9",
        "tests/datasets/test_human_pairs.py",
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
        "certified training: the best side of the box instead of the worst",
        "training/certified.py",
        "torch.minimum(slope * low[which], slope * high[which])",
        "torch.maximum(slope * low[which], slope * high[which])",
        "tests/training/test_certified.py",
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
        "each process perturbs the weights by its own part",
        "training/weight_perturbation.py",
        "    torch.distributed.all_reduce(together)\n",
        "",
        "tests/runners/test_runs.py -k two_processes_train",
    ),
    Mutant(
        "a checkpoint that has lost a file is whole",
        "training/checkpoints.py",
        "state.pop(NAMES, None) or [",
        "[",
        "tests/training/test_checkpoints.py -k lost_a_file",
    ),
    Mutant(
        "samples hold the first classes alone",
        "datasets/sampling.py",
        "torch.randperm(len(counts), generator=generator) if generator else ",
        "",
        "tests/datasets/test_datasets.py -k small_samples",
    ),
    Mutant(
        "a study of other classes is taken",
        "datasets/human_pairs.py",
        '    if names and "classes" in arrays:',
        "    if False:",
        "tests/datasets/test_human_pairs.py",
    ),
    Mutant(
        "who begins a study twice counts twice",
        "datasets/human_answers.py",
        "            if seed != first:",
        "            if False:",
        "tests/datasets/test_human_pairs.py",
    ),
]
