"""The public names in Python: what importing them costs, their examples, and the page that tells of them."""

from __future__ import annotations

import ast
import doctest
import inspect
import math
import re
import subprocess
import sys
import warnings
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import nonisotropic
from cli.runner_registry import RUNNERS, desc_class
from foundations.errors import UsageError
from testing.robust_accuracy import RobustnessWarning, robust_accuracy
from threat_specification import L2, Intersection, Linf
from training.any_loop import TrainingAdversary

PROJECT = Path(__file__).resolve().parent.parent
PAGE = (PROJECT / "docs" / "api.md").read_text()
HEAVY = ("robustbench", "timm", "matplotlib", "sklearn", "scipy", "PIL", "pandas", "torchvision", "mlxtend", "requests")
METHODS = ("__init__", "__call__")
KNOWN = {"torch": torch, "nonisotropic": nonisotropic}  # to the examples of docstrings
EXCEPTIONS = {name for name in nonisotropic.__all__ if name.endswith(("Error", "Warning"))}


def test_importing_the_package_imports_nothing_else() -> None:
    code = "import nonisotropic, sys; dir(nonisotropic); sys.exit(bool({'torch', 'numpy'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT).returncode == 0


def test_the_core_imports_nothing_heavy() -> None:
    """All that is public, attacks and adversaries made, a threat measured."""
    code = f"""
import sys
import nonisotropic as ours
[getattr(ours, name) for name in ours.__all__ if name != "import_robustbench"]
import torch
image, label = torch.rand(1, 1, 4, 4), torch.tensor([0])
threat = ours.ProjectedDisplacement(anchors=ours.AnchorSet(torch.rand(2, 1, 4, 4), torch.tensor([0, 1])))
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))
ours.robust_accuracy(model, image, label, threat, 0.1, steps=2)
ours.TrainingAdversary(threat, 0.1)(model, image, label)
print(*[name for name in {HEAVY} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=PROJECT, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("\n", 0), done.stderr


def test_runners_import_what_is_heavy_when_it_is_used() -> None:
    """All but what draws: solvers, statistics, zoos and other people's data wait until a flag asks for them."""
    runners = [f"{desc_class(name).__module__.rpartition('.')[0]}.runner" for name in RUNNERS]
    code = f"""
import importlib, sys
[importlib.import_module(name) for name in {runners}]
names = {HEAVY} + ("scipy.optimize", "scipy.stats", "scipy.ndimage")
print(*sorted({{*names}} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=PROJECT, capture_output=True, text=True)
    assert done.stdout == "PIL matplotlib scipy\n", done.stderr  # scipy.sparse alone


def test_names_for_people_for_type_checkers_and_for_imports_are_the_same() -> None:
    (block,) = [node for node in ast.parse(inspect.getsource(nonisotropic)).body if isinstance(node, ast.If)
                and ast.unparse(node.test) == "TYPE_CHECKING"]  # fmt: skip
    for_checkers = {
        alias.name: f"{node.module}:{alias.name}"
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert for_checkers == nonisotropic._PLACES
    assert set(nonisotropic.__all__) == {*nonisotropic._PLACES, "main"} <= set(dir(nonisotropic))
    assert all(re.search(rf"`{name}\b", PAGE) for name in nonisotropic.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nobody'"):
        _ = nonisotropic.nobody


def test_what_is_public_is_typed() -> None:
    for name in nonisotropic.__all__:
        value = getattr(nonisotropic, name)
        if name in EXCEPTIONS or not (inspect.isfunction(value) or inspect.isclass(value)):
            continue
        for function in [value] if inspect.isfunction(value) else [vars(value).get(each) for each in METHODS]:
            if inspect.isfunction(function):
                hints, parameters = function.__annotations__, inspect.signature(function).parameters
                assert all(each in hints for each in parameters if each != "self"), (name, function)


@pytest.mark.parametrize("name", [name for name in nonisotropic.__all__ if name != "main" and name not in EXCEPTIONS])
def test_examples_of_docstrings(name: str) -> None:
    torch.manual_seed(0)
    value = getattr(nonisotropic, name)
    (found,) = doctest.DocTestFinder(recurse=False).find(value, name, globs=KNOWN)
    assert found.examples or name in ("BoundThreat", "Measure", "RobustAccuracy", "Threat")
    said: list[str] = []
    doctest.DocTestRunner().run(found, out=said.append)
    assert not said, "".join(said)


def test_the_page_runs_as_it_stands(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lightning = ModuleType("lightning")
    lightning.Callback = object  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lightning", lightning)
    torch.manual_seed(0)
    known: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RobustnessWarning)
        for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
            exec(compile(block, "docs/api.md", "exec"), known)
    sizes, robust, left = capsys.readouterr().out.splitlines()
    assert set(ast.literal_eval(sizes)) == {"PD", "L2", "Linf"} and 0 <= float(robust) <= 1 and left
    x, y = known["x"], known["y"]
    assert bool((known["threat"].evaluate(x, y, known["inside"]) <= 0.1 * (1 + 1e-5)).all())
    assert float((known["broken"] - x).abs().max()) <= 0.1 + 1e-6
    assert float((known["worst"] - known["colour"]).abs().max()) <= 4 / 255 + 1e-6

    # The loop of Lightning: the hook, then the training step with the same batch.
    batch = (x.clone(), y)
    known["callback"].on_train_batch_start(SimpleNamespace(), known["model"], batch, 0)
    assert float((batch[0] - x).abs().max()) > 0.05
    assert bool((known["threat"].evaluate(x, y, batch[0]) <= 0.1 * (1 + 1e-4)).all())


def linear() -> tuple[nn.Module, Tensor, Tensor]:
    """A linear model, whose strongest attack is known, and images of grey."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        model[1].weight.copy_(torch.randn(2, 16, generator=generator))
        model[1].bias.zero_()
    return model, torch.full((6, 1, 4, 4), 0.5), torch.tensor([0, 1, 0, 1, 0, 1])


