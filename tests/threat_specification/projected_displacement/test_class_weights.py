"""Class weights: files, hierarchies, calibration."""

import importlib.util
import itertools
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from foundations.errors import UsageError
from threat_specification import AnchorSet, ProjectedDisplacement
from threat_specification.projected_displacement.calibration import calibrate, pairs_of_classes, warn_below_one
from threat_specification.projected_displacement.class_weights import (
    FLOOR,
    FORMS,
    class_weights_from,
    load_class_weights,
    read_tree,
    read_wordnet,
)

WEIGHTS = torch.tensor([[0.0, 2.0, 3.0], [4.0, 0.0, 5.0], [6.0, 7.0, 0.0]])
WORDNET = Path(os.environ.get("WORDNET_DIR", "/usr/share/wordnet"))


def write(path, weights):
    if path.suffix == ".npy":
        np.save(path, np.asarray(weights))
    elif path.suffix == ".csv":
        np.savetxt(path, np.asarray(weights), delimiter=",")
    else:
        save_file({"class_weights": torch.as_tensor(weights)}, str(path))
    return path


@pytest.mark.parametrize("suffix", [".npy", ".csv", ".safetensors"])
def test_files(tmp_path, suffix):
    loaded = load_class_weights(write(tmp_path / f"w{suffix}", WEIGHTS), num_classes=3)
    assert loaded.dtype == torch.float32 and torch.equal(loaded, WEIGHTS)


@pytest.mark.parametrize("suffix", [".npy", ".csv", ".safetensors"])
@pytest.mark.parametrize(
    "weights,message",
    [
        (WEIGHTS[:2], "square"),
        (WEIGHTS - 3 * torch.eye(3)[[1, 2, 0]], "positive.*classes 0, 1"),
        (WEIGHTS * torch.tensor([1.0, 1.0, float("nan")]), "positive"),
        (WEIGHTS / torch.tensor([1.0, 0.0, 1.0]), "positive"),
        (WEIGHTS[:2, :2], "weights for 3 classes"),
    ],
)
def test_unfit_files_are_refused_by_name(tmp_path, suffix, weights, message):
    with pytest.raises(UsageError, match=message) as caught:
        load_class_weights(write(tmp_path / f"w{suffix}", weights.contiguous()), num_classes=3)
    assert str(tmp_path) in str(caught.value)


def test_unreadable_files(tmp_path):
    (tmp_path / "w.txt").write_text("1")
    np.save(tmp_path / "pickled.npy", np.array([{}], dtype=object), allow_pickle=True)
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    np.save(tmp_path / "promises.npy", np.ones((3, 3), np.float32))
    content = (tmp_path / "promises.npy").read_bytes()  # 4 EB in a file of 164 bytes
    (tmp_path / "promises.npy").write_bytes(
        content.replace(b"(3, 3), }" + 17 * b" ", b"(999999999, 999999999), }" + b" ")
    )
    save_file({"a": WEIGHTS, "b": WEIGHTS.clone()}, str(tmp_path / "two.safetensors"))
    for name, message in (
        ("w.txt", "unknown kind"),
        ("pickled.npy", "cannot read.*Python objects"),
        ("promises.npy", "cannot read"),
        ("broken.safetensors", "cannot read"),
        ("two.safetensors", "one tensor"),
        ("missing.csv", "cannot read"),
    ):
        with pytest.raises(UsageError, match=message):
            load_class_weights(tmp_path / name)


TREE = """
# animals and a vehicle
cat: animal/pet
dog: animal / pet   # spaces do not matter
cow: animal/farm

car: vehicle
"""


