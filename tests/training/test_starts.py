"""Starts of adversaries, and that processes agree on it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.multiprocessing.spawn import start_processes

from foundations.errors import UsageError
from foundations.step import Step
from tests.training.sources import IMAGES, LABELS, Whole, net, some
from threat_specification import Linf
from training import starts
from training.adversaries import PGD
from training.augmentation import Movements, RandomCrop, RandomFlip
from training.batch import Batch
from training.starts import STARTS, LastPerturbations, last_perturbations

CPU = torch.device("cpu")
EPS = 0.05


def attack(steps: int, start: LastPerturbations) -> PGD:
    """Steps of a hundredth of the radius: as many as they are, they end where they began plus their sum."""
    return PGD("adv", Linf(), EPS, EPS, EPS, steps, seed=1, reach=0.01 * steps, starts=start)


def test_steps_of_several_epochs_add_up() -> None:
    """Three epochs of two steps are six steps from the random start of the first, to the precision of what is kept."""
    model, last = net().eval(), LastPerturbations(6, (1, 4, 4), CPU)
    for epoch in range(3):
        # Its random start depends on the step; only the first epoch's is used.
        found = attack(2, last)(model, Batch(Whole()), Step(0 if epoch == 0 else 7, epoch)).images
        last.commit()
    expected = attack(6, LastPerturbations(6, (1, 4, 4), CPU))(model, Batch(Whole()), Step(0, 0)).images
    assert torch.allclose(found, expected, atol=1e-4)
    assert bool(last.known.all())


def test_each_image_has_its_own_and_new_ones_start_at_random() -> None:
    model, last = net().eval(), LastPerturbations(6, (1, 4, 4), CPU)
    rows = torch.tensor([4, 1])
    first = attack(2, last)(model, Batch(some(rows)), Step(0, 0)).images - IMAGES[rows]
    last.commit()
    assert last.known.tolist() == [False, True, False, False, True, False]
    assert torch.allclose(last.values[rows].float(), first, atol=1e-4)
    fresh = attack(2, LastPerturbations(6, (1, 4, 4), CPU))(model, Batch(Whole()), Step(5, 1)).images
    now = attack(2, last)(model, Batch(Whole()), Step(5, 1)).images
    others = torch.tensor([0, 2, 3, 5])
    assert now[others].equal(fresh[others]) and not torch.allclose(now[rows], fresh[rows], atol=1e-3)


def test_they_move_with_the_image() -> None:
    """Kept in the frame of the image before crop and flip: a mark on a pixel stays on it, wherever that goes."""
    last = LastPerturbations(6, (1, 4, 4), CPU)
    moves = Movements([RandomCrop(1, 1), RandomFlip(2)])
    for draw in range(20):
        batch = Batch(Whole(), move=moves, draw=draw)
        marked = batch.images * 0.5
        last.end(batch, marked)
        last.commit()
        there = Batch(Whole(), move=moves, draw=draw + 100)
        begun = last.begin(there, torch.zeros_like(marked))
        seen = begun != 0
        assert torch.allclose(begun[seen], 0.5 * there.images[seen], atol=1e-3)
        assert float(seen.float().mean()) > 0.3


def share_between_two(rank: int, folder: str) -> None:
    starts.SHARED = 4 * 32  # bytes: four images at a time, then the last two
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    last = LastPerturbations(6, (1, 4, 4), CPU)
    for rows in ([0, 2, 4], [5, 1]):  # in the second epoch two of them, the first one by the other process
        mine = torch.tensor(rows).tensor_split(2)[rank]
        if len(mine):
            last.end(Batch(some(mine)), (mine + 1.0).reshape(-1, 1, 1, 1).expand(-1, 1, 4, 4) * 0.01 * (rank + 1))
        last.commit()
        last.share()
    torch.save({"values": last.values, "known": last.known}, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_processes_agree_after_sharing(tmp_path) -> None:
    start_processes(share_between_two, (str(tmp_path),), nprocs=2, start_method="fork")
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first["values"].equal(second["values"]) and first["known"].equal(second["known"])
    # Rows 0, 2 and then 5 were the first process's, 4 and then 1 the second's.
    expected = torch.tensor([0.01, 0.04, 0.03, 0.0, 0.10, 0.06])
    assert torch.allclose(first["values"][:, 0, 0, 0].float(), expected, atol=1e-4)
    assert first["known"].tolist() == [True, True, True, False, True, True]


def test_validation_neither_uses_nor_changes_them() -> None:
    from runners.train.objectives import RobustValidation
    from testing.shards import Shard

    model, last = net().eval(), LastPerturbations(6, (1, 4, 4), CPU)
    attack(2, last)(model, Batch(Whole()), Step(0, 0))
    last.commit()
    before = last.values.clone()
    shard = Shard(0, IMAGES, LABELS, torch.arange(6))
    with_them = RobustValidation(model, [attack(2, last)])(shard)
    assert last.values.equal(before)
    without = RobustValidation(model, [replace(attack(2, last), starts=LastPerturbations(6, (1, 4, 4), CPU))])(shard)
    assert all(with_them[name].equal(without[name]) for name in with_them)


def test_a_step_that_is_tried_again_starts_where_the_first_try_did() -> None:
    """After a lack of memory, in smaller parts: what the first try found is forgotten."""
    model = net().eval()
    last = LastPerturbations(6, (1, 4, 4), CPU)
    attack(2, last)(model, Batch(Whole()), Step(0, 0))
    parts = [attack(2, last)(model, Batch(some(rows)), Step(0, 0)).images for rows in torch.arange(6).split(2)]
    last.commit()
    straight = attack(2, LastPerturbations(6, (1, 4, 4), CPU))(model, Batch(Whole()), Step(0, 0)).images
    assert torch.allclose(torch.cat(parts), straight, atol=1e-6)
    assert torch.allclose(last.values.float(), straight - IMAGES, atol=1e-4)


def test_what_no_device_could_keep_is_refused_with_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all adversaries together, in what a process has."""
    needed = 2 * 2 * 1000 * 3 * 64 * 64
    monkeypatch.setattr("os.sysconf", lambda name: {"SC_PHYS_PAGES": 2 * needed, "SC_PAGE_SIZE": 1}[name])
    assert len(last_perturbations(2, 1000, (3, 64, 64), CPU)) == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert len(last_perturbations(1, 1000, (3, 64, 64), CPU)) == 1
    with pytest.raises(UsageError, match=r"a perturbation of every training image, 0.0458 GiB.*use --adv_start=random"):
        last_perturbations(2, 1000, (3, 64, 64), CPU)


