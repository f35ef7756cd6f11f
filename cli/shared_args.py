"""Flags that are not part of what a run is: who runs it, where, and how it is shown."""

from __future__ import annotations

from dataclasses import dataclass

from foundations.settings import Hparams, in_range, setting


@dataclass(frozen=True)
class SharedArgs(Hparams):
    """Shared by all runners."""

    seed: int = setting(0, "Seed of everything random, together with the replicate numbers.", check=in_range(0))
    threat_replicate: int = setting(1, "Which repetition of compute_threat.", check=in_range(1))
    train_threat_replicate: int = setting(
        0, "The one that training used, where evaluation uses another (0: the same).", check=in_range(0)
    )
    evaluate_replicate: int = setting(1, "Which repetition of evaluate_threat.", check=in_range(1))
    train_replicate: int = setting(1, "Which repetition of train.", check=in_range(1))
    test_replicate: int = setting(1, "Which repetition of test.", check=in_range(1))
    device: str = setting("auto", "auto (a GPU if there is one), cpu, cuda or cuda:<n>.", hashed=False)
    num_workers: int = setting(0, "Processes that read data.", check=in_range(0), hashed=False)
    hang_minutes: float = setting(
        30.0,
        "With several processes: one that makes no progress for this long ends the run (0: never).",
        check=in_range(0),
        hashed=False,
    )
    root_dir: str = setting("", "Where everything is written (else NONISOTROPIC_HOME, else output/).", hashed=False)
    quiet: bool = setting(False, "No progress bars or notices.", hashed=False)
    display_output_location: bool = setting(False, "Print the run's directory and do nothing else.", hashed=False)
    debug: bool = setting(False, "Show a traceback with an error.", hashed=False)


@dataclass(frozen=True)
class TestArgs(Hparams):
    """Naming the model under test by its directory instead of its training flags."""

    __test__ = False  # not a test case, whatever pytest reads into the name

    train_dir: str = setting("", "Directory of the train run to test.", hashed=False)


@dataclass(frozen=True)
class ToggleHparams(Hparams):
    """Options of training to vary: each doubles the number of runs."""

    toggle_N_aug: bool = setting(False, "Vary --N_aug.")
    toggle_mixup: bool = setting(False, "Vary --mixup.")
    toggle_adv_train: bool = setting(False, "Vary --adv_train.")
    toggle_N_adv_train: bool = setting(False, "Vary --N_adv_train.", alias="toggle_N_adv")


@dataclass(frozen=True)
class MultiArgs(Hparams):
    """Looking before running."""

    dry_run: bool = setting(False, "Print the runs with their directories, and run none.", hashed=False)


# Flags of single runners beside those of their descriptions.
EXTRA_ARGS: dict[str, list[type[Hparams]]] = {
    "test": [TestArgs],
    "evaluate_threat": [TestArgs],
    "multi_train": [ToggleHparams, MultiArgs],
    "multi_test": [ToggleHparams, MultiArgs],
}
