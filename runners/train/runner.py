"""The train runner: train a model."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from datasets.loader import ShuffledBatches
from datasets.registry import dataset_info
from datasets.sampling import complement, held_out
from foundations.desc import derive_seed
from foundations.errors import RunError, UsageError
from foundations.files import write_bytes
from foundations.hparams import TrainingHparams
from foundations.modes import evaluation_mode
from foundations.step import iterations
from models.initialize import keep_interval_widths
from models.normalize import Classifier, Normalize
from runners.base import Runner
from runners.coverage import Form
from runners.inputs import check_masks, read_data, read_initial_model, read_threat, watched, with_thresholds
from runners.trackers import Trackers
from runners.train.checkpoints import BestWeights, Resume
from runners.train.checks import check_flags, check_parts, notices
from runners.train.history import History
from runners.train.objectives import RobustValidation, adversaries_from, changes_from, moves_from, objective_from
from runners.train.pictures import write_augmentation
from testing.evaluations import CleanEvaluation
from testing.shards import Evaluation, Session, evaluate_in_shards
from threat_specification import Linf, Threat
from training.certified import IntervalLoss, read, worst_logits
from training.checkpoints import weights_of
from training.loop import Progress, Trainer, every_epoch
from training.network import (
    MixedPrecision,
    broadcast_buffers,
    distributed,
    has_idle_weights,
    moving_average,
    settle_buckets,
    size_of,
    unequal_buffers,
)
from training.objectives import Certify, uncertified
from training.optimizers import OPTIMIZERS
from training.random_states import seed_everything
from training.schedule import Schedule
from training.starts import LastPerturbations
from training.synchronised import synchronise
from training.weight_perturbation import AdversarialWeights, as_they_are

TEST_SHARD = 500  # images scored together during training
SETTLING = 2  # images with which DistributedDataParallel groups its gradients: as few as batch normalisation takes


class Train(Runner):
    """A runner that writes model.safetensors, metrics.jsonl, timing.jsonl, curves.png and checkpoints/.

    metrics.jsonl has one line per epoch. An interrupted run continues from its newest checkpoint, with bit-identical
    results.
    """

    def prepare(self) -> None:
        training, environment = self.desc.training, self.environment
        check_flags(training, environment)
        self.data = read_data(self.desc, environment)
        self.train_rows, self.validation_rows = self._split()
        self.batches = ShuffledBatches(
            self.data.train.to(environment.device),
            min(training.batch_size, len(self.train_rows)),
            self._seed("order"),
            environment.rank,
            environment.world_size,
            self.train_rows if len(self.validation_rows) else None,
            environment.num_workers,
        )
        self.test = self.data.test.to(environment.device)
        self.threat = self._threat_of_adversary()
        check_masks([self.threat] if self.threat else [], self.data.train, "training")
        self.adversaries = adversaries_from(
            self._with_thresholds(), self.batches.split, self.data.info, self.threat, self._seed("objective")
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed("weights"))
            self.network: Classifier = read_initial_model(self.desc, environment, self.data.info)
        if training.certified_train and training.certified_train_scaling:
            keep_interval_widths(self.network)
        image = self._first_images(1)
        self.network.check(image, self.data.info.num_classes)
        size, divides = self.batches.batch_size, self._divides_anchors
        together = "--shard_anchors" if divides else "--awp" if training.awp else ""
        check_parts(self.network, image, size, training.accumulation, environment, together)
        if environment.world_size > 1:
            synchronise(self.network, environment.device)
        self.average = moving_average(self.network, training.ema_decay) if training.ema_decay else None
        self.evaluated = self.network if self.average is None else self.average.module
        self.certify, self.worst = self._certified()
        self.history = History(self.directory, environment, self.batches.batch_size, self._trackers())
        self.best = BestWeights()

    def run(self) -> dict[str, Any]:
        trainer, history = self._trainer(), self.history
        self.trainer = trainer
        self.resume = Resume(self.directory, self.environment, self.desc.training, trainer, history, self.best)
        self.resume.networks = {"model": self.network} | ({"average": self.average} if self.average else {})
        self.last = {each.name: each.starts for each in self.adversaries if isinstance(each.starts, LastPerturbations)}
        self.resume.networks |= {f"last_{name}": perturbations for name, perturbations in self.last.items()}
        seed_everything(self._seed("global"), self.environment.rank)
        self.resume.restore()
        for told in notices(self.desc.training, trainer.schedule, self.batches):
            self.environment.log(told)
        primary = self.environment.is_primary
        if primary or self._divides_anchors:
            write_augmentation(self.directory / "augmentation.png", trainer, self.data.info, is_primary=primary)
        history.start(trainer.iteration, trainer.schedule.total, trainer.iteration % len(self.batches))
        with history.trackers.ended_by_errors():
            with self.environment.stop.deferred():
                trainer.run()
            history.finish()
            result = self._result()
        history.trackers.finish(result["final"])
        return result

    def _trackers(self) -> Trackers:
        names = [*self.desc.tracking.names, *(["tensorboard"] if self.desc.training.tensorboard else [])]
        return Trackers(list(dict.fromkeys(names)), self.desc, self.directory, self.environment)

    def _first_images(self, count: int) -> torch.Tensor:
        rows = torch.arange(count).to(self.data.train.labels.device)
        return self.data.train.pixels(rows).to(self.environment.device)

    @property
    def _divides_anchors(self) -> bool:
        """True if the objective needs anchors and they are divided over several processes."""
        divided = "anchors" in self.desc.needed_runs() and self.desc.anchors.threat.shard_anchors
        return divided and self.environment.world_size > 1

    def _split(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows to train on, and rows held out; the same ones for every replicate."""
        labels = self.data.train.labels
        rows = held_out(labels, self.desc.training.validation_fraction, self.desc.seed)
        if len(rows) == len(labels):
            raise UsageError(f"--validation_fraction: of {len(labels)} images it leaves none to train on; lower it")
        return complement(rows, len(labels)), rows

    def _with_thresholds(self) -> TrainingHparams:
        training = self.desc.training
        names = {"N_adv_train_threshold": Form.of_training(training).name} if training.N_adv_train else {}
        names |= {"adv_train_attack_power": training.adv_train_attack_norm} if training.adv_train else {}
        # Backgrounds and mixtures of safe changes have bounds of their own.
        whole = training.N_adv_train and not (training.N_train_segmented or training.N_train_safe_moves)
        radii = {"N_adv_train_threshold": training.N_adv_train_radius} if whole else {}
        return with_thresholds(training, self.desc.coverage, self.environment, "N_train_coverage", names, radii)

    def _threat_of_adversary(self) -> Threat | None:
        """The form of PD that bounds the nonisotropic adversary, l-inf if none does; None without such an adversary."""
        training = self.desc.training
        if not training.N_adv_train:
            return None
        if training.without_threat:
            return Linf()
        form: dict[str, Any] = {"weighted": training.N_train_weighted, "segmented": training.N_train_segmented}
        form |= {"tangents": training.N_train_tangents, "tangent_weight": training.N_train_tangent_weight}
        form["projection"] = training.N_adv_train_projection
        if training.N_train_segmented:
            form |= {"mask_source": training.N_train_mask_source, "background": training.N_train_background}
            form["segmented_norm"] = training.N_train_segmented_norm
        return read_threat(self.desc.anchors, self.environment, apart=True, **form)

    def _trainer(self) -> Trainer:
        training, augmentation, seed = self.desc.training, self.desc.augmentation, self._seed("augmentation")
        projection = augmentation.N_aug_projection
        anchors, environment = self.desc.anchors, self.environment
        plain = read_threat(anchors, environment, apart=True, projection=projection) if augmentation.N_aug else None
        num_classes = self.data.info.num_classes
        passes = MixedPrecision(self.network, training.precision, training.channels_last)
        return Trainer(
            model=self._distributed(watched(passes, self.environment)),
            optimizer=OPTIMIZERS[training.optimizer](
                self.network.parameters(),
                lr=training.peak_lr,
                weight_decay=training.weight_decay,
                momentum=training.momentum,
                nesterov=training.nesterov,
            ),
            batches=self.batches,
            objective=objective_from(
                self.desc, num_classes, self.adversaries, plain, self._seed("objective"), self.certify
            ),
            schedule=self._schedule(),
            peak_lr=training.peak_lr,
            world_size=self.environment.world_size,
            accumulation=training.accumulation,
            move=moves_from(augmentation, seed),
            change=changes_from(augmentation, seed),
            perturbation=AdversarialWeights(training.awp_gamma) if training.awp else as_they_are,
            clip_grad=training.clip_grad,
            scaler=torch.amp.GradScaler("cuda", enabled=training.precision == "fp16"),
            notice=self.environment.log,
            callbacks=(self._after_step, self.history.show, every_epoch(self._record), self._checkpoint),
        )

    def _seed(self, purpose: str) -> int:
        return derive_seed(self.desc.seed, self.desc.replicate, purpose)

    def _certified(self) -> tuple[Certify, Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None]:
        """The part of the loss that --certified_train adds, and the worst logits of the network that is evaluated."""
        training = self.desc.training
        if not training.certified_train:
            return uncertified, None
        radius, steps = training.certified_train_radius, training.certified_train_ramp * self._schedule().total
        loss = IntervalLoss(read(self.network), radius, training.certified_train_clean_weight, round(steps))
        return loss, partial(worst_logits, read(self.evaluated), radius)

    def _schedule(self) -> Schedule:
        training, epoch = self.desc.training, len(self.batches)
        drops = tuple(iterations(text, epoch) for text in training.milestone_steps.split(",") if text)
        return Schedule(
            total=iterations(training.training_steps, epoch),
            warmup=iterations(training.warmup_steps, epoch),
            milestones=drops,
            gamma=training.gamma,
            shape=training.lr_schedule,
        )

    def _distributed(self, model: MixedPrecision) -> nn.Module:
        if self.desc.training.compile:
            model.network.compile()
        if self.environment.world_size == 1:
            return model
        part = -(-self.batches.batch_size // (self.environment.world_size * self.desc.training.accumulation))
        images = self._first_images(min(part, SETTLING))
        wrapped = distributed(model, self.environment.device, has_idle_weights(model, images))
        settle_buckets(wrapped, images)
        return wrapped

    def _after_step(self, progress: Progress) -> None:
        """Broadcast the buffers, update the moving average, and store where the adversaries ended."""
        if self.environment.world_size > 1:
            broadcast_buffers(unequal_buffers(self.network, (Normalize,)))
        if self.average is not None:
            self.average.update_parameters(self.network)
        for perturbations in self.last.values():
            perturbations.commit()

    def _record(self, progress: Progress) -> None:
        """Record the means and accuracies of the epoch that ended, and keep its weights if it is the best so far."""
        means = self.history.epoch_means(progress.totals)
        self._stop_unless_finite("loss", progress, means["train_loss"])
        evaluated = {"test_accuracy": self._test_accuracy(), **self._validation()}
        self.history.record(progress, means, evaluated)
        accuracy = evaluated.get("validation_robust_accuracy", evaluated.get("validation_accuracy", 0.0))
        if self.desc.training.select == "best" and accuracy > self.best.accuracy:
            self.best.take(accuracy, len(self.history.rows), weights_of(self.evaluated))

    def _evaluate(
        self, split: Any, rows: torch.Tensor, evaluation: Evaluation, session: Session = nullcontext
    ) -> dict[str, float]:
        """Means of the arrays that an evaluation returns for some rows of a split."""
        with evaluation_mode(self.evaluated):
            arrays = evaluate_in_shards(
                split.pixels,
                split.labels,
                rows.to(self.environment.device),
                TEST_SHARD,
                [evaluation],
                self.environment,
                show=False,
                session=session,
            )
        return {name: float(values.mean()) for name, values in arrays.items()}

    def _test_accuracy(self) -> float:
        evaluation = CleanEvaluation(self.evaluated)
        return self._evaluate(self.test, torch.arange(len(self.test)), evaluation)["standard_correct"]

    def _validation(self) -> dict[str, float]:
        if not len(self.validation_rows):
            return {}
        evaluation = RobustValidation(self.evaluated, self.adversaries, self.worst)
        session = self.threat.session if self.threat else nullcontext
        means = self._evaluate(self.batches.split, self.validation_rows, evaluation, session)
        robust = {"validation_robust_accuracy": means["robust_correct"]} if self.adversaries or self.worst else {}
        return {"validation_accuracy": means["validation_correct"], **robust}

    def _checkpoint(self, progress: Progress) -> None:
        """Write a checkpoint at the end of every epoch, and earlier when it is due or the process was asked to end.

        Raises RunError instead if the loss or the weights are not finite. Ends the run afterwards if asked to end.
        """
        asked, due = self.environment.any_of(bool(self.environment.stop.asked), self.resume.is_due())
        if not (progress.is_epoch_end or progress.is_end):
            if not (asked or due):
                return
            self._stop_unless_finite("loss", progress, self.history.epoch_means(progress.totals)["train_loss"])
        self._stop_unless_finite("size of the weights", progress, size_of(self.network))
        for perturbations in self.last.values():
            perturbations.share()
        self.resume.save(progress)
        if asked and not progress.is_end:
            raise self.environment.stop.interruption()

    def _stop_unless_finite(self, what: str, progress: Progress, value: float) -> None:
        if not math.isfinite(value):
            kept = self.resume.snapshots.paths()
            where = f"; the last good checkpoint is {kept[0].name}" if kept else ""
            raise RunError(f"the {what} became {value} in epoch {progress.step.epoch + 1}; try a smaller --lr{where}")

    def _result(self) -> dict[str, Any]:
        rows, best = self.history.rows, self.best
        final = {"train_loss": None, **(rows[-1] if rows else {"test_accuracy": self._test_accuracy()})}
        selected = {}
        if best.epoch:
            self.evaluated.load_state_dict(best.weights)
            selected = {"selected_epoch": best.epoch}
            final = {**rows[best.epoch - 1], "test_accuracy": self._test_accuracy()}
        if self.environment.is_primary:
            write_bytes(self.directory / "model.safetensors", save(weights_of(self.evaluated)))
        names = [name for name in final if name.endswith(("_loss", "_accuracy"))]
        return {
            "steps": self.trainer.iteration,
            "final": {name: final[name] for name in names},
            **selected,
            **self._classes(),
        }

    def _classes(self) -> dict[str, list[str]]:
        """The names of the classes in the order of their numbers, where only the folders of the images know them."""
        return {} if dataset_info(self.desc.dataset).classes else {"classes": list(self.data.info.classes)}
