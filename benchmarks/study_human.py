"""Agreement of threats with people: ideas chosen on training images alone, then asked once about answers of people.

python benchmarks/study_human.py [--human=FILE.npz] [--images=100] [--seed=0] [--only="NAME;NAME"]

Without --human: the validation task of human_validation.py and corruptions against blends, both made of training images
of mnist_5k. This is where ideas and their constants are chosen. With it, in addition: corruptions against blends of
test images, and the pairs that people answered, by the same measures. FILE has the arrays clean, label,
label_is_certain, changed_* and people_*. AUROC with 95 % intervals from a bootstrap over images.
A quarter of an hour of one core in all; a row is printed when it is done.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import human_features as features
from benchmarks import human_linear as linear
from benchmarks import human_measures as measures
from benchmarks import human_validation as validation
from benchmarks.human_linear import Rows, Size, halfspaces
from benchmarks.human_validation import Pairs
from benchmarks.human_world import World
from datasets.base import Dataset, Split
from datasets.registry import load_dataset
from datasets.sampling import stratified_subset
from foundations.results import markdown_table
from runners import corruptions
from runners.evaluate_threat import perturbations
from runners.evaluate_threat.desc import DEFAULT_SUITES
from runners.evaluate_threat.statistics import Separations
from testing.perturbed import Perturbation
from testing.separation import Bootstrap
from testing.shards import Shard

Array = numpy.ndarray
PEOPLE = {"l-inf 0.3": "linf_03", "l-inf 0.4": "linf_04", "l0": "l0"}
SEVERITIES, RESAMPLES = (1, 2, 3, 4, 5), 2000


@dataclasses.dataclass(frozen=True)
class Idea:
    """An idea, and whether it is linear in the change."""

    make: Callable[[World], Size]
    linear: bool = False


def pieces(rows: Rows) -> Idea:
    return Idea(partial(halfspaces, rows), True)


def with_tangents(rows: Rows) -> Idea:
    return pieces(partial(linear.with_tangents, rows))


def slopes(feature: features.Feature, least: float, reach: float, width: float, freed: bool) -> Idea:
    """Slopes of a kernel rule along ways to other classes; freed: in the metric of PD-T."""

    def make(world: World) -> Size:
        rows = linear.kernel_slopes(feature, least, reach, width, world)
        return halfspaces(partial(linear.with_tangents, rows) if freed else rows, world)

    return Idea(make, True)


# + T: in the metric of PD-T. (a) to (f): families, as docs/results.md names them.
IDEAS: dict[str, Idea] = {
    "l2": Idea(measures.length),
    "SSIM": Idea(measures.similarity),
    "PD": pieces(linear.pd),
    "PD-T": pieces(linear.pd_t),
    "(a) hulls of near images": pieces(linear.hull),
    "(a) hulls of near images + T": with_tangents(linear.hull),
    "(b) class means, aligned": pieces(linear.mean_differences),
    "(b) near images, aligned": pieces(linear.aligned_anchors),
    "(b) near images, warped": pieces(linear.warped_anchors),
    "(b) local discriminants": pieces(linear.local_discriminants),
    "(b) local discriminants + T": with_tangents(linear.local_discriminants),
    "(c) slopes, kernel rule + T": slopes(features.raw, 1.0, 0.4, 1.0, True),
    "(c) slopes, kernel rule of gradients, short ways": slopes(features.oriented, 0.5, 0.4, 0.5, False),
    "(c) slopes, kernel rule of gradients + T": slopes(features.oriented, 1.0, 1.0, 1.0, True),
    "(e) own against other class": pieces(linear.own_against_other),
    "(e) own against other class + T": with_tangents(linear.own_against_other),
    "(f) PD, blurred": pieces(partial(linear.linear_feature, features.blurred)),
    "(f) PD, centre-surround": pieces(partial(linear.linear_feature, features.centre_surround)),
    "(f) PD, seen ink": pieces(linear.seen_ink),
    "(f) PD in windows": pieces(linear.windows),
    "(d) strokes": Idea(measures.strokes),
    "(e) nearest, own / other": Idea(partial(measures.nearest_ratio, features.raw)),
    "(e) nearest, own / other, gradients": Idea(partial(measures.nearest_ratio, features.oriented)),
    "(e) 3-NN": Idea(partial(measures.neighbours, features.raw)),
    "(e) 3-NN, local contrast": Idea(partial(measures.neighbours, features.local_contrast)),
    "(e) 3-NN, gradients": Idea(partial(measures.neighbours, features.oriented)),
    "(e) 3-NN, tangent distance": Idea(measures.tangent_neighbours),
    "(e) own against other, gradients + T": Idea(partial(measures.own_displaced, features.oriented)),
    "(f) PD of bent pixels": Idea(partial(measures.displaced, features.bent)),
    "(f) PD of local contrast": Idea(partial(measures.displaced, features.local_contrast)),
    "(f) PD of gradients": Idea(partial(measures.displaced, features.oriented)),
    "(f) PD of gradients + T": Idea(partial(measures.displaced_freely, features.oriented)),
    "(f) kernel rule": Idea(partial(measures.kernel, features.raw)),
    "(f) kernel rule of bent pixels": Idea(partial(measures.kernel, features.bent)),
    "(f) kernel rule of local contrast": Idea(partial(measures.kernel, features.local_contrast)),
    "(f) kernel rule of gradients": Idea(partial(measures.kernel, features.oriented)),
    "(f) kernel rule that knows x": Idea(partial(measures.informed, features.raw)),
    "(f) kernel rule of gradients that knows x": Idea(partial(measures.informed, features.oriented)),
    "(f) network": Idea(lambda world: measures.by_scores(world.plain, 1.0)),
    "(f) network that saw variations": Idea(lambda world: measures.by_scores(world.varied, 1.0)),
    "(c) robust network": Idea(lambda world: measures.by_scores(world.robust, 1.0)),
    "(c) slopes, robust network": pieces(linear.robust_slopes),
    "(c) slopes, robust network + T": with_tangents(linear.robust_slopes),
    "(e) 2-NN, image distortion": Idea(measures.distortion_neighbours),
    "(c) morphs of a robust network": pieces(linear.morph_anchors),
}


@dataclasses.dataclass(frozen=True)
class Corrupted:
    """Safe changes and blends of some images, in the columns of `Separations`."""

    columns: list[Perturbation]
    pairs: Pairs

    @classmethod
    def of(cls, data: Dataset, rows: torch.Tensor, seed: int) -> Corrupted:
        """Every corruption at every severity and every blend of rows of the test images of `data`."""
        made = corruptions.safe(DEFAULT_SUITES, SEVERITIES, seed)
        made += [p for p in perturbations.unsafe(perturbations.Partners(data.test, seed), seed) if p.group == "unsafe"]
        shard = Shard(0, data.test.pixels(rows), data.test.labels[rows], rows)
        changed = torch.stack([p.apply(shard)[0].flatten(1) for p in made], 1)
        unknown = numpy.full(changed.shape[:2], numpy.nan)
        return cls(made, Pairs(shard.images.flatten(1), shard.labels, changed, unknown))

    def auroc(self, size: Size, seed: int) -> str:
        """Blends against corruptions, as text."""
        bootstrap = Bootstrap.over(len(self.pairs.label), RESAMPLES, seed)
        separations = Separations(self.columns, {"": sizes(size, self.pairs)}, bootstrap)
        return "{auroc:.3f} [{low:.3f}, {high:.3f}]".format(**separations.of(separations.unsafe)[""])


def sizes(size: Size, pairs: Pairs) -> Array:
    """[n,m]: sizes of all changes of all images."""
    rows = zip(pairs.clean, pairs.label.tolist(), pairs.changed, strict=True)
    return torch.stack([size(x, y, z).detach() for x, y, z in rows]).double().numpy()


def seen_otherwise(values: Array, seen: Array, seed: int) -> Array:
    """[1+R]: AUROC of seeing another digit, of values and seen [n,m], and that of every resample of the images."""
    owner = numpy.repeat(numpy.arange(len(values)), values.shape[1])
    flat, answers = values.ravel(), seen.ravel()
    other, same = answers == 1, answers == 0
    above, below = flat[other][:, None], flat[same][None]
    won = (above > below) + 0.5 * (above == below)
    counts = numpy.random.default_rng(seed).multinomial(len(values), [1 / len(values)] * len(values), RESAMPLES)
    one, two = counts[:, owner[other]].astype(float), counts[:, owner[same]].astype(float)
    with numpy.errstate(invalid="ignore"):
        resampled = ((one @ won) * two).sum(1) / (one.sum(1) * two.sum(1))
    return numpy.concatenate([[won.mean()], resampled])


def with_interval(found: Array, sign: str = "") -> str:
    """An estimate, the first number, with the interval of its resamples, the others."""
    low, high = numpy.nanquantile(found[1:], [0.025, 0.975])
    return f"{found[0]:{sign}.2f} [{low:{sign}.2f}, {high:{sign}.2f}]"


def read_people(path: str) -> dict[str, Pairs]:
    """The pairs of people whose label is certain, by group of equal size."""
    with numpy.load(path) as file:
        arrays = {name: file[name][file["label_is_certain"]] for name in file.files}
    label = torch.from_numpy(arrays["label"].astype(numpy.int64))

    def pixels(name: str) -> torch.Tensor:
        return torch.from_numpy(arrays[name]).flatten(1).float() / 255

    return {
        group: Pairs(
            pixels("clean"),
            label,
            pixels(f"changed_{name}").unsqueeze(1),
            (arrays[f"people_{name}"] != arrays["label"]).astype(float)[:, None],
        )
        for group, name in PEOPLE.items()
    }


def asked(size: Size, pairs: dict[str, Pairs], seed: int) -> list[Array]:
    return [seen_otherwise(sizes(size, group), group.seen, seed) for group in pairs.values()]


def more(found: list[Array], base: list[Array]) -> list[Array]:
    """Differences of AUROCs of the same pairs; resamples are the same images for both."""
    return [one - two for one, two in zip(found, base, strict=True)]


def main(words: list[str]) -> None:
    flags = dict(word[2:].partition("=")[::2] for word in words)
    seed, images = int(flags.get("seed", 0)), int(flags.get("images", 100))
    names = flags["only"].split(";") if "only" in flags else list(IDEAS)
    torch.set_num_threads(1)
    data = load_dataset("mnist_5k")
    x, y = data.train.pixels(slice(0, len(data.train))).flatten(1), data.train.labels
    parts = validation.split(x, y, seed)
    mimicked, _ = validation.make(parts, seed)
    held = [torch.cat([parts[name][place] for name in ("sources", "targets")]) for place in (0, 1)]
    held_out = Split((held[0] * 255).round().to(torch.uint8).view(-1, 1, 28, 28), held[1])
    sources = stratified_subset(parts["sources"][1], images, seed)
    corrupted = Corrupted.of(dataclasses.replace(data, test=held_out), sources, seed)
    world = World(*parts["bank"], seed)
    columns = ["idea", "linear in d", *(f"{group}, judges" for group in mimicked), "corruptions, training"]
    if "human" in flags:
        people = read_people(flags["human"])
        tested = Corrupted.of(data, stratified_subset(data.test.labels, images, seed), seed)
        columns += ["corruptions, test", *(f"{group}, people" for group in people)]
    print(markdown_table([*columns, "seconds"], []), flush=True)
    answers: dict[str, list[Array]] = {}
    for name in names:
        idea, begun = IDEAS[name], time.process_time()
        size = idea.make(world)
        cells = [name, "yes" if idea.linear else "", *map(with_interval, asked(size, mimicked, seed))]
        cells += [corrupted.auroc(size, seed)]
        if "human" in flags:
            answers[name] = asked(size, people, seed)
            cells += [tested.auroc(size, seed), *map(with_interval, answers[name])]
        print(f"| {' | '.join(cells)} | {time.process_time() - begun:.0f} |", flush=True)
    for base in ("PD", "SSIM"):
        if base in answers:
            rows = [[name, *map(partial(with_interval, sign="+"), more(found, answers[base]))]
                    for name, found in answers.items() if name != base]  # fmt: skip
            print("\n" + markdown_table([f"people: more than {base}", *PEOPLE], rows))


if __name__ == "__main__":
    main(sys.argv[1:])
