"""Weights of the weighted Projected Displacement: w[y, c] > 0 for an image of class y and an anchor of class c.

Similar classes get a large weight, which makes a step from one to the other a smaller threat (PD-W divides by w).
Weights come from a file or from a hierarchy: 1 + depth of the lowest common group of two classes. The diagonal has no
effect, since anchors of the same class do not count.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from foundations.errors import UsageError, look_up


def check_class_weights(class_weights: Tensor) -> Tensor:
    """The weights as float32; raises UsageError unless square, and positive and finite off the diagonal."""
    weights = torch.as_tensor(class_weights).detach().float()
    if weights.dim() != 2 or weights.shape[0] != weights.shape[1] or not len(weights):
        raise UsageError(f"class weights: expected a square matrix [K, K], got shape {list(weights.shape)}")
    fit = (weights > 0) & weights.isfinite() | torch.eye(len(weights), dtype=torch.bool, device=weights.device)
    if not bool(fit.all()):
        row, column = (~fit).nonzero()[0].tolist()
        raise UsageError(
            f"class weights: expected positive finite numbers, got {weights[row, column]:g} for classes {row}, {column}"
        )
    return weights


def check_labels_covered(class_weights: Tensor, labels: Tensor, kind: str) -> None:
    """Raise UsageError for labels without a row in the weights."""
    if len(labels) and not (int(labels.min()) >= 0 and int(labels.max()) < len(class_weights)):
        raise UsageError(
            f"class weights: the {kind} have labels {int(labels.min())} to {int(labels.max())}, "
            f"the weights cover 0 to {len(class_weights) - 1}; give a matrix with a row for every class"
        )


def class_weights_from(source: str, class_names: Sequence[str]) -> Tensor:
    """[K, K] float32 from "tree:FILE", "wordnet:DATA_NOUN" (class names must be WordNet ids) or a matrix file."""
    kind, colon, path = source.partition(":")
    if not colon:
        return load_class_weights(source, len(class_names))
    return look_up(HIERARCHIES, kind, "kind of class weights")(path, class_names)


def load_class_weights(path: Path | str, num_classes: int | None = None) -> Tensor:
    """[K, K] float32, checked, from .safetensors (one tensor, or one called class_weights), .npy or .csv."""
    path = Path(path)
    read = look_up(READERS, path.suffix, "kind of class weights file")
    try:
        weights = check_class_weights(read(path))
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    except Exception as error:  # each format raises its own errors
        raise UsageError(f"cannot read class weights from {path}: {error}") from error
    if num_classes is not None and len(weights) < num_classes:
        raise UsageError(f"{path}: expected weights for {num_classes} classes, got {len(weights)}")
    return weights


def _read_safetensors(path: Path) -> Tensor:
    from safetensors.torch import load_file

    tensors = load_file(str(path))
    if len(tensors) > 1 and "class_weights" not in tensors:
        raise UsageError(f"expected one tensor, or one called class_weights, got {', '.join(sorted(tensors))}")
    return tensors.get("class_weights", next(iter(tensors.values())))


def _read_npy(path: Path) -> Tensor:
    import numpy as np

    # With a memory map, a header that claims more data than the file has fails before memory is allocated.
    return torch.from_numpy(np.load(path, mmap_mode="r", allow_pickle=False).astype(np.float32))


def _read_csv(path: Path) -> Tensor:
    import numpy as np

    return torch.from_numpy(np.loadtxt(path, delimiter=",", ndmin=2, dtype=np.float32))


READERS = {".safetensors": _read_safetensors, ".npy": _read_npy, ".csv": _read_csv}


def hierarchy_weights(path: Path | str, class_names: Sequence[str] | None = None) -> Tensor:
    """[K, K] from a tree file: 1 + the number of groups that two classes share, counted from the root.

    A line is `class: path/of/groups`; a class is one of class_names, or its label. `#` starts a comment.
    With `cat: animal/pet`, `dog: animal/pet`, `cow: animal/farm`, `car: vehicle`: w[cat, dog] = 3, w[cat, cow] = 2,
    w[cat, car] = 1.
    """
    groups: dict[int, list[str]] = {}
    numbers = {name: label for label, name in enumerate(class_names or ())}
    for count, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        line = line.partition("#")[0].strip()
        if not line:
            continue
        # A class name may contain a colon, a path does not.
        name, colon, tree_path = (part.strip() for part in line.rpartition(":"))
        label = numbers.get(name, int(name) if name.isdecimal() else -1)
        if not colon or label < 0:
            raise UsageError(f"{path}, line {count}: expected `class: path/of/groups` with a known class, got {line!r}")
        if label in groups:
            raise UsageError(f"{path}, line {count}: class {name!r} comes twice")
        groups[label] = [part.strip() for part in tree_path.split("/") if part.strip()]
    expected = len(class_names) if class_names is not None else max(groups, default=-1) + 1
    missing = sorted(set(range(expected)) - set(groups))
    if missing or len(groups) != expected or not groups:
        raise UsageError(f"{path}: expected a line for every class from 0 to {expected - 1}, missing: {missing[:5]}")
    return torch.tensor([[1.0 + _shared(groups[a], groups[b]) for b in range(expected)] for a in range(expected)])


def _shared(first: list[str], second: list[str]) -> int:
    """Length of the common prefix."""
    for depth, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return depth
    return min(len(first), len(second))


def wordnet_weights(ids: Sequence[str], folder: Path | str) -> Tensor:
    """[K, K]: 1 + depth of the lowest common hypernym in WordNet 3.0, for ids such as n01440764 in label order.

    folder contains data.noun (Debian: wordnet-base). Depth is the length of the longest path from the root (entity: 0).
    If classes share several hypernyms, the deepest counts; a class is its own hypernym.
    """
    hypernyms = read_hypernyms(Path(folder) / "data.noun")
    unknown = [name for name in ids if name[:1] != "n" or not name[1:].isdecimal() or int(name[1:]) not in hypernyms]
    if unknown:
        raise UsageError(f"expected WordNet 3.0 nouns such as n01440764, got {unknown[0]!r} ({len(unknown)} unknown)")
    depths: dict[int, int] = {}
    classes_below: dict[int, list[int]] = {}
    for label, name in enumerate(ids):
        for synset in _ancestors(int(name[1:]), hypernyms):
            classes_below.setdefault(synset, []).append(label)
    weights = torch.ones(len(ids), len(ids))
    for synset in sorted(classes_below, key=lambda s: _depth(s, hypernyms, depths)):
        below = torch.tensor(classes_below[synset])
        weights[below.view(-1, 1), below] = 1.0 + depths[synset]  # the deepest is written last
    return weights


def read_hypernyms(path: Path) -> dict[int, list[int]]:
    """Read a WordNet data file: synset offset -> offsets of its hypernyms (also of instances); see wndb(5WN)."""
    if not path.is_file():
        raise UsageError(f"expected WordNet's data.noun at {path}; on Debian: apt-get install wordnet-base")
    hypernyms = {}
    for line in path.read_text(encoding="latin-1").splitlines():
        if line.startswith("  "):  # the licence
            continue
        fields = line.partition("|")[0].split()
        num_words = int(fields[3], 16)
        pointers = fields[5 + 2 * num_words :]
        hypernyms[int(fields[0])] = [
            int(pointers[i + 1]) for i in range(0, len(pointers) - 3, 4) if pointers[i] in ("@", "@i")
        ]
    return hypernyms


def _ancestors(synset: int, hypernyms: dict[int, list[int]]) -> set[int]:
    found, waiting = {synset}, [synset]
    while waiting:
        new = [parent for parent in hypernyms[waiting.pop()] if parent not in found]
        found.update(new)
        waiting.extend(new)
    return found


def _depth(synset: int, hypernyms: dict[int, list[int]], known: dict[int, int]) -> int:
    """Length of the longest path up to a root; `known` caches the depths."""
    if synset not in known:
        known[synset] = max((1 + _depth(parent, hypernyms, known) for parent in hypernyms[synset]), default=0)
    return known[synset]


HIERARCHIES = {
    "tree": hierarchy_weights,
    "wordnet": lambda path, ids: wordnet_weights(ids, Path(path).parent),
}
