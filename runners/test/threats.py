"""The threats of an evaluation: forms of PD over the anchors that its flags name."""

from __future__ import annotations

from typing import Any

from foundations.environment import Environment
from foundations.testing_hparams import TestingHparams
from runners.compute_threat.desc import ThreatDesc
from runners.inputs import read_threat
from runners.test import then_project
from runners.test.desc import forms_of
from threat_specification import ProjectedDisplacement
from threat_specification.registry import tangents_named

DEFAULTS = TestingHparams()


def of_flags(
    testing: TestingHparams, anchors: ThreatDesc, environment: Environment, weighted: bool
) -> ProjectedDisplacement:
    """The form of PD that the flags name, over these anchors."""
    form: dict[str, Any] = {"weighted": weighted, "segmented": testing.segmented}
    form |= {"background": testing.background}
    form |= {"tangents": testing.tangents, "tangent_weight": testing.tangent_weight}
    if testing.segmented:
        form |= _masks(testing)
    return read_threat(anchors, environment, projection=testing.projection, **form)


def projected_onto(
    testing: TestingHparams, anchors: ThreatDesc, environment: Environment
) -> dict[str, ProjectedDisplacement]:
    """The threats of --then_project by name, each in the form in which attacks inside the set have it, if they do."""
    names = forms_of(testing.then_project) if testing.adv_eval else []
    more: dict[str, dict[str, Any]] = {"pd_s": _masks(testing)}
    if testing.N_adv_eval and testing.segmented:
        more["pd_s"] |= {"background": testing.background}
    if testing.N_adv_eval and testing.tangents:
        more["pd_t"] = {"tangents": testing.tangents, "tangent_weight": testing.tangent_weight}
    return {
        name: read_threat(anchors, environment, **{**then_project.FORMS[name], **more.get(name, {})}) for name in names
    }


def _masks(testing: TestingHparams) -> dict[str, Any]:
    return {"mask_source": testing.mask_source, "segmented_norm": testing.segmented_norm}


def anchors_name(threat: ProjectedDisplacement, desc: ThreatDesc, testing: TestingHparams) -> str:
    """The name of the PD used: PD[k50,greedy_subsets,r1,<digest of the anchors>]."""
    assert threat.anchors is not None
    parts = [f"k{desc.threat.per_label}", desc.threat.selection, f"r{desc.replicate}", threat.anchors.digest]
    if threat.segmented:
        parts += [testing.mask_source.partition(":")[0], threat.background]
    if told := unusual(testing):
        parts.append(told)
    return f"{threat.name}[{','.join(parts)}]"


def unusual(testing: TestingHparams) -> str:
    """The options of the threat's form that are not as by default, in words: its name does not tell them."""
    told = []
    if testing.tangents and testing.tangents != tangents_named("tangents", "all"):
        told.append(testing.tangents.replace(",", "+"))
    if testing.tangents and testing.tangent_weight != DEFAULTS.tangent_weight:
        told.append(f"lambda {testing.tangent_weight:g}")
    if testing.segmented and testing.segmented_norm != DEFAULTS.segmented_norm:
        told.append(f"{testing.segmented_norm} norm")
    if testing.segmented and testing.background != DEFAULTS.background:
        told.append(f"background {testing.background}")
    return ", ".join(told)
