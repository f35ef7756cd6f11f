"""Claims: their file has one form, their merging depends on no order, and points survive rounding inside the set."""

from __future__ import annotations

import itertools
import json
import random
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.numpy import load
from torch import Tensor, nn

from foundations.errors import RunError, UsageError
from foundations.input_hparams import ThreatHparams
from testing.claims import archive, schema, tensors
from testing.claims.archive import Refused
from testing.claims.claim import ITSELF, STANDING, Claim, merged, settled
from testing.claims.digests import images_digest, weights_digest
from testing.claims.judging import Batch, Judge, cell_of, described, key, threat_of
from testing.claims.rounding import onto_grid
from tests.tampering import DAMAGE, EDITS, Change
from threat_specification import AnchorSet

SHAPE, CLASSES, N = (1, 3, 4), 3, 12
LINF = {"name": "Linf"}
PD = {
    "name": "PD",
    "weighted": False,
    "segmented": False,
    "mask_source": "",
    "segmented_norm": "full",
    "background": "frozen",
    "tangents": "",
    "tangent_weight": 0.0,
}


def facts_of(**facts: object) -> dict[str, object]:
    return facts


def told_by(author: str, sets: int) -> dict[str, object]:
    """A run of which nothing is told."""
    nothing = {"reported": [None] * sets, "lost": [0] * sets, "certified": [None] * sets}
    return facts_of(author=author, command="c", software={}, **nothing, corruptions=None, passes=None, seconds=1.0)


def some_claim(author: str, seed: int, sets: int = 2) -> Claim:
    """A claim that nobody checks, with a few random points and clean errors."""
    draw = numpy.random.default_rng(seed)
    witness = numpy.full((sets, N), STANDING, "int32")
    owner, delta = [], []
    for row in range(N):
        kind = draw.choice(["standing", "itself", "point", "two points"], p=[0.3, 0.1, 0.4, 0.2])
        if kind == "itself":
            witness[:, row] = ITSELF
        for place in range(sets):
            if kind == "two points" or (kind == "point" and place == 0):
                owner.append(row)
                delta.append(draw.integers(-2, 3, SHAPE))
            witness[place, row] = len(owner) if "point" in kind else witness[place, row]
    facts = {
        "format": schema.FORMAT,
        "version": schema.FORMAT_VERSION,
        "authors": [author],
        "model": facts_of(name="m", description={}, kind="file", directory="", obtain=author, sha256="0" * 64),
        "data": facts_of(description={}, split="test", examples=N, shape=list(SHAPE), classes=CLASSES, sha256="1" * 64),
        "anchors": None,
        "claims": [{"threat": LINF, "threshold": (1 + n) / 255, "radius": None} for n in range(sets)],
        "points": {},
        "runs": [told_by(author, sets)],
    }
    arrays = {
        "index": numpy.arange(N) * 2,
        "label": numpy.arange(N) % CLASSES,
        "witness": witness,
        "owner": numpy.array(owner, "int32"),
        "delta": numpy.array(delta, "int16").reshape(-1, *SHAPE),
        "found_by": (witness != STANDING).astype("uint8")[..., None],
    }
    return merged([settled(Claim(facts, arrays))])


def test_a_file_is_read_as_it_was_written_and_other_tools_read_it_too(tmp_path: Path) -> None:
    claim = some_claim("a", 0)
    file = claim.to_bytes()
    (tmp_path / "claim.zip").write_bytes(file)
    again = Claim.read(tmp_path / "claim.zip")
    assert again.facts == claim.facts and again.to_bytes() == file and again.digest == claim.digest
    with zipfile.ZipFile(tmp_path / "claim.zip") as opened:
        assert opened.testzip() is None and tuple(opened.namelist()) == archive.NAMES
        facts, arrays = json.loads(opened.read("claim.json")), load(opened.read("points.safetensors"))
    assert facts == claim.facts and arrays.keys() == claim.arrays.keys()
    assert all(numpy.array_equal(arrays[name], claim.arrays[name]) for name in arrays)
    kinds = schema.kinds_of(facts)
    assert {name: (str(array.dtype), array.shape) for name, array in arrays.items()} == dict(kinds)
    assert tensors.size_of(kinds) == len(tensors.to_bytes(arrays))


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("change", [*DAMAGE, *EDITS], ids=lambda change: change.__name__)
def test_a_tampered_file_is_refused(change: Change) -> None:
    file = some_claim("a", 0).to_bytes()
    for seed in range(10):
        with pytest.raises(Refused, match=r"^[^\n]+$"):
            Claim.from_bytes(change(file, random.Random(seed)))


