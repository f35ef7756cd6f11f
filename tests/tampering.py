"""Changes of a claim's file that must all be refused: damage, edits sealed again, and false claims that fit themselves.

python tests/tampering.py CLAIM.zip COUNT [--flag=value ...]     verify so many; the flags name the model
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
import io
import random
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from foundations.errors import RunError
from testing.claims import archive, schema, tensors
from testing.claims.claim import ITSELF, STANDING, Claim, merged, settled
from testing.claims.digests import images_digest

Change = Callable[[bytes, random.Random], bytes]


def flip_a_bit(file: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(file))
    return file[:place] + bytes([file[place] ^ 1 << draw.randrange(8)]) + file[place + 1 :]


def cut(file: bytes, draw: random.Random) -> bytes:
    return file[: draw.randrange(len(file))]


def lengthen(file: bytes, draw: random.Random) -> bytes:
    return file + draw.randbytes(draw.randrange(1, 99))


def leave_bytes_out(file: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(file))
    return file[:place] + file[place + draw.randrange(1, 9) :]


def put_bytes_in(file: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(file))
    return file[:place] + draw.randbytes(draw.randrange(1, 9)) + file[place:]


def seal(body: bytes) -> bytes:
    """The file with its last digest made again."""
    return body[: -archive.DIGEST] + hashlib.sha256(body[: -archive.DIGEST]).hexdigest().encode()


def same_content(one: bytes, other: bytes) -> bool:
    """True if a file is intact and has the content of the other: zeros can be compressed in more than one way."""
    try:
        return Claim.from_bytes(one).digest == Claim.from_bytes(other).digest
    except RunError:
        return False


def sealed(change: Change) -> Change:
    def made(file: bytes, draw: random.Random) -> bytes:
        changed = seal(change(file, draw))
        return made(file, draw) if same_content(changed, file) else changed

    made.__name__ = f"{change.__name__}_and_seal"
    return made


def other_zip(*names: str) -> Change:
    """An ordinary zip file with these members, sealed in its comment."""

    def made(file: bytes, draw: random.Random) -> bytes:
        contents = dict(zip(archive.NAMES, (m.content(m.size) for m in archive.read(file)), strict=True))
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as written:
            for name in names:
                written.writestr(name, contents.get(name, b"x" * draw.randrange(99)))
            written.comment = b"0" * archive.DIGEST
        return seal(buffer.getvalue())

    made.__name__ = f"zip_of_{'_'.join(names)}"
    return made


def bomb(file: bytes, draw: random.Random) -> bytes:
    """Points of as many bytes as a header can say, which are nothing but zeros."""
    told = archive.Member.of(archive.read(file)[0].content(schema.MOST_JSON))
    zeros = archive.Member.of(bytes(2**22))
    return archive._joined([told, dataclasses.replace(zeros, size=draw.choice([2**22, 2**31, 2**32 - 1]))])


def edited_json(*path: str | int, value: object) -> Change:
    """claim.json with another value in a place; all else is as it was."""

    def made(file: bytes, draw: random.Random) -> bytes:
        told, points = (member.content(member.size) for member in archive.read(file))
        facts = schema.parse(told)
        place: object = facts
        for step in path[:-1]:
            place = place[step]  # type: ignore[index]
        place[path[-1]] = value  # type: ignore[index]
        return archive.write([schema.canonical_json(facts), points])

    made.__name__ = f"json_{'_'.join(map(str, path))}_{str(value)[:12]}"
    return made


def reordered_json(file: bytes, draw: random.Random) -> bytes:
    told, points = (member.content(member.size) for member in archive.read(file))
    return archive.write([told.replace(b'"version":2', b'"version": 2'), points])


def edited_array(name: str, by: int = 1) -> Change:
    """One number of an array changed, and no digest in claim.json made again."""

    def made(file: bytes, draw: random.Random) -> bytes:
        claim = Claim.from_bytes(file)
        arrays = {**claim.arrays, name: _changed(claim.arrays[name], by, draw)}
        return archive.write([schema.canonical_json(claim.facts), tensors.to_bytes(arrays)])

    made.__name__ = f"array_{name}"
    return made


def _changed(array: numpy.ndarray, by: int, draw: random.Random) -> numpy.ndarray:
    changed = array.copy().reshape(-1)
    changed[draw.randrange(len(changed))] += by
    return changed.reshape(array.shape)


def false_claim(change: Callable[[Claim, random.Random], None]) -> Change:
    """A false claim with all counts and digests made again: only images, threats and the model can refute it."""

    def made(file: bytes, draw: random.Random) -> bytes:
        claim = copy.deepcopy(Claim.from_bytes(file))
        change(claim, draw)
        return merged([settled(claim)]).to_bytes()

    made.__name__ = f"false_{change.__name__}"
    return made


def another_label(claim: Claim, draw: random.Random) -> None:
    label = claim.arrays["label"]
    row = draw.randrange(len(label))
    label[row] = (label[row] + 1) % claim.facts["data"]["classes"]


def another_image(claim: Claim, draw: random.Random) -> None:
    claim.arrays["index"][-1] += draw.randrange(1, 2**20)


def other_images(claim: Claim, draw: random.Random) -> None:
    claim.facts["data"]["sha256"] = f"{draw.getrandbits(256):064x}"


def other_weights(claim: Claim, draw: random.Random) -> None:
    claim.facts["model"]["sha256"] = f"{draw.getrandbits(256):064x}"


def other_anchors(claim: Claim, draw: random.Random) -> None:
    index = claim.arrays["anchor_index"]
    index[draw.randrange(len(index))] = draw.choice([0, 1, 2**40])


def no_anchors(claim: Claim, draw: random.Random) -> None:
    claim.facts["anchors"] = None
    del claim.arrays["anchor_index"]


def anchors_of_one_class(claim: Claim, draw: random.Random) -> None:
    """Then all changes of the images of this class have threat 0."""
    count = len(claim.arrays.pop("anchor_index"))
    images = numpy.zeros((count, *claim.facts["data"]["shape"]), "uint8")
    labels = numpy.full(count, claim.arrays["label"][0])
    claim.arrays.update({"anchor_image": images, "anchor_label": labels})
    digest = images_digest(torch.from_numpy(images).__getitem__, torch.arange(count), torch.from_numpy(labels))
    claim.facts["anchors"] = {"count": count, "by": "image", "sha256": digest}


def anchors_of_no_row(claim: Claim, draw: random.Random) -> None:
    claim.arrays["anchor_index"][draw.randrange(len(claim.arrays["anchor_index"]))] = -1 - draw.randrange(2**40)


def anchors_of_another_digest(claim: Claim, draw: random.Random) -> None:
    """Anchors as images, whose set is larger than that of the anchors that are told: hardly one bounds it."""
    count, shape = claim.facts["anchors"]["count"], claim.facts["data"]["shape"]
    del claim.arrays["anchor_index"]
    claim.facts["anchors"]["by"] = "image"
    claim.arrays["anchor_image"] = numpy.zeros((count, *shape), "uint8")
    claim.arrays["anchor_label"] = numpy.arange(count) % claim.facts["data"]["classes"]


def masks_of_nobody(claim: Claim, draw: random.Random) -> None:
    next(each for each in claim.facts["claims"] if each["threat"]["name"] == "PD")["threat"]["segmented"] = True


def tangents_of_nobody(claim: Claim, draw: random.Random) -> None:
    next(each for each in claim.facts["claims"] if each["threat"]["name"] == "PD")["threat"]["tangents"] = "nobodys"


def no_flags(claim: Claim, draw: random.Random) -> None:
    claim.facts["data"]["description"]["image_size"] = draw.choice(["large", -1, None, [1]])


def images_without_end(claim: Claim, draw: random.Random) -> None:
    claim.facts["data"]["description"] |= {"dataset_name": "synthetic", "synthetic_train": 2**40}


def smaller_set(claim: Claim, draw: random.Random) -> None:
    for each in claim.facts["claims"]:
        each["threshold"] = each["threshold"] * draw.uniform(0.1, 0.5)


def clean_images_as_broken(claim: Claim, draw: random.Random) -> None:
    witness, found_by = claim.arrays["witness"], claim.arrays["found_by"]
    standing = numpy.argwhere(witness == STANDING)
    place, row = standing[draw.randrange(len(standing))]
    witness[place, row], found_by[place, row] = ITSELF, 1


def changes_undone(claim: Claim, draw: random.Random) -> None:
    """Points that move one pixel alone, by one step."""
    delta = claim.arrays["delta"]
    delta[:] = 0
    delta.reshape(len(delta), -1)[:, draw.randrange(delta[0].size)] = 1


def larger_changes(claim: Claim, draw: random.Random) -> None:
    claim.arrays["delta"] = (claim.arrays["delta"].astype("int16") * draw.randrange(3, 9)).astype("int16")


def another_shape(claim: Claim, draw: random.Random) -> None:
    claim.facts["data"]["shape"] = [1, 4, claim.arrays["delta"][0].size // 4]
    claim.arrays["delta"] = claim.arrays["delta"].reshape(len(claim.arrays["delta"]), *claim.facts["data"]["shape"])


DAMAGE: list[Change] = [flip_a_bit, cut, lengthen, leave_bytes_out, put_bytes_in]
ARRAYS = ["index", "label", "witness", "owner", "delta", "found_by"]
EDITS: list[Change] = [
    *map(sealed, DAMAGE[:1] + DAMAGE[2:]),
    other_zip(*archive.NAMES),
    other_zip(*archive.NAMES, "more.txt"),
    other_zip(*archive.NAMES, archive.NAMES[0]),
    other_zip(archive.NAMES[0], "../points.safetensors"),
    other_zip("/etc/passwd", archive.NAMES[1]),
    bomb,
    reordered_json,
    edited_json("version", value=1),
    edited_json("version", value=True),
    edited_json("claims", 0, "accuracy", value=0.0),
    edited_json("claims", 0, "broken", value=10**400),
    edited_json("claims", value=[]),
    edited_json("data", "examples", value=2**31 - 1),
    edited_json("data", "shape", value=[2**15, 2**15, 2**15]),
    edited_json("points", "count", value=0),
    edited_json("points", "sha256", value="0" * 64),
    edited_json("model", "directory", value="runs/digits/train/../../../../replicate_1"),
    edited_json("model", "directory", value="/etc"),
    edited_json("model", "name", value="\x1b[2J"),
    edited_json("authors", value=["somebody else"]),
    edited_json("more", value=1),
    edited_json("runs", 0, "certified", value=[2.0]),
    edited_json("runs", 0, "corruptions", value={"accuracy": 1.5, "of": "C"}),
    edited_json("runs", 0, "seconds", value=-0.0),
    *(edited_array(name) for name in ARRAYS),
]
# Of a claim with a set of PD and anchors by their rows: content that no machine could verify.
CONTRADICTIONS: list[Change] = [
    false_claim(change)
    for change in (
        no_anchors,
        anchors_of_no_row,
        anchors_of_another_digest,
        anchors_of_one_class,
        masks_of_nobody,
        tangents_of_nobody,
    )
]
FALSE: list[Change] = [
    false_claim(change)
    for change in (
        another_label,
        another_image,
        other_images,
        other_weights,
        other_anchors,
        no_flags,
        images_without_end,
        smaller_set,
        clean_images_as_broken,
        changes_undone,
        larger_changes,
        another_shape,
    )
]


def main(claim: str, count: str, *flags: str) -> int:
    """Verify tampered files; returns the number of those that were not refused in one line."""
    from collections import Counter

    from cli.main import main as run

    file, told, wrong = Path(claim).read_bytes(), Counter(), 0
    if run(["verify", claim, "--quiet", *flags]):
        sys.exit("expected a claim that holds for the model at hand: else every change is refused for another reason")
    with tempfile.TemporaryDirectory() as folder:
        for number in range(int(count)):
            draw = random.Random(number)
            change = draw.choice([*DAMAGE, *EDITS, *CONTRADICTIONS, *FALSE])
            path = Path(folder) / f"{number}.zip"
            path.write_bytes(change(file, draw))
            output, errors = io.StringIO(), io.StringIO()
            with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
                code = run(["verify", str(path), "--quiet", *flags])
            line = errors.getvalue()
            refused = code in (1, 2) and line.count("\n") == 1 and not output.getvalue() and "unexpected" not in line
            told[change.__name__] += refused
            if not refused:
                wrong += 1
                print(f"{number} {change.__name__}: {code} {line}{output.getvalue()}")
    print(f"{int(count) - wrong} of {count} refused in one line; {len(told)} kinds of changes")
    return wrong


if __name__ == "__main__":
    sys.exit(bool(main(*sys.argv[1:])))
