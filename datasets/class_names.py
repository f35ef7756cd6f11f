"""Names of classes by label. Does not import torch."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

from foundations.errors import RunError

DIGITS = tuple(str(digit) for digit in range(10))
FASHION = (
    "T-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
KUZUSHIJI = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
STL10 = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
_CIFAR100 = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
    castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
    elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster
    man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck
    pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
    skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger
    tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""
CIFAR100 = tuple(_CIFAR100.split())


@functools.cache
def imagenet_ids() -> tuple[str, ...]:
    """The 1,000 WordNet ids of ILSVRC2012 in the order of the labels, which is the sorted order of the ids."""
    return tuple(_timm_file("imagenet_synsets.txt").read_text().split())


@functools.cache
def wordnet_titles() -> dict[str, str]:
    """WordNet id -> its words, such as 'tench, Tinca tinca'."""
    lines = _timm_file("imagenet_synset_to_lemma.txt").read_text().splitlines()
    return dict(line.split("\t", 1) for line in lines)


def _timm_file(name: str) -> Path:
    """The path of a list in the package timm, found without importing timm; raises RunError if it is not installed."""
    found = importlib.util.find_spec("timm")
    if found is None or not found.submodule_search_locations:
        raise RunError(
            "the class lists of ImageNet come with the package timm, which is not installed: pip install timm"
        )
    return Path(found.submodule_search_locations[0]) / "data" / "_info" / name