def test_merging_keeps_the_smallest_and_all_who_found_something() -> None:
    a, b = some_claim("a", 1), some_claim("b", 2)
    both = merged([a, b])
    assert both.facts["authors"] == ["a", "b"] and len(both.facts["runs"]) == 2
    for place in range(2):
        assert numpy.array_equal(both.broken(place), a.broken(place) | b.broken(place))
        assert numpy.array_equal(both.arrays["found_by"][place].T > 0, [a.broken(place), b.broken(place)])
        figures = [each.facts["claims"][place]["accuracy"] for each in (a, b, both)]
        assert figures[2] <= min(figures[:2])
        for row in range(N):
            known = [change for each in (a, b) if (change := witness_of(each, place, row)) is not None]
            kept = witness_of(both, place, row)
            assert (kept is None) == (not known)
            assert kept is None or numpy.abs(kept).sum() == min(numpy.abs(change).sum() for change in known)


def witness_of(claim: Claim, place: int, row: int) -> numpy.ndarray | None:
    """The change that breaks an example; None if it stands."""
    witness = claim.arrays["witness"][place, row]
    if witness == STANDING:
        return None
    return numpy.zeros(SHAPE, int) if witness == ITSELF else claim.arrays["delta"][witness - 1].astype(int)


def test_merging_knows_no_order_no_brackets_and_no_repetition() -> None:
    claims = [some_claim(author, seed) for author, seed in (("a", 1), ("b", 2), ("c", 3), ("a", 4))]
    whole = merged(claims).to_bytes()
    for order in itertools.permutations(claims):
        assert merged(order).to_bytes() == whole
    one, two, three, four = claims
    assert merged([merged([one, two]), merged([three, four])]).to_bytes() == whole
    assert merged([merged([merged([four, two]), one]), three, two]).to_bytes() == whole
    assert merged([merged(claims), two, merged(claims)]).to_bytes() == whole


def test_merging_keeps_every_name_of_a_model_in_any_order() -> None:
    """The alphabet chose: a true claim took the name of a false one."""
    claims = [some_claim(author, seed) for author, seed in (("a", 1), ("b", 2), ("c", 3))]
    for claim, name in zip(claims, ("conv", "AAA", "conv / a b"), strict=True):
        claim.facts["model"] |= {"name": name, "directory": "" if name == "AAA" else "runs/x/train/y/replicate_1"}
    whole = merged(claims)
    assert whole.facts["model"]["name"] == "AAA / a b / conv" and merged([whole]).to_bytes() == whole.to_bytes()
    for one, two, three in itertools.permutations(claims):
        assert merged([merged([one, two]), three]).to_bytes() == whole.to_bytes()
    claims[0].facts["model"]["name"] = "x" * schema.MOST_TEXT
    with pytest.raises(UsageError, match="expected names of the model of at most 20,000 characters together"):
        merged(claims)


def test_equal_weights_in_another_network_are_not_merged() -> None:
    one, two = some_claim("a", 1), some_claim("b", 2)
    one.facts["model"]["description"] = {"model_name": "timm:efficientnet_lite0"}
    two.facts["model"]["description"] = {"model_name": "timm:tf_efficientnet_lite0"}
    told = "same network, got timm:efficientnet_lite0 and timm:tf_efficientnet_lite0;"
    with pytest.raises(UsageError, match=told):
        merged([one, two])
    two.facts["model"]["description"] = {**one.facts["model"]["description"], "model_type": "pretrained"}
    assert merged([one, two]).facts["authors"] == ["a", "b"]


