"""The ensemble beside the truth: what attacks find on small networks of digits, and what there is to be found.

python benchmarks/study_exact.py [NET ...] [--cells=0.1/0.1,0.2/0.2] [--num_examples=360] [--exact_seconds=60]
python benchmarks/study_exact.py --table

An hour of one core for each perceptron over all images and cells. Runs are kept as those of any command
(NONISOTROPIC_HOME), so that the same words go on where it was interrupted; --table prints what is complete.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.study_training import directory, run
from foundations.results import markdown_table
from testing.exact import BY_ATTACK, BY_BOUNDS, BY_BRANCHES, BY_PROGRAM, UNDECIDED

DIGITS = ("--dataset_name=digits",)
# A perceptron as by default; with those flags convolutions stay at chance.
MODELS = {
    "lenet_64": ("--training_steps=30ep", "--model_name=lenet_64"),
    "conv_8_8": ("--training_steps=60ep", "--model_name=conv_8_8", "--batch_size=32", "--optimizer=adamw", "--lr=0.01"),
}
TRAININGS = {"standard": (), "l-inf": ("--adv_train",), "in the set": ("--N_adv_train",)}
NETS = {
    f"{model}, {training}": (*DIGITS, *words, *flags)
    for model, words in MODELS.items()
    for training, flags in TRAININGS.items()
}
CELLS = "0.1/0.05,0.1/0.1,0.2/0.1,0.2/0.2"
HEADS = ["net", "PD, radius", "images", "robust", "undecided", "not broken by attacks", "above", "missed"]
HEADS += ["by attack", "by bounds", "by branches", "by program", "seconds an image"]


def command(net: str, cell: str, num_examples: str, seconds: str) -> tuple[str, ...]:
    """The words of `test` for a network in one set (threshold/radius)."""
    threshold, radius = cell.split("/")
    inside = ("--N_adv_eval", f"--N_threshold={threshold}", f"--N_radius={radius}")
    return ("test", *NETS[net], *inside, f"--num_examples={num_examples}", "--exact_eval", f"--exact_seconds={seconds}")


def row(net: str, cell: str, place: Path) -> list[str]:
    """Shares of all images; `above` is how far attacks leave more than there is, in points, at most.

    Raises RuntimeError where an attack breaks an image that is proven robust.
    """
    result: dict[str, Any] = json.loads((place / "result.json").read_text())
    rows = dict(numpy.load(place / "examples.npz"))
    standing, robust, by = (rows[name] for name in ("N_adv_correct", "exact_robust", "exact_by"))
    if (robust & ~standing).any():
        raise RuntimeError(f"{net}, {cell}: proven robust, but broken")
    missed = int((standing & rows["exact_broken"]).sum())
    shares = [robust.mean(), (by == UNDECIDED).mean(), standing.mean()]
    decided = [(by == kind).mean() for kind in (BY_ATTACK, BY_BOUNDS, BY_BRANCHES, BY_PROGRAM)]
    assert result["exact"]["missed_by_attacks"] == missed
    return [
        *(net, cell.replace("/", ", "), str(len(by))),
        *(f"{share:.3f}" for share in shares),
        f"{100 * (standing.mean() - robust.mean()):.1f}",
        str(missed),
        *(f"{share:.3f}" for share in decided),
        f"{result['exact']['seconds_per_example']:.2f}",
    ]


def main(words: list[str]) -> None:
    flags = dict(word[2:].partition("=")[::2] for word in words if word.startswith("--"))
    nets = [word for word in words if not word.startswith("--")] or list(NETS)
    if unknown := [name for name in nets if name not in NETS]:
        sys.exit(f"unknown networks {', '.join(unknown)}; expected some of: {'; '.join(NETS)}")
    if "table" not in flags:
        run("compute_threat", DIGITS[0])
    lines = []
    for net in nets:
        if "table" not in flags:
            run("train", *NETS[net])
        for cell in flags.get("cells", CELLS).split(","):
            asked = command(net, cell, flags.get("num_examples", "0"), flags.get("exact_seconds", "60"))
            if "table" not in flags:
                run(*asked)
            if ((place := directory(*asked)) / "result.json").is_file():
                lines.append(row(net, cell, place))
                print("\t".join(lines[-1]), flush=True)
    print("\n" + markdown_table(list(HEADS), lines))


if __name__ == "__main__":
    main(sys.argv[1:])
