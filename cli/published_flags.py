"""Flags of the paper's research code: a table of translations, and of what to use in place of the others.

Flags of our own that were renamed are in foundations/deprecation.py, and translated here too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from foundations.deprecation import DEPRECATED
from foundations.errors import UsageError


@dataclass(frozen=True)
class Translation:
    """Words of ours in the place of a published flag.

    words   of its value ("" for a switch)          note   printed, if there is something to know
    """

    words: Callable[[str], list[str]]
    note: str = ""


def renamed(flag: str) -> Translation:
    """The same value under another name."""
    return Translation(lambda value: [f"--{flag}={value}"])


def stands_for(*words: str) -> Translation:
    """A switch."""
    return Translation(lambda value: list(words))


def nothing(note: str = "") -> Translation:
    """A flag without effect, since what it asks for is always so, or never."""
    return Translation(lambda value: [], note)


def _selection(value: str) -> list[str]:
    return [f"--selection={'greedy_subsets' if value == 'greedy' else value}"]


def _nesterov(value: str) -> list[str]:
    try:
        is_on = float(value or 0) != 0
    except ValueError:
        raise UsageError(f"--nesterov_momentum: expected a number, got '{value}'") from None
    return [f"--momentum={value}", "--nesterov"] if is_on else []


TRANSLATIONS: dict[str, Translation] = {
    "optimizer_name": renamed("optimizer"),
    "grad_accumulation_steps": renamed("accumulation"),
    "grad_clipping_val": renamed("clip_grad"),
    "transformation_seed": renamed("data_seed"),
    "greedy_per_label": renamed("per_label"),
    "subset_selection": Translation(_selection),
    "nesterov_momentum": Translation(_nesterov),
    "ema": stands_for("--ema_decay=0.999"),
    "use_amp": stands_for("--precision=fp16"),
    "use_cpu": stands_for("--device=cpu"),
    "exact_project": nothing(),
    "full_precision": nothing(),
    "in_memory": nothing(),
    "platform": nothing(),
    "N_multi_channel": nothing(),
    "float_16": nothing("--float_16 has no effect: threats are computed in float32; for training use --precision"),
}
# Switches of evaluate_threat that name suites of corruptions -> an entry of --suites.
SUITES = {"common_2d": "C", "common_2d_bar": "C-bar", "v2_transformations": "torchvision"}

SEEDS = "seeds follow from --seed and the numbers of repetitions (--train_replicate, ...)"
SHAPES = "the data set says it; for your own images use --dataset_name=image_folder"
ELSEWHERE: dict[str, str] = {
    "subset_selection_seed": SEEDS,
    "data_order_seed": SEEDS,
    "shuffle_seed": SEEDS,
    "num_labels": SHAPES,
    "num_channels": SHAPES,
    "num_spatial_dims": SHAPES,
    "num_train": "use --subsample_fraction for a part of the training images",
    "num_test": "use --num_examples for a part of the test images",
    "model_init": "networks have one initialisation each",
    "batchnorm_init": "networks have one initialisation each",
    "unsupervised_labels": "there are no unsupervised labels here",
    "blur_factor": "blur is measured by evaluate_threat --suites=C",
    "perturbation_style": "use evaluate_threat --suites=C,C-bar,torchvision",
    "severity": "use evaluate_threat --severities=1,3,5",
    "common_3d": "use --corruption_files=DIR with the images of 3DCC",
    "backgrounds": "use --corruption_files=DIR with images of other backgrounds",
    "adv_train_attack_type": "adversaries of training are PGD; --adv_train_attack_iter=1 is a single step",
    "evaluate_only_at_end": "accuracy on test images is measured at the end of every epoch",
    "evaluate_every_few_epoch": "accuracy on test images is measured at the end of every epoch",
}


def translated(arguments: Sequence[str], known: Callable[[str], bool]) -> tuple[list[str], list[str]]:
    """The arguments in flags of this program, and notes. `known` says which flags the runner has itself.

    Raises UsageError for a published flag that has no equivalent.
    """
    words, notes, suites, waiting = [], [], [], list(arguments)
    while waiting:
        word = waiting.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        if old := DEPRECATED.get(word.partition("=")[0]):
            words.append(f"{old.instead}{equals}{value}" if old.instead else word)
            notes.append(old.told(f"--{name}"))
        elif not word.startswith("--") or known(name):
            words.append(word)
        elif name in ELSEWHERE:
            raise UsageError(f"--{name} is a flag of the paper's research code: {ELSEWHERE[name]} (docs/paper.md)")
        elif name in SUITES:
            suites += [SUITES[name]] * (value.lower() != "false")
        elif name in TRANSLATIONS:
            if not equals and waiting and not waiting[0].startswith("--"):
                value = waiting.pop(0)
            words += [] if value.lower() == "false" else TRANSLATIONS[name].words(value)
            notes += [TRANSLATIONS[name].note] * bool(TRANSLATIONS[name].note)
        else:
            words.append(word)
    return words + [f"--suites={','.join(suites)}"] * bool(suites), notes