def margin(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(model(images), labels, reduction="none")


def test_an_adversary_of_training_finds_the_strongest_change_of_a_linear_model() -> None:
    model, images, labels = linear()
    weight = model[1].weight.detach()
    away = (weight[1 - labels] - weight[labels]).reshape(images.shape)
    perturbed = TrainingAdversary(Linf(), 0.1, steps=20)(model, images, labels)
    assert torch.allclose(perturbed, images + 0.1 * away.sign(), atol=1e-6)
    perturbed = TrainingAdversary(L2(), 0.1, steps=40, reach=20, schedule="linear")(model, images, labels)
    nearest = images + 0.1 * away / away.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    assert torch.allclose(perturbed, nearest, atol=2e-3)


def test_an_adversary_leaves_the_model_as_it_was_and_starts_anew_at_each_call() -> None:
    model, images, labels = linear()
    model.train()
    adversary = TrainingAdversary(Linf(), 0.1, steps=1, reach=0.1)
    with torch.no_grad():  # as in some hooks
        first, second = adversary(model, images, labels), adversary(model, images, labels)
    assert not first.equal(second) and not first.requires_grad
    assert model.training and all(each.grad is None and each.requires_grad for each in model.parameters())
    assert TrainingAdversary(Linf(), 0.1, steps=1, reach=0.1)(model, images, labels).equal(first)
    assert not TrainingAdversary(Linf(), 0.1, steps=1, reach=0.1, seed=1)(model, images, labels).equal(first)
    assert bool(torch.isfinite(TrainingAdversary(L2(), 0.1, radius=math.inf)(model, images, labels)).all())


def test_steps_are_as_long_as_the_set_is_large() -> None:
    """A step more of a tenth of the radius, or of the l2 ball's usual change of a pixel."""
    model, images, labels = linear()
    for threat, threshold, radius, change in (
        (Linf(), 0.1, None, 0.1),
        (L2(), 0.4, None, 0.1),
        (L2(), 0.4, 0.05, 0.05),
        (Intersection([(L2(), 0.4)]), 1.0, 0.2, 0.1),
        (Intersection([(L2(), 0.4)]), 1.0, 0.05, 0.05),
        (Intersection([(Linf(), 0.1)]), 1.0, None, 0.1),
    ):
        near, far = (
            TrainingAdversary(threat, threshold, radius, steps=1, reach=reach)(model, images, labels)
            for reach in (0.01, 0.11)
        )
        step = (far - near).flatten(1).square().mean(1).sqrt()
        assert torch.allclose(step, torch.full_like(step, 0.1 * change), rtol=0.35), (threat.name, step)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [({"steps": 0}, "steps: expected"), ({"loss": "mse"}, "unknown loss"), ({"start": "far"}, "unknown start"),
     ({"threshold": -1.0}, "threshold: expected"), ({"schedule": "x"}, "unknown schedule")],
)  # fmt: skip
def test_an_adversary_says_what_there_is_not(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        TrainingAdversary(Linf(), **{"threshold": 0.1, **wrong})


def test_an_attack_is_what_robust_accuracy_found() -> None:
    model, images, labels = linear()
    for threshold in (0.001, 0.02, 0.3):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RobustnessWarning)
            found = robust_accuracy(model, images, labels, L2(), threshold, details=True, steps=10)
        assert not isinstance(found, float)
        worst = nonisotropic.attack(model, images, labels, L2(), threshold, steps=10)
        assert worst.equal(found.perturbed)
        assert (model(worst).argmax(1) == labels).equal(found.correct)
    with pytest.raises(UsageError, match="images: expected at least one"):
        nonisotropic.attack(model, images[:0], labels[:0], L2(), 0.1)


