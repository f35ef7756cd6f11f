"""Nonisotropic: measure, attack and train image classifiers under nonisotropic threats.

The entry of the command line, and what is public in Python (docs/api.md):

    import nonisotropic

    anchors = nonisotropic.AnchorSet(train_images, train_labels)
    threat = nonisotropic.ProjectedDisplacement(anchors=anchors)
    nonisotropic.robust_accuracy(model, images, labels, threat, threshold=0.1, radius=8 / 255)

A name is imported when it is first used. In a checkout this is a module beside our packages, in an installed wheel the
package that holds them.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

HERE = str(Path(__file__).resolve().parent)
IN_CHECKOUT = "__path__" not in globals()
if IN_CHECKOUT:
    # Third-party packages are also called `datasets`, `models` and `training`: this project's folder must come first.
    sys.path[:] = [HERE, *(path for path in sys.path if path != HERE)]

from foundations.deprecation import DEPRECATED, warn_once  # noqa: E402
from foundations.lazy import load_object  # noqa: E402
from foundations.program import VERSION  # noqa: E402

if TYPE_CHECKING:
    from datasets.registry import load_dataset
    from foundations.errors import NonisotropicError, RunError, UsageError
    from models.robustbench import import_robustbench
    from testing.attack import Attack, attack
    from testing.coverage import threshold_at_coverage
    from testing.robust_accuracy import RobustAccuracy, RobustnessWarning, robust_accuracy
    from threat_specification.base import BoundThreat, Measure, Threat
    from threat_specification.intersection import Intersection
    from threat_specification.measuring import evaluate_threat_of
    from threat_specification.norms import L2, Linf
    from threat_specification.projected_displacement.anchors import AnchorSet
    from threat_specification.projected_displacement.threat import ProjectedDisplacement
    from threat_specification.safe_moves.changes import safe_changes
    from training.any_loop import TrainingAdversary

__version__ = VERSION
__all__ = [
    "L2",
    "AnchorSet",
    "Attack",
    "BoundThreat",
    "Intersection",
    "Linf",
    "Measure",
    "NonisotropicError",
    "ProjectedDisplacement",
    "RobustAccuracy",
    "RobustnessWarning",
    "RunError",
    "Threat",
    "TrainingAdversary",
    "UsageError",
    "attack",
    "evaluate_threat_of",
    "import_robustbench",
    "load_dataset",
    "main",
    "robust_accuracy",
    "safe_changes",
    "threshold_at_coverage",
]

_PLACES = {
    "AnchorSet": "threat_specification.projected_displacement.anchors:AnchorSet",
    "Attack": "testing.attack:Attack",
    "BoundThreat": "threat_specification.base:BoundThreat",
    "Intersection": "threat_specification.intersection:Intersection",
    "L2": "threat_specification.norms:L2",
    "Linf": "threat_specification.norms:Linf",
    "Measure": "threat_specification.base:Measure",
    "NonisotropicError": "foundations.errors:NonisotropicError",
    "ProjectedDisplacement": "threat_specification.projected_displacement.threat:ProjectedDisplacement",
    "RobustAccuracy": "testing.robust_accuracy:RobustAccuracy",
    "RobustnessWarning": "testing.robust_accuracy:RobustnessWarning",
    "RunError": "foundations.errors:RunError",
    "Threat": "threat_specification.base:Threat",
    "TrainingAdversary": "training.any_loop:TrainingAdversary",
    "UsageError": "foundations.errors:UsageError",
    "attack": "testing.attack:attack",
    "evaluate_threat_of": "threat_specification.measuring:evaluate_threat_of",
    "import_robustbench": "models.robustbench:import_robustbench",
    "load_dataset": "datasets.registry:load_dataset",
    "robust_accuracy": "testing.robust_accuracy:robust_accuracy",
    "safe_changes": "threat_specification.safe_moves.changes:safe_changes",
    "threshold_at_coverage": "testing.coverage:threshold_at_coverage",
}


if not TYPE_CHECKING:  # else every name would be there for a type checker

    def __getattr__(name: str) -> Any:
        if name in DEPRECATED:
            return getattr(sys.modules[__name__], warn_once(name).instead)
        if name not in _PLACES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = globals()[name] = load_object(_PLACES[name])
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def main() -> int:
    """Run the command line of `cli/main.py`."""
    import datasets

    where = getattr(datasets, "__file__", None)
    if IN_CHECKOUT and (where is None or not where.startswith(HERE)):
        print(
            f"nonisotropic: expected the package 'datasets' of {HERE}, got {where}; start nonisotropic.py itself, "
            "in a process that has not imported another package of this name",
            file=sys.stderr,
        )
        return 1
    from cli.main import main as command_line

    return command_line()


if __name__ == "__main__":
    sys.exit(main())
