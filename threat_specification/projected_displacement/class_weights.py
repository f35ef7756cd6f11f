"""Weights of the weighted Projected Displacement: W[y, c] > 0 for an image of class y and an anchor of class c.

PD-W divides a displacement towards class c by W[y, c]. In the paper (Definition 9) W is a relative distance between
classes in [0, 1]: a move to a near class is more of a threat, and {PD-W <= t} lies inside {PD <= t}. An entry of FORMS
makes W from a matrix of distances, or from a hierarchy of classes. The diagonal has no effect, since anchors of the
same class do not count.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from foundations.errors import UsageError, look_up
from foundations.hparam_fields import split_kind
from foundations.text_files import read_text

FLOOR = 0.05  # distance between two classes that have none, as synonyms


def check_class_weights(class_weights: Tensor, zeros: bool = False) -> Tensor:
    """The weights as float32; raises UsageError unless square, and positive (or zero) and finite off the diagonal."""
    weights = torch.as_tensor(class_weights).detach().float()
    if weights.dim() != 2 or weights.shape[0] != weights.shape[1] or not len(weights):
        raise UsageError(f"class weights: expected a square matrix [K, K], got shape {list(weights.shape)}")
    fit = ((weights > 0) | (zeros & (weights == 0))) & weights.isfinite() | torch.eye(
        len(weights), dtype=torch.bool, device=weights.device
    )
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


@dataclass(frozen=True)
class Hierarchy:
    """Groups of classes within groups, up to a root.

    steps    [K, K] of the shortest way from one class up to a group that holds both, and down to the other
    common   [K, K] depth of the lowest such group, counted from the root (0)
    """

    steps: Tensor
    common: Tensor

    def distances(self) -> Tensor:
        """[K, K] the steps, over the largest."""
        return self.steps / self.steps.max().clamp_min(1)


def distance(given: Tensor | Hierarchy) -> tuple[Tensor, list[str]]:
    """Relative distances, as in the paper: those of the hierarchy, or a matrix as it is. Zeros get FLOOR."""
    weights = given.distances() if isinstance(given, Hierarchy) else given.clone()
    other = ~torch.eye(len(weights), dtype=torch.bool)
    notices = []
    zeros = int((weights[other] == 0).sum())
    if zeros:
        weights[other & (weights == 0)] = FLOOR
        notices.append(f"{zeros} distances between classes are 0 and were set to {FLOOR:g}")
    if float(weights[other].max()) > 1:
        notices.append(
            f"distances between classes reach {float(weights[other].max()):.3g}: above 1 the set of the weighted "
            "threat no longer lies inside that of the plain one"
        )
    return weights, notices


def similarity(given: Tensor | Hierarchy) -> tuple[Tensor, list[str]]:
    """Near classes have the larger weight, a move to them is less of a threat: 1 + depth of the common ancestor."""
    return (1.0 + given.common, []) if isinstance(given, Hierarchy) else (given, [])


def published_code(given: Tensor | Hierarchy) -> tuple[Tensor, list[str]]:
    """50 (W + 0.0001)^2 of relative distances W, as in the research code of the paper."""
    weights = given.distances() if isinstance(given, Hierarchy) else given
    return 50 * (weights + 1e-4).square(), []


# --class_weights_form -> (matrix or hierarchy) -> weights [K, K], and what people should know of them
FORMS: dict[str, Callable[[Tensor | Hierarchy], tuple[Tensor, list[str]]]] = {
    "distance": distance,
    "similarity": similarity,
    "published_code": published_code,
}


def class_weights_from(source: str, class_names: Sequence[str], form: str = "distance") -> tuple[Tensor, list[str]]:
    """[K, K] float32 and notices, from "tree:FILE", "wordnet:DATA_NOUN" (names are WordNet ids) or a matrix file."""
    kind, path = split_kind(source)
    given: Tensor | Hierarchy
    if kind:
        given = look_up(HIERARCHIES, kind, "kind of class weights")(path, class_names)
    else:
        given = read_matrix(source, len(class_names))
    weights, notices = look_up(FORMS, form, "form of class weights")(given)
    try:
        return check_class_weights(weights), notices
    except UsageError as error:
        raise UsageError(f"{source}: {error}") from error


def load_class_weights(path: Path | str, num_classes: int | None = None) -> Tensor:
    """[K, K] float32 from .safetensors (one tensor, or one called class_weights), .npy or .csv; positive."""
    weights = read_matrix(path, num_classes)
    try:
        return check_class_weights(weights)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def read_matrix(path: Path | str, num_classes: int | None = None) -> Tensor:
    """[K, K] float32, with a row for each class; raises UsageError if it is not square or negative somewhere."""
    path = Path(path)
    read = look_up(READERS, path.suffix.lower(), "kind of class weights file")
    try:
        matrix = torch.as_tensor(read(path)).float()
        check_class_weights(matrix, zeros=True)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    except Exception as error:  # each format raises its own errors
        raise UsageError(f"cannot read class weights from {path}: {error}") from error
    if num_classes is not None and len(matrix) != num_classes:
        raise UsageError(f"{path}: expected weights for {num_classes} classes, got {len(matrix)}")
    return matrix


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

    return torch.from_numpy(np.loadtxt(io.StringIO(read_text(path)), delimiter=",", ndmin=2, dtype=np.float32))


READERS = {".safetensors": _read_safetensors, ".npy": _read_npy, ".csv": _read_csv}


def read_tree(path: Path | str, class_names: Sequence[str] | None = None) -> Hierarchy:
    """Read a tree file, in which classes hang below paths of groups.

    A line is `class: path/of/groups`; a class is one of class_names, or its label. `#` starts a comment.
    With `cat: animal/pet`, `dog: animal/pet`, `cow: animal/farm`, `car: vehicle`: cat and dog have depth 3 and a common
    ancestor of depth 2 (pet), cat and cow one of depth 1, cat and car one of depth 0.
    """
    groups: dict[int, list[str]] = {}
    numbers = {name: label for label, name in enumerate(class_names or ())}
    for count, line in enumerate(read_text(path).splitlines(), 1):
        line = line.partition("#")[0].strip()
        if not line:
            continue
        # A class name may contain a colon, a path does not.
        name, colon, tree_path = (part.strip() for part in line.rpartition(":"))
        label = numbers.get(name, int(name) if name.isdecimal() else -1)
        if not colon or label < 0:
            raise UsageError(f"{path}, line {count}: expected `class: path/of/groups` with a known class, got {line!r}")
        if "\\" in tree_path:
            raise UsageError(f"{path}, line {count}: expected groups divided by /, got \\ in {tree_path!r}")
        if label in groups:
            raise UsageError(f"{path}, line {count}: class {name!r} comes twice")
        groups[label] = [part.strip() for part in tree_path.split("/") if part.strip()]
    expected = len(class_names) if class_names is not None else max(groups, default=-1) + 1
    missing = sorted(set(range(expected)) - set(groups))
    if missing or len(groups) != expected or not groups:
        raise UsageError(f"{path}: expected a line for every class from 0 to {expected - 1}, missing: {missing[:5]}")
    common = torch.tensor([[float(_shared(groups[a], groups[b])) for b in range(expected)] for a in range(expected)])
    depth = torch.tensor([1.0 + len(groups[a]) for a in range(expected)])
    return Hierarchy((depth.view(-1, 1) + depth - 2 * common).fill_diagonal_(0), common)


def _shared(first: list[str], second: list[str]) -> int:
    """Length of the common prefix."""
    for depth, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return depth
    return min(len(first), len(second))


def read_wordnet(ids: Sequence[str], folder: Path | str) -> Hierarchy:
    """Hypernyms of WordNet 3.0 as a hierarchy, for ids such as n01440764 in label order.

    folder contains data.noun (Debian: wordnet-base). A class is its own hypernym, and may have several ways up: steps
    are those of the shortest way between two classes, depth is the length of the longest path from the root (entity:
    0), and of the hypernyms that two classes share the deepest counts.
    """
    hypernyms = read_hypernyms(Path(folder) / "data.noun")
    unknown = [name for name in ids if name[:1] != "n" or not name[1:].isdecimal() or int(name[1:]) not in hypernyms]
    if unknown:
        raise UsageError(f"expected WordNet 3.0 nouns such as n01440764, got {unknown[0]!r} ({len(unknown)} unknown)")
    depths: dict[int, int] = {}
    below: dict[int, dict[int, int]] = {}  # synset -> label of a class below it -> steps
    for label, name in enumerate(ids):
        for synset, steps in _ways_up(int(name[1:]), hypernyms).items():
            below.setdefault(synset, {})[label] = steps
    common = torch.zeros(len(ids), len(ids))
    shortest = torch.full_like(common, torch.inf)
    for synset in sorted(below, key=lambda s: _depth(s, hypernyms, depths)):
        labels, up = torch.tensor(list(below[synset])), torch.tensor(list(below[synset].values()), dtype=common.dtype)
        here = labels.view(-1, 1), labels
        common[here] = float(depths[synset])  # the deepest is written last
        shortest[here] = torch.minimum(shortest[here], up.view(-1, 1) + up)
    return Hierarchy(shortest, common)


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


def _ways_up(synset: int, hypernyms: dict[int, list[int]]) -> dict[int, int]:
    """Each hypernym, near or far, and the steps of the shortest way up to it; itself included, 0 steps away."""
    found, waiting = {synset: 0}, [synset]
    for one in waiting:  # grows: breadth first, so that the first way to a synset is a shortest one
        new = [parent for parent in dict.fromkeys(hypernyms[one]) if parent not in found]
        found.update(dict.fromkeys(new, found[one] + 1))
        waiting.extend(new)
    return found


def _depth(synset: int, hypernyms: dict[int, list[int]], known: dict[int, int]) -> int:
    """Length of the longest path up to a root; `known` caches the depths."""
    if synset not in known:
        known[synset] = max((1 + _depth(parent, hypernyms, known) for parent in hypernyms[synset]), default=0)
    return known[synset]


HIERARCHIES: dict[str, Callable[[str, Sequence[str]], Hierarchy]] = {
    "tree": read_tree,
    "wordnet": lambda path, ids: read_wordnet(ids, Path(path).parent),
}