def test_hierarchy(tmp_path):
    path = tmp_path / "tree.txt"
    path.write_text(TREE)
    found = read_tree(path, ["car", "cat", "cow", "dog"])
    assert found.steps[0].tolist() == [0, 5, 5, 5]
    assert torch.equal(found.common, found.common.T)
    assert torch.equal(found.common[0, 1:], torch.zeros(3))
    assert (found.common[1, 3], found.common[1, 2], found.common[2, 3]) == (2, 1, 1)
    # Steps: cat to dog 2, to cow 4, to car 5 = 3 + 2 - 0, the largest.
    assert torch.allclose(found.distances()[1], torch.tensor([1.0, 0.0, 0.8, 0.4]))
    path.write_text("0: a/b\n1: a/b/c\n2: a\n")
    assert torch.equal(read_tree(path).common[0, 1:], torch.tensor([2.0, 1.0]))


def test_forms(tmp_path):
    """Distances are the paper's, similarities what earlier versions used, and the research code squares."""
    path = tmp_path / "tree.txt"
    path.write_text(TREE)
    made = {form: class_weights_from(f"tree:{path}", ["car", "cat", "cow", "dog"], form)[0] for form in FORMS}
    cat, others = 1, [0, 2, 3]  # car, cow, dog: nearer and nearer
    assert torch.allclose(made["distance"][cat, others], torch.tensor([1.0, 0.8, 0.4]))
    assert torch.equal(made["similarity"][cat, others], torch.tensor([1.0, 2.0, 3.0]))
    assert torch.allclose(made["published_code"][cat, others], 50 * (torch.tensor([1.0, 0.8, 0.4]) + 1e-4) ** 2)


def test_a_matrix_is_taken_as_it_is_and_what_is_odd_is_told(tmp_path):
    path = write(tmp_path / "w.npy", torch.tensor([[0.0, 0.0, 0.3], [0.2, 0.0, 1.5], [0.6, 0.7, 0.0]]))
    weights, notices = class_weights_from(str(path), ["a", "b", "c"])
    assert torch.allclose(weights[0, 1:], torch.tensor([FLOOR, 0.3]))
    assert [notice.split(":")[0] for notice in notices] == [
        "1 distances between classes are 0 and were set to 0.05",
        "distances between classes reach 1.5",
    ]
    with pytest.raises(UsageError, match=r"positive.*classes 0, 1"):
        class_weights_from(str(path), ["a", "b", "c"], "similarity")
    for names in (["a", "b"], ["a", "b", "c", "d"]):
        with pytest.raises(UsageError, match=f"expected weights for {len(names)} classes, got 3"):
            class_weights_from(str(path), names)


@pytest.mark.parametrize(
    "text,message",
    [
        ("cat: a\ncat: b\n", "twice"),
        ("cat: a\n", "missing"),
        ("cat: a\nhorse: b\n", "line 2"),
        ("cat a\n", "line 1"),
        ("", "missing"),
    ],
)
def test_unfit_trees(tmp_path, text, message):
    path = tmp_path / "tree.txt"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        read_tree(path, ["cat", "dog"])


def noun(offset, hypernyms, kind="@"):
    pointers = " ".join(f"{kind} {h:08d} n 0000" for h in hypernyms)
    count = len(hypernyms) + 1
    return f"{offset:08d} 05 n 02 word 0 other_word 0 {count:03d} {pointers} ~ 00000099 n 0000 | a gloss | of words\n"


@pytest.fixture
def small_wordnet(tmp_path):
    """entity 1 -> thing 2 -> animal 3 -> {dog 5, pet 4}; dog is a pet too; rex an instance of dog; car below thing."""
    lines = ["  1 licence text\n", noun(1, []), noun(2, [1]), noun(3, [2]), noun(4, [3]), noun(5, [3, 4])]
    lines += [noun(6, [4]), noun(7, [5], "@i"), noun(8, [2])]
    (tmp_path / "data.noun").write_text("".join(lines))
    return tmp_path


