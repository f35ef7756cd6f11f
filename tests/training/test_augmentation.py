"""Crop, flip and cutout, against slices written out by hand."""

from __future__ import annotations

import torch

from tests.training.sources import IMAGES, Whole, some
from training.augmentation import Chain, Cutout, Movements, RandomCrop, RandomFlip, shifted
from training.batch import Batch, pieces, unmoved

COLOUR = torch.rand(40, 3, 8, 6, generator=torch.Generator().manual_seed(1))
INDEX = torch.arange(40)


def test_shifts_are_windows_of_the_padded_image() -> None:
    top, left = torch.arange(40) % 5, torch.arange(40) // 2 % 5
    moved = shifted(COLOUR, top, left, 2)
    for image, out, i, j in zip(COLOUR, moved, top.tolist(), left.tolist(), strict=True):
        padded = torch.zeros(3, 12, 10)
        padded[:, 2:10, 2:8] = image
        assert out.equal(padded[:, i : i + 8, j : j + 6])


def test_crops_reach_every_offset_and_flips_take_half() -> None:
    index = torch.arange(4000)
    ramp = torch.arange(1.0, 26.0).view(1, 1, 5, 5).expand(4000, 1, 5, 5)
    crops = RandomCrop(1, seed=3)(ramp, index, 0)
    assert set(crops[:, 0, 2, 2].tolist()) == {7.0, 8, 9, 12, 13, 14, 17, 18, 19}
    flipped = RandomFlip(seed=3)(ramp, index, 0)
    mirrored = (flipped == ramp.flip(3)).flatten(1).all(1)
    assert bool((mirrored | (flipped == ramp).flatten(1).all(1)).all())
    assert 0.45 < float(mirrored.float().mean()) < 0.55


def test_cutout_is_one_square_clipped_at_the_border() -> None:
    out = Cutout(4, seed=2)(COLOUR + 1, INDEX, 0)
    dark = out == 0
    assert bool((dark | (out == COLOUR + 1)).all()) and bool((dark == dark[:, :1]).all())
    for image in dark[:, 0]:
        rows, columns = (int(image.any(axis).sum()) for axis in (1, 0))
        assert 2 <= rows <= 4 and 2 <= columns <= 4
        assert int(image.sum()) == rows * columns
    assert len({tuple(image.nonzero()[0].tolist()) for image in dark[:, 0]}) > 15


def test_what_an_image_gets_does_not_depend_on_its_batch_but_on_the_step() -> None:
    chain = Chain([RandomCrop(2, 1), RandomFlip(2), Cutout(3, 3)])
    rows = torch.tensor([30, 2, 7])
    assert chain(COLOUR, INDEX, 5)[rows].equal(chain(COLOUR[rows], rows, 5))
    assert not chain(COLOUR, INDEX, 5).equal(chain(COLOUR, INDEX, 6))


def test_what_was_moved_goes_back_but_for_what_left_the_picture() -> None:
    """Pixels in both frames are the same after there and back; the rest is 0."""
    moves = Movements([RandomCrop(2, 1), RandomFlip(2)])
    back = moves.undo(moves(COLOUR + 1, INDEX, 5), INDEX, 5)
    kept = back != 0
    assert back[kept].equal((COLOUR + 1)[kept])
    lost = (~kept[:, 0]).flatten(1).sum(1)
    assert set(lost.tolist()) == {8 * 6 - (8 - i) * (6 - j) for i in range(3) for j in range(3)}
    centre = kept[:, :, 2:-2, 2:-2]
    assert bool(centre.all()) and not bool(kept.all())


def test_pixels_move_first_and_are_changed_afterwards() -> None:
    """A square that is blackened in the moved image is whole; moved with it, it could be cut off."""
    move, change = RandomCrop(1, 1), Cutout(2, 2)
    made = Batch(Whole(), move=move, change=change, draw=4).images
    assert made.equal(change(move(IMAGES, torch.arange(6), 4), torch.arange(6), 4))
    assert not made.equal(move(change(IMAGES, torch.arange(6), 4), torch.arange(6), 4))


def test_partners_look_as_they_do_themselves() -> None:
    batch = Batch(Whole(), move=RandomCrop(1, 1), change=Cutout(2, 2), draw=4)
    assert batch.partner_images.equal(batch.images.roll(1, 0))
    assert not batch.images.equal(IMAGES)


def test_pieces_are_the_batch_and_their_shares_add_up() -> None:
    source = some(torch.tensor([4, 0, 3, 1, 5]))
    parts = list(pieces(source, 3, unmoved, unmoved, 0))
    assert [len(part.labels) for part in parts] == [2, 2, 1]
    assert torch.cat([part.images for part in parts]).equal(source.images)
    assert torch.cat([part.partner_labels for part in parts]).equal(source.partner_labels)
    assert abs(sum(part.share for part in parts) - 5 / 6) < 1e-12
    assert len(list(pieces(source, 9, unmoved, unmoved, 0))) == 5
