"""Pairs of images, before and after a change, and the class that people see in the second: one .npz file.

| array | type | content |
|---|---|---|
| clean, changed | uint8 [n, C, H, W] | the images before and after |
| label | integers [n] | the class before, from 0 |
| people | integers [n] | the class that people see after; -1: none, or they do not agree |
| certain | bool [n], optional | pairs to use: others are left out |
| group | text [n], optional | pairs that are compared apart too, such as those of equal l-inf size |
| change | text [n], optional | what the change is |
| catch | integers [n], optional | of a study: the class that everybody must see (a trial of attention), else -1 |
| classes | text [K], optional | of a study: the names of the classes |

Pairs with equal clean images are pairs of one image: a bootstrap draws them together.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy

from foundations.errors import UsageError, nearest
from foundations.files import write_npz

Array = numpy.ndarray

NOBODY = -1  # people see no class, or do not agree
INTEGERS = ("label", "people", "catch")
TEXTS = ("group", "change", "classes")
MOST_GROUPS = 20  # columns of a table
NAMES = ("clean", "changed", "certain", *INTEGERS, *TEXTS)


@dataclass(frozen=True)
class HumanPairs:
    """The arrays of such a file, as in the table above; `people` is None if the answers are in other files."""

    clean: Array
    changed: Array
    label: Array
    people: Array | None
    certain: Array
    group: Array
    change: Array
    catch: Array
    classes: Array | None

    def __len__(self) -> int:
        return len(self.label)

    @property
    def study(self) -> str:
        """The digest of what people are shown and asked: 12 hex digits that their answers name."""
        state = hashlib.sha256(str(self.clean.shape).encode())
        for values in (self.clean, self.changed, self.label.astype("<i8"), self.catch.astype("<i8")):
            state.update(numpy.ascontiguousarray(values).tobytes())
        return state.hexdigest()[:12]

    def images(self) -> Array:
        """[n] the number of each pair's clean image: equal images have equal numbers."""
        flat = self.clean.reshape(len(self), -1)
        return numpy.unique(flat, axis=0, return_inverse=True)[1].reshape(-1)

    def rows(self, chosen: Array, people: Array | None = None) -> HumanPairs:
        """Some of the pairs; with other answers [n] if given."""
        people = self.people if people is None else people
        kept = {name: getattr(self, name)[chosen] for name in NAMES if name not in ("people", "classes")}
        return HumanPairs(**kept, people=None if people is None else people[chosen], classes=self.classes)


def read_pairs(
    path: Path | str,
    shape: tuple[int, int, int] | None = None,
    num_classes: int = 0,
    needs_people: bool = True,
    names: Sequence[Sequence[str]] = (),
) -> HumanPairs:
    """Read and check such a file; raises UsageError with one line for what does not fit.

    shape, num_classes   what the data set has, if it is known
    needs_people         whether the file has to hold the answers
    names                the num_classes names of the data set's classes, in each form that a study may show
    """
    arrays = _arrays(path)
    unknown = next((name for name in arrays if name not in NAMES), None)
    if unknown is not None:
        raise _wrong(path, f"arrays among {', '.join(NAMES)}", f"{unknown}{nearest(unknown, list(NAMES))}")
    needed = ("clean", "changed", "label", *(["people"] if needs_people else []))
    if missing := [name for name in needed if name not in arrays]:
        hint = "; give the folder that holds the answers (*.csv) too" if missing == ["people"] else ""
        raise _wrong(path, f"the arrays {', '.join(needed)}", f"no {missing[0]}{hint}")
    count = len(arrays["label"]) if arrays["label"].ndim else 0
    if not count:
        raise _wrong(path, "label: a class for each pair", f"shape {list(arrays['label'].shape)}")
    _check_images(path, arrays, count, shape)
    for name in INTEGERS:
        if name in arrays:
            _check_classes(path, name, arrays[name], count, num_classes)
    for name in TEXTS:
        if name in arrays and (arrays[name].dtype.kind != "U" or arrays[name].ndim != 1):
            raise _wrong(path, f"{name}: texts", _form(arrays[name]))
    if "certain" in arrays and arrays["certain"].dtype != bool:
        raise _wrong(path, "certain: true or false for each pair (bool)", _form(arrays["certain"]))
    for name in ("certain", "group", "change"):
        if name in arrays and arrays[name].shape != (count,):
            raise _wrong(path, f"{name}: one entry for each of {count} pairs", f"shape {list(arrays[name].shape)}")
    if "group" in arrays and (many := len(numpy.unique(arrays["group"]))) > MOST_GROUPS:
        raise _wrong(path, f"group: at most {MOST_GROUPS} different texts", str(many))
    if num_classes and "classes" in arrays and len(arrays["classes"]) != num_classes:
        raise _wrong(path, f"classes: {num_classes} names, as the data set has", str(len(arrays["classes"])))
    if names and "classes" in arrays:
        _check_names(path, arrays["classes"].tolist(), names)
    integers = {name: arrays[name].astype(numpy.int64) for name in INTEGERS if name in arrays}
    return HumanPairs(
        arrays["clean"],
        arrays["changed"],
        integers["label"],
        integers.get("people"),
        arrays.get("certain", numpy.ones(count, bool)),
        arrays.get("group", numpy.full(count, "")),
        arrays.get("change", numpy.full(count, "")),
        integers.get("catch", numpy.full(count, NOBODY)),
        arrays.get("classes"),
    )


