"""Flags shared by several runners: seed, device, processes, folders and display; toggles of the multi_* runners."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from foundations.hparam_fields import Hparams, in_range, setting


@dataclass(frozen=True)
class SharedArgs(Hparams):
    """Flags that all runners accept."""

    heading: ClassVar[str] = "Every run"

    seed: int = setting(0, "Seed of everything random, together with the replicate numbers.", check=in_range(0))
    device: str = setting(
        "auto",
        "Where to compute: auto (NONISOTROPIC_DEVICE, else a GPU if there is one), cpu, cuda or cuda:<n>.",
        hashed=False,
        shows="DEVICE",
    )
    num_workers: int = setting(
        -1,
        "Worker processes that decode image files in training (0: none; -1: on a GPU one for each core, up to 8, and "
        "else none).",
        check=in_range(-1),
        hashed=False,
    )
    hang_minutes: float = setting(
        30.0,
        "With several processes: end the run if one makes no progress for this many minutes (0: never).",
        check=in_range(0),
        hashed=False,
    )
    config: str = setting(
        "",
        "A TOML file of flags (docs/runs.md); flags of the command line win; may be given several times.",
        hashed=False,
        shows="FILE",
    )
    root_dir: str = setting(
        "", "Where everything is written (else NONISOTROPIC_HOME, else output/).", hashed=False, shows="PATH"
    )
    quiet: bool = setting(False, "No progress bars or notices.", hashed=False)
    display_output_location: bool = setting(False, "Print the run's directory and do nothing else.", hashed=False)
    debug: bool = setting(False, "Show a traceback with an error.", hashed=False)

    def beside(self) -> dict[str, Any]:
        """The flags that differ from their default and say how a run is run, not which, nor where it is written."""
        names = ("device", "num_workers", "hang_minutes", "quiet")
        return {name: value for name in names if (value := getattr(self, name)) != getattr(SharedArgs, name)}


@dataclass(frozen=True)
class ToggleHparams(Hparams):
    """Training options to vary; each one doubles the number of runs."""

    heading: ClassVar[str] = "Toggles"

    toggle_N_aug: bool = setting(False, "Run with and without --N_aug.")
    toggle_mixup: bool = setting(False, "Run with and without --mixup.")
    toggle_adv_train: bool = setting(False, "Run with and without --adv_train.")
    toggle_N_adv_train: bool = setting(False, "Run with and without --N_adv_train.", alias="toggle_N_adv")
    toggle_certified_train: bool = setting(False, "Run with and without --certified_train.")
