"""Forms of the threat in one run: anchors are on the device once."""

from __future__ import annotations

import gc

import pytest
import torch

from cli.main import runner_parser
from foundations.environment import Environment
from runners import inputs
from runners.compute_threat.desc import ThreatDesc
from tests.conftest import Command
from threat_specification import AnchorSet, ProjectedDisplacement
from threat_specification.projected_displacement.anchor_matrix import AnchorMatrix


def test_all_forms_of_a_run_use_one_matrix(digits_root: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """`evaluate_threat` made four copies of all anchors: too many for a GPU's memory at 50,000 of ImageNet."""
    made = []
    build = AnchorMatrix.__init__
    monkeypatch.setattr(
        AnchorMatrix, "__init__", lambda self, *words, **more: made.append(1) or build(self, *words, **more)
    )
    words = ["--dataset_name=digits", "--per_label=10"]
    desc = ThreatDesc.from_flags(runner_parser("compute_threat", words).parse(words))
    environment = Environment(root_dir=digits_root.root)
    forms = [
        inputs.read_threat(desc, environment, **form) for form in ({}, {"tangents": True}, {"projection": "scale"})
    ]
    assert len(made) == 1 and len({id(form.matrix) for form in forms}) == 1
    assert len({form.anchors.images.data_ptr() for form in forms if form.anchors}) == 1
    x = torch.rand(2, 1, 8, 8)
    alone = ProjectedDisplacement(anchors=AnchorSet(forms[0].anchors.images, forms[0].anchors.labels), tangents=True)
    labels = torch.tensor([3, 4])
    assert forms[1].evaluate(x, labels, 1 - x).equal(alone.evaluate(x, labels, 1 - x))
    del forms
    gc.collect()
    assert not inputs._IN_USE, "nothing is kept after the last form"


def test_threats_of_a_user_share_nothing() -> None:
    """They may be used in several threads, and a matrix has buffers."""
    anchors = AnchorSet(torch.rand(4, 1, 4, 4), torch.arange(4))
    one, two = (ProjectedDisplacement(anchors=anchors).prepare() for _ in range(2))
    assert one.matrix is not two.matrix
