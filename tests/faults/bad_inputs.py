"""Bad inputs by kind: commands with a file or a flag that somebody damaged, edited or invented."""

from __future__ import annotations

import contextlib
import io
import json
import random
import shutil
import string
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cli.main import main
from cli.runner_registry import RUNNERS

DIGITS = ("--dataset_name=digits", "--per_label=10")
MODEL = (*DIGITS, "--model_name=conv", "--training_steps=3ep")
PAGE = b"<!DOCTYPE html><html><head><title>Sign in</title></head><body>Google Drive - Quota exceeded</body></html>"


@dataclass(frozen=True)
class Attempt:
    """A command, and whether it has to fail; some damage, such as another pixel, nobody can see."""

    words: tuple[str, ...]
    must_fail: bool


@dataclass(frozen=True)
class Outcome:
    """The end of an attempt."""

    code: int
    told: str
    left: list[str]

    def problem(self, attempt: Attempt) -> str:
        """The fault in the way it ended, "" for a clean error (or, where it may, a success)."""
        lines = [line for line in self.told.splitlines() if line.startswith("nonisotropic: ")]
        if self.code not in (0, 1, 2):
            return f"exit code {self.code}"
        if "Traceback" in self.told or "unexpected " in self.told:
            return "not a clean error"
        if self.code == 0:
            return "it succeeded" if attempt.must_fail else ""
        if len(lines) != 1 or len(self.told.splitlines()) > 3:
            return f"{len(lines)} lines"
        return f"left behind: {self.left}" if self.left else ""


def run(words: tuple[str, ...], root: Path) -> Outcome:
    """A command in this process, below a root."""
    told = io.StringIO()
    with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            code = main([*words, f"--root_dir={root}"] if words and words[0] in RUNNERS else list(words))
        except SystemExit as error:
            code = int(error.code or 0)
    return Outcome(code, told.getvalue(), [str(path.relative_to(root)) for path in root.rglob(".*")])


def make_base(root: Path) -> None:
    """Make the files that attempts damage: anchors, a model, a test, data files in the formats of published sets."""
    from PIL import Image

    from tests.datasets.written import write_cifar10, write_mnist

    for words in (
        ("compute_threat", *DIGITS),
        ("train", *MODEL),
        ("test", *MODEL, "--standard_eval", "--num_examples=50"),
    ):
        outcome = run((*words, "--quiet"), root)
        if outcome.code:
            raise RuntimeError(outcome.told)
    write_mnist(root / "data/mnist", compressed=False)
    write_cifar10(root / "data/cifar10")
    for split in ("train", "test"):
        for label in ("a", "b"):
            (root / "data/photos" / split / label).mkdir(parents=True)
            for number in range(3):
                Image.new("RGB", (9, 9), (80 * number, 200, 9)).save(
                    root / "data/photos" / split / label / f"{number}.png"
                )