@pytest.mark.parametrize("name", ["weights", "images", "sets"])
def test_claims_about_different_things_are_not_merged(name: str) -> None:
    one, two = some_claim("a", 1), some_claim("b", 2, sets=1 if name == "sets" else 2)
    if name != "sets":
        two.facts[{"weights": "model", "images": "data"}[name]]["sha256"] = "2" * 64
    with pytest.raises(UsageError, match=f"expected claims about the same {name}"):
        merged([one, two])


@pytest.mark.parametrize(("name", "told"), [("index", "rows"), ("label", "labels")])
def test_claims_that_call_other_rows_by_the_same_digest_are_not_merged(name: str, told: str) -> None:
    """Only `verify` compares digests with images: else the first of two files would decide which rows both mean."""
    one, two = some_claim("a", 1), some_claim("b", 2)
    two.arrays[name] = two.arrays[name] + 1 if name == "index" else (two.arrays[name] + 1) % CLASSES
    two = Claim.from_bytes(settled(two).to_bytes())
    for order in ([one, two], [two, one]):
        with pytest.raises(UsageError, match=f"expected claims about the same {told}"):
            merged(order)


@pytest.mark.parametrize(("name", "told"), [("anchor_image", "anchors themselves"), ("class_weights", "class weights")])
def test_claims_with_other_anchors_or_weights_are_not_merged(name: str, told: str) -> None:
    one, two = some_claim("a", 1), some_claim("b", 2)
    one.arrays[name] = numpy.zeros((2, 3), "uint8")
    for other in (one.arrays[name] + 1, None):  # others, and none
        two.arrays.pop(name, None)
        two.arrays.update({} if other is None else {name: other})
        for order in ([one, two], [two, one]):
            with pytest.raises(UsageError, match=f"expected claims about the same {told}"):
                merged(order)


def test_anchors_in_the_file_are_those_that_it_tells() -> None:
    """Else whoever ranks it beside honest claims of the same digest shows figures of a larger set."""
    claim = some_claim("a", 1)
    images, labels = numpy.arange(24, dtype="uint8").reshape(2, *SHAPE), numpy.arange(2)
    digest = images_digest(torch.from_numpy(images).__getitem__, torch.arange(2), torch.from_numpy(labels))
    claim.facts["anchors"] = {"count": 2, "by": "image", "sha256": digest}
    for name, moved in ((None, None), ("anchor_image", images[::-1].copy()), ("anchor_label", labels[::-1].copy())):
        claim.arrays.update({"anchor_image": images, "anchor_label": labels})
        if name is None:
            assert Claim.from_bytes(merged([settled(claim)]).to_bytes()).facts["anchors"]["sha256"] == digest
            continue
        claim.arrays[name] = moved
        with pytest.raises(Refused, match=f"it tells anchors of SHA-256 {digest[:12]}, and those in it have "):
            Claim.from_bytes(merged([settled(claim)]).to_bytes())


def test_a_member_makes_no_more_bytes_than_it_says() -> None:
    zeros = archive.Member.of(bytes(2**24))
    assert len(zeros.payload) < 2**16
    with pytest.raises(Refused, match="expected at most 1,000"):
        zeros.content(1000)
    with pytest.raises(Refused, match="its length or its checksum"):
        archive.Member(zeros.payload, zeros.crc, 1000).content(1000)


def test_large_changes_take_two_bytes_and_small_ones_one() -> None:
    claim = some_claim("a", 1)
    assert claim.arrays["delta"].dtype == numpy.int8
    claim.arrays["delta"] = claim.arrays["delta"].astype("int16") * 100
    large = merged([settled(claim)])
    assert large.facts["points"]["dtype"] == "int16" and int(numpy.abs(large.arrays["delta"]).max()) == 200
    assert Claim.from_bytes(large.to_bytes()).facts == large.facts


def linear(seed: int = 0) -> nn.Module:
    """A network without a favourite class."""
    torch.manual_seed(seed)
    layer = nn.Linear(12, CLASSES)
    layer.bias.data = -layer.weight.data.sum(1) / 2
    return nn.Sequential(nn.Flatten(), layer)