def test_small_wordnet(small_wordnet):
    dog, cat, rex, car = "n00000005", "n00000006", "n00000007", "n00000008"
    found = read_wordnet([dog, cat, rex, car], small_wordnet)
    assert found.common.diagonal().tolist() == [4, 4, 5, 2]  # by the longest way: entity, thing, animal, pet, dog
    assert found.common[0, 1] == 3  # pet, below entity, thing, animal
    assert found.common[0, 2] == 4  # dog itself
    assert found.common[0, 3] == found.common[1, 3] == 1  # thing
    assert torch.equal(found.common, found.common.T)
    # The shortest way: dog, animal, thing, car. It was the longest one, past pet.
    assert found.steps[0].tolist() == [0, 2, 1, 3] and found.steps[2].tolist() == [1, 3, 0, 4]
    assert torch.equal(found.distances(), found.steps / 4)
    with pytest.raises(UsageError, match="n00000042"):
        read_wordnet([dog, "n00000042"], small_wordnet)
    with pytest.raises(UsageError, match=r"data\.noun"):
        read_wordnet([dog], small_wordnet / "nowhere")


@pytest.mark.skipif(not (WORDNET / "data.noun").is_file(), reason="needs WordNet 3.0 (Debian: wordnet-base)")
def test_real_wordnet_knows_imagenet():
    timm = importlib.util.find_spec("timm")
    assert timm is not None and timm.origin is not None
    ids = (Path(timm.origin).parent / "data/_info/imagenet_synsets.txt").read_text().split()
    found = read_wordnet(ids, WORDNET)
    distances = found.distances()
    assert distances.shape == (1000, 1000) and torch.equal(distances, distances.T)
    tench, goldfish, shark = 0, 1, 2
    beagle, basset, minivan, mask, whippet = 162, 161, 656, 643, 172
    assert 0 < distances[beagle, basset] < distances[beagle, tench] < distances[beagle, minivan] <= 1
    assert distances[tench, goldfish] < distances[tench, shark]
    # By the longest ways up they were 21 and 24.
    assert (found.steps[mask, whippet], found.steps[beagle, minivan], found.steps.max()) == (9, 16, 26)


def test_threat_checks_its_weights():
    images = torch.rand(4, 1, 2, 2)
    anchors = AnchorSet(images, torch.tensor([0, 1, 2, 5]))
    for arguments, message in (
        ({"weighted": True}, "got none"),
        ({"class_weights": WEIGHTS}, "weighted=False"),
        ({"weighted": True, "class_weights": -WEIGHTS}, "positive"),
    ):
        with pytest.raises(UsageError, match=message):
            ProjectedDisplacement(anchors=anchors, **arguments)
    with pytest.raises(UsageError, match="anchors have labels 0 to 5, the weights cover 0 to 2"):
        ProjectedDisplacement(anchors=anchors, weighted=True, class_weights=WEIGHTS).prepare()
    threat = ProjectedDisplacement(anchors=AnchorSet(images[:3], torch.arange(3)), weighted=True, class_weights=WEIGHTS)
    assert torch.equal(threat.class_weights, WEIGHTS)
    with pytest.raises(UsageError, match="examples have labels"):
        threat.bind(images[:1], torch.tensor([3]))


def test_near_classes_are_more_of_a_threat_and_the_set_lies_inside_the_plain_one():
    """In float64: PD-W is at least PD for every change, and a move to the near class is the larger threat."""
    generator = torch.Generator().manual_seed(0)
    anchors = AnchorSet(torch.rand(2, 1, 4, 4, generator=generator), torch.tensor([1, 2]))
    x, y = torch.rand(1, 1, 4, 4, generator=generator), torch.tensor([0])
    weights = torch.tensor([[0.0, 0.2, 1.0], [0.2, 0.0, 1.0], [1.0, 1.0, 0.0]])  # 0 and 1 are near each other
    plain = ProjectedDisplacement(anchors=anchors)
    weighted = ProjectedDisplacement(anchors=anchors, weighted=True, class_weights=weights)
    bound = weighted.bind(x, y)
    half = [float(bound.displacements((0.5 * (image - x)).flatten(1))[0, j]) for j, image in enumerate(anchors.images)]
    assert half == pytest.approx([5.0, 1.0], rel=1e-6)
    changes = torch.randn(50, 1, 4, 4, generator=generator)
    one, other = (t.bind(x.expand(50, -1, -1, -1), y.expand(50)).evaluate(changes).double() for t in (plain, weighted))
    assert bool((other >= one * (1 - 1e-6)).all()) and bool((other > 1.5 * one).any())
    near = weighted.project(x, y, x + changes[:1], 0.1)
    assert float(plain.evaluate(x, y, near)) <= 0.1 * (1 + 1e-6)