def damaged(content: bytes, rng: random.Random) -> tuple[bytes, bool]:
    """A file as it may come, and whether everybody can see that it is not what it should be."""
    place = rng.randrange(max(1, len(content)))
    choices: list[Callable[[], tuple[bytes, bool]]] = [
        lambda: (b"", True),
        lambda: (PAGE, True),
        lambda: (rng.randbytes(rng.randrange(1, 300)), True),
        lambda: (content[: place // 2], True),
        lambda: (content[:place] + rng.randbytes(8) + content[place + 8 :], False),
        lambda: (content[:8] + b"\xff" * 8 + content[16:], False),
        lambda: (b"\xff" * 8 + content[8:], True),
        lambda: (content + rng.randbytes(100), False),
        lambda: (b"[" * 100_000, True),
        lambda: (b"\x80\x04cos\nsystem\n(S'exit 7'\ntR.", True),  # a pickle that runs a command
    ]
    return rng.choice(choices)()


def replaced(value: Any, rng: random.Random) -> Any:
    """Another JSON value in the place of one of those inside it."""
    if isinstance(value, dict) and value and rng.random() < 0.8:
        key = rng.choice(sorted(value))
        return {**value, key: replaced(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.5:
        place = rng.randrange(len(value))
        return [*value[:place], replaced(value[place], rng), *value[place + 1 :]]
    strange: list[Any] = [
        None,
        -1,
        1e300,
        10**40,
        "",
        "x" * 1000,
        "\u202e<script>alert(1)</script>",
        [],
        {},
        [[]],
        True,
    ]
    return rng.choice([item for item in strange if item != value])


def _file(root: Path, pattern: str, rng: random.Random) -> Path:
    return rng.choice(sorted(root.glob(pattern)))


def _damage(path: Path, rng: random.Random) -> bool:
    if path.suffix == ".json" and rng.random() < 0.6:
        path.write_text(json.dumps(replaced(json.loads(path.read_text()), rng)))
        return False
    content, visible = damaged(path.read_bytes(), rng)
    path.write_bytes(content)
    return visible


def _tensors(path: Path, rng: random.Random) -> None:
    """A safetensors file with other contents than promised, whose format is right."""
    import torch
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    name = rng.choice(sorted(tensors))
    value = tensors[name]
    changes: list[Callable[[], dict[str, torch.Tensor]]] = [
        lambda: {key: tensor for key, tensor in tensors.items() if key != name},
        lambda: {**tensors, name: value.flatten()[:-1].clone()},
        lambda: {**tensors, name: value.unsqueeze(0).contiguous()},
        lambda: {**tensors, name: torch.full(value.shape, torch.nan)},
        lambda: {**tensors, name: torch.full(value.shape, -7, dtype=torch.int64)},
        lambda: {**tensors, name: value[:0].clone() if value.ndim else value.view(1)[:0].clone()},
        dict,
    ]
    save_file(rng.choice(changes)(), path)


def anchors(root: Path, rng: random.Random) -> Attempt:
    path = _file(root, "runs/digits/compute_threat/*/*/anchors.safetensors", rng)
    words = ("train", *DIGITS, "--model_name=conv", "--training_steps=0it", "--N_adv_train")
    if rng.random() < 0.5:
        _tensors(path, rng)
        return Attempt(words, False)
    return Attempt(words, _damage(path, rng))


def weights(root: Path, rng: random.Random) -> Attempt:
    path = _file(root, "runs/digits/train/*/*/model.safetensors", rng)
    words = ("test", *MODEL, "--standard_eval")
    if rng.random() < 0.5:
        _tensors(path, rng)
        return Attempt(words, False)
    return Attempt(words, _damage(path, rng))


def run_files(root: Path, rng: random.Random) -> Attempt:
    """hparams.json and result.json of the runs that one reads."""
    path = _file(root, f"runs/digits/{rng.choice(['train', 'compute_threat'])}/*/*/*.json", rng)
    model = _file(root, "runs/digits/train/*/replicate_1", rng)
    visible = _damage(path, rng)
    words = ("test", *MODEL, "--N_adv_eval", "--attacks=l2_inscribed", "--N_attack_iter=1", "--num_examples=20")
    if "train" in path.parts:
        words = rng.choice([words, ("test", f"--train_dir={model}", "--standard_eval")])
    return Attempt(words, visible)


def finished_runs(root: Path, rng: random.Random) -> Attempt:
    """Everything that a report reads."""
    path = _file(root, f"runs/digits/{rng.choice(['train', 'test', 'compute_threat'])}/*/*/*.*", rng)
    _damage(path, rng)
    return Attempt(("report", "--dataset_name=digits"), False)


def class_weights(root: Path, rng: random.Random) -> Attempt:
    import numpy
    from safetensors.numpy import save_file

    kind, size = rng.choice(["csv", "npy", "safetensors", "tree.txt"]), rng.choice([0, 1, 9, 10, 11, 10])
    matrix = numpy.ones((size, rng.choice([size, size, 3])), rng.choice([numpy.float32, numpy.int64, bool]))
    if matrix.size and rng.random() < 0.7:
        matrix = matrix.astype(numpy.float32)
        matrix[0, -1] = rng.choice([0, -1, numpy.nan, numpy.inf])
    path = root / f"weights.{kind}"
    if kind == "csv":
        numpy.savetxt(path, matrix, delimiter=rng.choice([",", ";", "\t"]))
    elif kind == "npy":
        numpy.save(path, matrix)
    elif kind == "safetensors":
        save_file({rng.choice(["class_weights", "weights"]): matrix}, path)
    else:
        path.write_text("\n".join(f"{rng.randrange(12)}: {rng.choice(['a/b', '', '/', 'x', ':'])}" for _ in range(10)))
    if rng.random() < 0.4:
        path.write_bytes(damaged(path.read_bytes(), rng)[0])
    return Attempt(("compute_threat", "--dataset_name=digits", "--per_label=2", f"--class_weights={path}"), False)


def data_files(root: Path, rng: random.Random) -> Attempt:
    name, pattern, more = rng.choice(
        [
            ("mnist", "data/mnist/*", ("--own_files",)),
            ("cifar10", "data/cifar10/*", ("--own_files",)),
            ("image_folder", "data/photos/*/*/*.png", ("--image_size=8",)),
        ]
    )
    path = _file(root, pattern, rng)
    visible = _damage(path, rng) if rng.random() < 0.85 else path.unlink() or name != "image_folder"
    data = root / "data" / ("photos" if name == "image_folder" else name)
    words = (
        "train",
        f"--dataset_name={name}",
        f"--data_dir={data}",
        *more,
        "--model_name=conv",
        "--training_steps=1ep",
    )
    return Attempt((*words, "--batch_size=10"), bool(visible))


def checkpoint_files(root: Path, rng: random.Random) -> Attempt:
    """Weights from elsewhere."""
    import torch
    from safetensors.torch import load_file

    tensors = load_file(_file(root, "runs/digits/train/*/*/model.safetensors", rng))
    path = root / rng.choice(["given.pt", "given.pth", "given.safetensors"])
    if path.suffix == ".safetensors":
        shutil.copy(_file(root, "runs/digits/train/*/*/model.safetensors", rng), path)
    else:
        wrapped = rng.choice([tensors, {"state_dict": tensors}, {"model": 3}, [tensors], {"state_dict": [1]}, {}])
        torch.save(wrapped, path)
    if rng.random() < 0.7:
        path.write_bytes(damaged(path.read_bytes(), rng)[0])
    words = ("test", "--dataset_name=digits", "--model_name=conv", "--model_type=pretrained")
    return Attempt((*words, f"--model_source=file:{path}", "--standard_eval"), False)


def snapshots(root: Path, rng: random.Random) -> Attempt:
    """Checkpoints of a run that goes on: what cannot be read is left out."""
    for result in root.glob("runs/digits/train/*/*/result.json"):
        result.unlink()
    for path in root.glob("runs/digits/train/*/*/checkpoints/*/*"):
        if rng.random() < 0.7:
            _damage(path, rng)
    return Attempt(("train", *MODEL), False)


def command_line(root: Path, rng: random.Random) -> Attempt:
    """Words of all sorts; no directory may come of them."""
    from cli.main import runner_parser

    runner = rng.choice([*RUNNERS, "tset", "", "--help me", "../../etc"])
    if runner not in RUNNERS:
        return Attempt((runner, "--dataset_name=digits"), True)
    flags = [action.option_strings[0] for action in runner_parser(runner, ["--dataset_name=digits"])._actions]
    flags = [flag for flag in flags if flag not in ("-h", "--help", "--root_dir", "--debug")]
    text = "".join(rng.choices(string.printable, k=rng.randrange(1, 12)))
    strange = [
        "",
        "nan",
        "-inf",
        "1e999",
        "-1",
        "0",
        "1/0",
        "8/255",
        "9" * 400,
        "None",
        "true",
        "[]",
        "../..",
        "\x00",
        text,
    ]
    strange += ["é" * 50, "a,b,,c", "1e-400", "0x10", "--", "=", "digits"]
    words = [f"{rng.choice(flags)}={rng.choice(strange)}" for _ in range(rng.randrange(1, 4))]
    if rng.random() < 0.3:
        words.append(rng.choice(["--no_such_flag=1", "word", "-x", "--=", "--dataset_nam=digits"]))
    return Attempt((runner, "--dataset_name=digits", "--model_name=conv", "--display_output_location", *words), False)


KINDS: dict[str, Callable[[Path, random.Random], Attempt]] = {
    "command line": command_line,
    "anchors": anchors,
    "weights": weights,
    "hparams.json and result.json": run_files,
    "finished runs, in a report": finished_runs,
    "class weights": class_weights,
    "data files": data_files,
    "weights from elsewhere": checkpoint_files,
    "checkpoints": snapshots,
}


def attempts(kind: str, base: Path, seeds: range) -> tuple[Counter[str], list[str]]:
    """Ends of attempts of a kind, and what was wrong with those that did not end cleanly."""
    ends: Counter[str] = Counter()
    problems = []
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(shutil.copytree(base, Path(folder) / "root"))
            attempt = KINDS[kind](root, random.Random(f"{kind} {seed}"))
            outcome = run(attempt.words, root)
            problem = outcome.problem(attempt)
        ends["not clean" if problem else "clean error" if outcome.code else "no error (nothing to see)"] += 1
        if problem:
            problems.append(f"{kind}, seed {seed}: {problem}: {attempt.words}: {outcome.told[-400:]!r}")
    return ends, problems