def towards_others(batch: Batch) -> Tensor:
    """The signs of the straight way to the likeliest other class."""
    weight = batch.model[1].weight.detach()
    with torch.no_grad():
        others = batch.model(batch.images).scatter(1, batch.labels.view(-1, 1), -torch.inf).argmax(1)
    return (weight[others] - weight[batch.labels]).view_as(batch.images).sign()


def batch_of(model: nn.Module, images: Tensor, form: dict, anchors: AnchorSet | None = None) -> Batch:
    labels = model(images.float() / 255).argmax(1)
    return Batch(images, labels, torch.arange(len(images)), model, {key(form): threat_of(form, anchors, None)})


@pytest.mark.parametrize("form", [LINF, {"name": "L2"}, PD], ids=lambda form: form["name"])
def test_rounded_points_are_bytes_in_the_set_and_misclassified(form: dict) -> None:
    """Far over the decision border, so that nothing is lost; the set is measured in float64."""
    generator = torch.Generator().manual_seed(0)
    images = (torch.rand((40, *SHAPE), generator=generator) * 255).byte()
    anchors = AnchorSet((torch.rand((9, *SHAPE), generator=generator) * 255).byte(), torch.arange(9) % CLASSES)
    model = linear()
    batch = batch_of(model, images, form, anchors)
    threshold, radius = {"Linf": (0.35, None), "L2": (1.0, None), "PD": (0.8, 0.51)}[form["name"]]
    cell = cell_of({"threshold": threshold, "radius": radius})
    bound = batch.bound(key(form))
    lower, upper = bound.bounds((-batch.images).clamp_min(-cell.radius), (1 - batch.images).clamp_max(cell.radius))
    points = batch.images + bound.project(towards_others(batch), threshold, lower, upper)
    broken = batch_answers(model, points) != batch.labels
    delta, kept = onto_grid(batch, points, key(form), cell)
    assert int(broken.sum()) >= 10 and int((broken & ~kept).sum()) <= 2
    exact, steps = batch.bytes.double() / 255, delta.double() / 255
    assert bool(((exact + steps >= 0) & (exact + steps <= 1)).all())
    assert bool((batch_answers(model, (exact + steps).float()) != batch.labels)[kept].all())
    size = {
        "Linf": lambda: steps.abs().flatten(1).amax(1),
        "L2": lambda: steps.flatten(1).norm(dim=1),
        "PD": lambda: displacement(exact, batch.labels, steps, anchors),
    }[form["name"]]()
    assert bool((size <= threshold * (1 + 1e-6) + 1e-9).all())
    assert radius is None or float(steps.abs().max()) <= radius


def displacement(x: Tensor, labels: Tensor, delta: Tensor, anchors: AnchorSet) -> Tensor:
    """PD by its definition, in float64."""
    away = (anchors.images.double() / 255).unsqueeze(0) - x.unsqueeze(1)
    values = (away * delta.unsqueeze(1)).flatten(2).sum(2) / (0.5 * away.flatten(2).square().sum(2))
    return values.masked_fill(anchors.labels == labels.view(-1, 1), 0).amax(1).clamp_min(0)


