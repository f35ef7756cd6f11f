"""Hyperparameters of download_pretrained. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass

from foundations.data_hparams import the_path
from foundations.settings import Hparams, in_range, one_of, setting


@dataclass(frozen=True)
class DownloadHparams(Hparams):
    """Which weights are fetched, and from where."""

    threat_model: str = setting(
        "Linf", "The part of the zoo: Linf, L2 or corruptions.", check=one_of("Linf", "L2", "corruptions")
    )
    names: str = setting("", "Models by name, comma-separated (default: a short selection).", hashed=False)
    all: bool = setting(False, "All models of the zoo for this data set and threat model.", hashed=False)
    list: bool = setting(False, "List the models with their published accuracies, and fetch nothing.", hashed=False)
    verify: bool = setting(False, "Compare what is there with the checksums recorded, and fetch nothing.", hashed=False)
    source_dir: str = setting(
        "", "Take the files from this folder instead of the internet.", path_in=the_path, hashed=False
    )
    mirror: str = setting(
        "", "Fetch from URL/<data set>/<threat model>/<name>.pt instead of Google Drive.", hashed=False
    )
    parallel: int = setting(2, "Files fetched at the same time.", check=in_range(1, 16), hashed=False)