def test_threats_of_a_change_in_parts_and_by_a_function() -> None:
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.rand(501, 1, 2, 2, generator=generator), torch.zeros(501, dtype=torch.long)
    both = [L2(), Linf(), L2()]
    found = nonisotropic.evaluate_threat_of(images.square(), images, labels, both)
    change = (images.square() - images).flatten(1)
    assert list(found) == ["L2", "Linf", "L2 2"]
    assert torch.allclose(found["L2"], change.norm(dim=1)) and found["L2 2"].equal(found["L2"])
    assert torch.allclose(found["Linf"], change.abs().amax(1))
    by_function = nonisotropic.evaluate_threat_of(torch.square, images, labels, both)
    assert all(by_function[name].equal(values) for name, values in found.items())
    with pytest.raises(UsageError, match="change: expected images"):
        nonisotropic.evaluate_threat_of(images[:2], images, labels, L2())


def test_a_function_has_random_numbers_of_its_own_for_every_image() -> None:
    """Rows 0 and 250 had the same noise, since the function was called for parts of 250."""
    images, labels = torch.full((501, 1, 4, 4), 0.5), torch.zeros(501, dtype=torch.long)
    noise = lambda shown: nonisotropic.safe_changes(shown, "fine_noise")["fine_noise:3"]  # noqa: E731
    by_function = nonisotropic.evaluate_threat_of(noise, images, labels, L2())["L2"]
    assert by_function.equal(nonisotropic.evaluate_threat_of(noise(images), images, labels, L2())["L2"])
    assert len({float(by_function[row]) for row in (0, 250, 500)}) == 3
    assert not len(nonisotropic.evaluate_threat_of(noise, images[:0], labels[:0], L2())["L2"])
    with pytest.raises(UsageError, match="perturbed_examples: expected shape"):
        nonisotropic.evaluate_threat_of(lambda shown: shown[:250], images, labels, L2())


def test_changes_in_place_are_measured_against_the_images_before() -> None:
    images, labels = torch.full((3, 1, 4, 4), 0.5), torch.tensor([0, 1, 0])
    found = nonisotropic.evaluate_threat_of(lambda shown: shown.mul_(0.8), images, labels, Linf())
    assert found["Linf"].tolist() == pytest.approx([0.1] * 3) and bool((images == 0.5).all())


def test_bytes_are_refused_where_white_is_one() -> None:
    images, labels = torch.full((2, 1, 4, 4), 0.5), torch.tensor([0, 1])
    for bytes_ in ((images * 255).byte(), images.long()):
        with pytest.raises(UsageError, match=r"perturbed_examples: expected floats.*divide bytes by 255"):
            Linf().evaluate(images, labels, bytes_)
        with pytest.raises(UsageError, match="expected floats"):
            nonisotropic.evaluate_threat_of(bytes_, images, labels, nonisotropic.Linf())


def test_anchors_are_their_own() -> None:
    """Whoever changes images in place later, as normalisation does, changes no threat that was made of them."""
    images = torch.rand(4, 1, 4, 4)
    anchors = nonisotropic.AnchorSet(images, torch.arange(4) % 2)
    before = images.clone()
    images.mul_(0.5)
    assert torch.equal(anchors.images, before)