def batch_answers(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return model(images).argmax(1)


def test_points_near_the_border_of_a_ball_are_repaired() -> None:
    """A ball of 10.6 steps, and points at its corner: the nearest rounding, 11 steps, is outside of it."""
    generator = torch.Generator().manual_seed(1)
    images = (torch.rand((60, *SHAPE), generator=generator) * 200 + 25).byte()
    model = linear(3)
    batch = batch_of(model, images, LINF)
    points = batch.images + towards_others(batch) * 10.6 / 255
    delta, kept = onto_grid(batch, points, key(LINF), cell_of({"threshold": 10.6 / 255, "radius": None}))
    assert int(kept.sum()) >= 5 and int(delta.abs().max()) == 10


def test_the_judge_names_what_is_false() -> None:
    """One image is right without change, one point leaves the set, one is moved out of the pixels."""
    images = torch.full((4, 1, 1, 1), 100, dtype=torch.uint8)

    class Bright(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([0.5 - x.flatten(), x.flatten() - 0.5], 1)

    claim = some_claim("a", 0, sets=1)
    facts = {**claim.facts, "data": {**claim.facts["data"], "examples": 4, "shape": [1, 1, 1], "classes": 2}}
    facts["claims"] = [{"threat": LINF, "threshold": 0.2, "radius": None}]
    arrays = {
        "index": numpy.arange(4) + 50,
        "label": numpy.zeros(4, "int64"),
        "witness": numpy.array([[ITSELF, 1, 2, 3]], "int32"),
        "owner": numpy.array([1, 2, 3], "int32"),
        "delta": numpy.array([40, 60, 200], "int16").reshape(3, 1, 1, 1),
        "found_by": numpy.ones((1, 4, 1), "uint8"),
    }
    index = torch.arange(4) + 50
    judge = Judge(Bright(), images.__getitem__, torch.zeros(4).long(), index, {key(LINF): threat_of(LINF, None, None)})
    (verdict,) = judge.verdicts(settled(Claim(facts, arrays)))
    assert not verdict.holds
    assert verdict.sentence().startswith(
        "accuracy at most 0.0000 in Linf <= 0.2: 4 of 4 images broken, but 3 are not: "
    )
    assert "image 50 is classified right, by a margin of 0.216; image 52 lies outside the set" in verdict.sentence()
    arrays["witness"] = numpy.array([[STANDING, 1, STANDING, STANDING]], "int32")
    (verdict,) = judge.verdicts(settled(Claim(facts, arrays)))
    assert verdict.holds and "1 of 4 images broken, all inside the set, 0 doubtful" in verdict.sentence()


def test_digests_tell_weights_and_images_apart() -> None:
    one, two = linear(0), linear(0)
    assert weights_digest(one) == weights_digest(two) != weights_digest(linear(1))
    two.register_buffer("more", torch.zeros(1, dtype=torch.bfloat16))
    assert weights_digest(two) != weights_digest(one)
    anchors = AnchorSet(torch.randint(0, 255, (7, 1, 2, 2), dtype=torch.uint8), torch.arange(7))
    digest = images_digest(anchors.images.__getitem__, torch.arange(7), anchors.labels)
    assert digest.startswith(anchors.digest) and ThreatHparams().per_label == 50


def test_a_file_that_is_not_there_or_empty(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read .*none.zip: No such file"):
        Claim.read(tmp_path / "none.zip")
    for content in (b"", b"PK", random.Random(0).randbytes(500)):
        (tmp_path / "claim.zip").write_bytes(content)
        with pytest.raises(RunError, match=r"claim.zip is refused: its last 64 characters"):
            Claim.read(tmp_path / "claim.zip")


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (lambda facts: facts.update(authors=[str(n) for n in range(1001)]), "authors: expected at most 1,000"),
        (lambda facts: facts.update(runs=facts["runs"] * 1001), "runs: expected at most 1,000"),
        (lambda facts: facts["data"].update(examples=2**22), "examples times sets"),
        (lambda facts: facts["points"].update(count=1 + N * 2), "no more points than that"),
        (lambda facts: facts["data"].update(shape=[2**31 - 1] * 4000), r"expected \[C,H,W\], got 4,000 numbers"),
    ],
)
def test_a_file_cannot_ask_for_more_work_than_its_images_need(edit: Callable[[dict], None], told: str) -> None:
    facts = json.loads(schema.canonical_json(some_claim("A", 0).facts))
    schema.parse(schema.canonical_json(facts))
    edit(facts)
    with pytest.raises(Refused, match=told):
        schema.parse(schema.canonical_json(facts))


def test_a_set_is_described_with_what_makes_it_larger() -> None:
    def words(**form: object) -> str:
        return described({"threat": PD | form, "threshold": 0.1, "radius": 0.3})

    assert words() == "PD <= 0.1, Linf <= 0.3" and words(segmented=True) == "PD-S <= 0.1, Linf <= 0.3"
    assert words(segmented=True, background="free") == "PD-S <= 0.1, Linf <= 0.3 (background free)"
    assert words(tangents="blur", tangent_weight=0.01).endswith("(tangents blur of weight 0.01)")
