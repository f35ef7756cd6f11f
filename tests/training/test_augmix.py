"""AugMix: torchvision's changes at torchvision's strengths, by draws that depend on seed, row and step alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from cli.main import main
from foundations.errors import UsageError
from tests.conftest import Command
from training import augmix
from training.augmix import CHANGES, LEVELS, STRENGTHS, WITHOUT_LEVEL, WITHOUT_SIGN, AugMix

GENERATOR = torch.Generator().manual_seed(0)
PIXELS = torch.randint(20, 200, (40, 3, 32, 27), generator=GENERATOR, dtype=torch.uint8)
COLOUR, INDEX = PIXELS / 255, torch.arange(40)


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_change_is_that_of_torchvision(name: str, channels: int) -> None:
    """At every level and sign, against what torchvision's own AugMix applies to one image."""
    theirs = v2.AugMix()
    key = next(key for key in theirs._AUGMENTATION_SPACE if key.lower() == name.replace("_", ""))
    strengths, signed = theirs._AUGMENTATION_SPACE[key]
    magnitudes = strengths(STRENGTHS, *PIXELS.shape[2:])
    assert signed == (name not in WITHOUT_SIGN) and (magnitudes is None) == (name in WITHOUT_LEVEL)
    changed = 0
    for level in range(1 if magnitudes is None else LEVELS):
        for negative in (False, True) if signed else (False,):
            amount = 0.0 if magnitudes is None else float(magnitudes[level]) * (-1 if negative else 1)
            batch = PIXELS[:4, :channels]
            ours = CHANGES[name](batch, level, negative)
            for image, made in zip(batch, ours, strict=True):
                expected = theirs._apply_image_or_video_transform(
                    image, key, amount, InterpolationMode.BILINEAR, theirs._fill
                )
                assert int((made.int() - expected).abs().max()) <= 1  # angles in float32 there
            changed += not ours.equal(batch)
    assert changed or (name == "color" and channels == 1)


def test_what_an_image_gets_does_not_depend_on_its_batch_but_on_step_and_seed() -> None:
    mix = AugMix(seed=3)
    rows = torch.tensor([30, 2, 7])
    assert mix(COLOUR, INDEX, 5)[rows].equal(mix(COLOUR[rows], rows, 5))
    assert not mix(COLOUR, INDEX, 5).equal(mix(COLOUR, INDEX, 6))
    assert not mix(COLOUR, INDEX, 5).equal(AugMix(seed=4)(COLOUR, INDEX, 5))


def test_the_mixture_is_that_of_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Image by image in float64, from the draws: a share of the image, and chains of 1 to 3 changes for the rest."""
    draws: list[Tensor] = []

    def uniform(*words: object) -> Tensor:
        draws.append(torch.rand(40, 34, generator=torch.Generator().manual_seed(1)))
        return draws[-1]

    monkeypatch.setattr(augmix, "uniform", uniform)
    made = AugMix(seed=3)(COLOUR, INDEX, 5)
    numbers = draws[0].double()
    for row in range(40):
        share, weights, depths = numbers[row, 0], -torch.log(1 - numbers[row, 1:4]), numbers[row, 4:7]
        expected = (1 - share) * COLOUR[row].double()
        for chain in range(3):
            image = PIXELS[row : row + 1]
            for place in range(1 + int(depths[chain] * 3)):
                change, level, sign = numbers[row, 7 + 9 * chain + 3 * place :][:3]
                name = list(CHANGES)[int(change * 13)]
                image = CHANGES[name](image, int(level * 3), bool(sign >= 0.5))
            expected += share * weights[chain] / weights.sum() * image[0].double() / 255
        torch.testing.assert_close(made[row].double(), expected, atol=1e-6, rtol=0)


def test_images_are_spread_as_those_of_torchvision() -> None:
    """Mean and deviation of every pixel over many draws, of ours and of torchvision's own AugMix."""
    image, count = PIXELS[0, :, :16, :16], 2000
    torch.manual_seed(0)
    theirs = torch.stack([v2.AugMix()(image) for _ in range(count)]).double() + 0.5  # it rounds down
    ours = AugMix(seed=3)((image / 255).expand(count, -1, -1, -1), torch.arange(count), 0).double() * 255
    deviation = theirs.std(0)
    assert bool(((ours.mean(0) - theirs.mean(0)).abs() < 5 * deviation * (2 / count) ** 0.5).all())
    # Shares that are equal or not exponential, and chains of another length, make at least 0.085.
    assert float((ours.std(0) / deviation).log().abs().mean()) < 0.06


def test_changes_occur_as_often_as_published() -> None:
    """Every change equally often, with every level and sign that it has."""
    kinds = augmix._kinds(torch.rand(60_000, 3, generator=GENERATOR))
    per_change = torch.bincount(kinds // (2 * LEVELS), minlength=13) / 60_000
    assert bool(((per_change - 1 / 13).abs() < 0.005).all())
    for place, name in enumerate(CHANGES):
        found = kinds[kinds // (2 * LEVELS) == place]
        number = len(found.unique())
        assert number == (1 if name in WITHOUT_LEVEL else 3 if name in WITHOUT_SIGN else 5)


def test_images_stay_in_the_box_and_extreme_draws_are_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in (0.0, 1 - 2**-24):
        monkeypatch.setattr(augmix, "uniform", lambda *_, value=value: torch.full((40, 34), value))
        made = AugMix(seed=3)(COLOUR, INDEX, 5)
        assert bool(((made >= 0) & (made <= 1)).all())
    assert not made.equal(COLOUR)


def test_a_run_trains_with_it(command: Command) -> None:
    """Its weights are others than without, and its directory is named by it."""
    words = ["train", "--dataset_name=digits", "--model_name=conv", "--training_steps=3it", "--quiet"]
    made = [Path(command(*words, *flag).stdout.splitlines()[-1]) for flag in ((), ("--augmix",))]
    assert "augmix" in made[1].parent.name and "augmix" not in made[0].parent.name
    weights = [(path / "model.safetensors").read_bytes() for path in made]
    assert weights[0] != weights[1]


def test_masks_would_stay_where_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "--dataset_name=digits", "--model_name=conv", "--N_adv_train", "--N_train_segmented", "--augmix"]
    assert main(words) == 2 and "--augmix: it moves what images show" in capsys.readouterr().err


def test_images_of_two_channels_are_refused() -> None:
    with pytest.raises(UsageError, match="1 or 3 channels"):
        AugMix(seed=0)(COLOUR[:, :2], INDEX, 0)