def test_a_corner_is_at_the_far_end_of_the_set() -> None:
    """Hardly a step: every pixel is at the radius, where the pixel box lets it, and at a random point else."""
    images, model = 0.3 + 0.4 * IMAGES, net().eval()
    (corner,), (random,) = STARTS["corner"](1, 6, (1, 4, 4), CPU), STARTS["random"](1, 6, (1, 4, 4), CPU)
    found = {
        name: attack(1, start)(model, Batch(Whole(images)), Step(0, 0)).images - images
        for name, start in (("corner", corner), ("random", random))
    }
    assert float(found["corner"].abs().min()) > 0.98 * EPS
    assert float(found["random"].abs().mean()) < 0.7 * EPS


@pytest.mark.parametrize("name", list(STARTS))
def test_the_table_of_starts_makes_what_it_names(name: str) -> None:
    first, made = STARTS[name](2, 6, (1, 4, 4), CPU)
    assert first is not made
    fresh = torch.rand(6, 1, 4, 4)
    made.end(Batch(Whole()), torch.ones(6, 1, 4, 4))
    assert made.begin(Batch(Whole()), fresh).equal(fresh)
    if isinstance(made, LastPerturbations):
        made.commit()
    assert made.begin(Batch(Whole()), fresh).equal(torch.ones(6, 1, 4, 4) if name == "last" else fresh)