def training_set(count=60):
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(count) % 3
    centres = torch.rand(3, 1, 5, 5, generator=generator)
    return (0.5 * centres[labels] + 0.5 * torch.rand(count, 1, 5, 5, generator=generator)), labels


def test_calibration_makes_the_medians_equal():
    images, labels = training_set()
    anchors = AnchorSet(images[:12], labels[:12])
    plain = ProjectedDisplacement(anchors=anchors)
    weights = 5 * WEIGHTS
    calibrated = calibrate(weights, plain, images, labels)
    ratio = calibrated[0, 1] / weights[0, 1]
    torch.testing.assert_close(calibrated, weights * ratio)
    assert abs(float(ratio) - 1) > 0.1
    weighted = ProjectedDisplacement(anchors=anchors, weighted=True, class_weights=calibrated)
    pairs = [(i, j) for i, j in itertools.permutations(range(60), 2) if labels[i] != labels[j]]
    first, second = torch.tensor(pairs).T
    medians = [t.evaluate(images[first], labels[first], images[second]).median() for t in (plain, weighted)]
    torch.testing.assert_close(medians[0], medians[1], rtol=0.02, atol=0)
    with pytest.raises(UsageError, match="two classes"):
        calibrate(weights, plain, images[:1], labels[:1])


def test_pairs_of_classes_are_drawn_from_all_of_them():
    """Images in the order of folders have few neighbours of different classes, and as many pairs as others."""
    labels = torch.arange(4).repeat_interleave(50)
    first, second = pairs_of_classes(labels, 150, seed=1)
    assert len(first) == len(second) == 150 and bool((labels[first] != labels[second]).all())
    assert len(set(zip(labels[first].tolist(), labels[second].tolist(), strict=True))) == 12
    assert torch.equal(first, pairs_of_classes(labels, 150, seed=1)[0])
    assert not torch.equal(first, pairs_of_classes(labels, 150, seed=2)[0])
    everything = set(zip(*(rows.tolist() for rows in pairs_of_classes(labels[::25], 1000)), strict=True))
    assert everything == {(i, j) for i, j in itertools.permutations(range(8), 2) if i // 2 != j // 2}
    assert [len(rows) for rows in pairs_of_classes(labels[:50])] == [0, 0]


def test_pairs_of_anchors_below_one():
    images, labels = training_set()
    anchors = AnchorSet(images[:12], labels[:12])
    weights = torch.tensor([[1.0, 2.2, 50.0], [1.7, 1.0, 9.0], [1.5, 0.1, 1.0]])
    threat = ProjectedDisplacement(anchors=anchors, weighted=True, class_weights=weights)
    below = [
        (i, j)
        for i, j in itertools.permutations(range(12), 2)
        if labels[i] != labels[j] and threat.evaluate(images[i : i + 1], labels[i : i + 1], images[j : j + 1]) < 1
    ]
    assert len(below) > 3
    different = [pair for pair in itertools.permutations(range(12), 2) if labels[pair[0]] != labels[pair[1]]]
    assert warn_below_one(threat) == (len(below), len(different))
    chosen = {0, 3, 6, 8, 11}  # 0, 2.75, 5.5 to even, 8.25, 11
    of_chosen = [len([pair for pair in pairs if set(pair) <= chosen]) for pairs in (below, different)]
    assert warn_below_one(threat, limit=5) == tuple(of_chosen)
    assert warn_below_one(ProjectedDisplacement(anchors=anchors)) == (0, 0)
