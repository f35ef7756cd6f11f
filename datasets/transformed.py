"""A data set as DatasetHparams change it: fewer training images, or some with random labels. Tests stay as they are."""

from __future__ import annotations

import dataclasses

from datasets.base import Dataset
from datasets.sampling import stratified_subset, with_random_labels
from foundations.desc import derive_seed
from foundations.hparams import DatasetHparams


def transformed(data: Dataset, dataset: DatasetHparams) -> Dataset:
    """The data set with its training split subsampled, then relabelled."""
    train = data.train
    if dataset.subsample_fraction < 1:
        size = max(1, round(dataset.subsample_fraction * len(train)))
        train = train.subset(stratified_subset(train.labels, size, derive_seed(dataset.data_seed, 1, "subsample")))
    if dataset.random_labels_fraction > 0:
        seed = derive_seed(dataset.data_seed, 1, "labels")
        train = train.relabelled(
            with_random_labels(train.labels, dataset.random_labels_fraction, data.info.num_classes, seed)
        )
    return data if train is data.train else dataclasses.replace(data, train=train)
