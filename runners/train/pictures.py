"""The picture of a train run that shows what it is trained on."""

from __future__ import annotations

from pathlib import Path

from datasets.info import DatasetInfo
from runners.plots import Column, write_strip
from training.augmentation import NonisotropicAugmentation
from training.batch import Batch
from training.loop import Trainer

SHOWN = 6  # images in augmentation.png


def write_augmentation(path: Path, trainer: Trainer, info: DatasetInfo, *, is_primary: bool) -> None:
    """Draw images of the first batch as training sees them, and what N_aug makes of them; nothing without N_aug.

    Whether these still show their class must be judged by eye. Processes that divide the anchors compute it together;
    the first one writes it.
    """
    augment = trainer.objective.additions
    if not isinstance(augment, NonisotropicAugmentation):
        return
    batch = Batch(next(iter(trainer.batches.epoch(0))), slice(0, SHOWN), trainer.move, trainer.change)
    names = [info.title(int(label)) for label in batch.labels]
    parts = augment.parts(batch, 0)
    if not is_primary:
        return
    titles = ("as trained on", "another image,\nprojected", "noise,\nprojected")
    pictures = [batch.images, *(part.images for part in parts)]
    write_strip(path, [Column(title, images.cpu(), names) for title, images in zip(titles, pictures, strict=True)])