def write_pairs(path: Path, pairs: HumanPairs) -> None:
    """Write such a file; equal pairs give equal bytes."""
    write_npz(path, {name: value for name in NAMES if (value := getattr(pairs, name)) is not None})


def _arrays(path: Path | str) -> dict[str, Array]:
    try:
        with open(path, "rb") as file:
            content = numpy.load(file, allow_pickle=False)
            if isinstance(content, numpy.ndarray):
                raise UsageError(f"--human: {path}: expected an .npz file of several arrays, got a single one (.npy)")
            return dict(content)
    except OSError as error:
        raise UsageError(f"--human: cannot read {path}: {error.strerror or error}") from error
    except (ValueError, EOFError, KeyError, MemoryError, zipfile.BadZipFile, NotImplementedError) as error:
        if isinstance(error, UsageError):
            raise
        # NumPy takes whatever it does not know for a pickle.
        reason = (
            "another kind of file"
            if "pickled" in str(error) and not zipfile.is_zipfile(path)
            else (" ".join(str(error).split()) or "damaged").split(" Set allow_pickle")[0]
        )
        raise UsageError(f"--human: {path}: expected an .npz file without pickles, got: {reason}") from error


def _check_images(path: Path | str, arrays: dict[str, Array], count: int, shape: tuple[int, ...] | None) -> None:
    sides = list(shape) if shape else ["C", "H", "W"]
    expected = f"uint8 {[count, *sides]}".replace("'", "")
    for name in ("clean", "changed"):
        images = arrays[name]
        fits = images.dtype == numpy.uint8 and images.ndim == 4 and len(images) == count and images.size
        if not fits or (shape and images.shape[1:] != tuple(shape)):
            raise _wrong(path, f"{name}: {expected}", _form(images))
    if arrays["clean"].shape != arrays["changed"].shape:
        raise _wrong(path, "changed: the shape of clean", _form(arrays["changed"]))


def _check_classes(path: Path | str, name: str, values: Array, count: int, num_classes: int) -> None:
    if values.dtype.kind not in "iu" or values.shape != (count,):
        raise _wrong(path, f"{name}: {count} whole numbers", _form(values))
    lowest, highest = 0 if name == "label" else NOBODY, num_classes - 1 if num_classes else 2**31
    least, most = int(values.min()), int(values.max())
    if least < lowest or most > highest:
        raise _wrong(path, f"{name}: classes from {lowest} to {highest}", str(least if least < lowest else most))


def _check_names(path: Path | str, found: list[str], names: Sequence[Sequence[str]]) -> None:
    """Raise UsageError for a study of other classes: people saw these names, and answered with their numbers."""
    differing = [[n for n, pair in enumerate(zip(found, form, strict=True)) if pair[0] != pair[1]] for form in names]
    wrong, form = min(zip(differing, names, strict=True), key=lambda each: len(each[0]))  # the form that is meant
    if wrong:
        raise UsageError(
            f"--human: {path}: expected a study of the data set's classes, where class {wrong[0]} is "
            f"{form[wrong[0]]}, got one where it is {found[wrong[0]]}; give the data set that the study was made of"
        )


def _form(values: Array) -> str:
    return f"{values.dtype} {list(values.shape)}"


def _wrong(path: Path | str, expected: str, came: Any) -> UsageError:
    return UsageError(f"--human: {path}: expected {expected}, got {came}")
