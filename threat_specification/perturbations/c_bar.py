"""The ten noises of ImageNet-C-bar (Mintun, Kirillov, Xie 2021), by the published definitions.

Lengths scale with the image. `level` is the published severity, on a scale up to 10.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from threat_specification.perturbations import filters
from threat_specification.perturbations.draws import Draws

GREY = 128 / 255
SPARKLES = 5
MOST_RAYS = 200


def blue_noise_sample(x: Tensor, draws: Draws, level: float) -> Tensor:
    """Make pixels black where high-frequency noise is below a threshold."""
    noise = filters.spectral_noise(x, draws, lambda frequency: frequency, fields=1)
    return x * (noise > 0.3 * level - 2.5)


def brownish_noise(x: Tensor, draws: Draws, level: float) -> Tensor:
    """Noise in each channel, with an amplitude that falls with the square of the frequency."""
    noise = filters.spectral_noise(x, draws, lambda frequency: 1 / (frequency.square() + 1), fields=x.shape[1])
    return x + 6.4 * level / 255 * noise


def single_frequency_greyscale(x: Tensor, draws: Draws, level: float) -> Tensor:
    """Add one plane wave, the same in all channels."""
    larger = draws.uniform(low=-math.pi, high=math.pi)
    smaller = draws.uniform(low=-1.0) * larger.abs()
    swap = draws.integers(2).bool()
    right, down = torch.where(swap, smaller, larger), torch.where(swap, larger, smaller)
    rows, columns = filters.pixel_grid(x)
    wave = torch.sin(columns * _field(right) + rows * _field(down) + _field(draws.uniform(high=2 * math.pi)))
    return x + 19.6 * level / 255 * wave.unsqueeze(1)


def cocentric_sine_waves(x: Tensor, draws: Draws, level: float) -> Tensor:
    """Add concentric rings with a wavy edge."""
    rows, columns = filters.pixel_grid(x)
    side = min(x.shape[2:])
    right = columns - _field(draws.uniform(high=side))
    down = rows - _field(draws.uniform(high=side))
    angle = torch.atan2(right, down) * _field(draws.uniform(high=10))
    wave = torch.sin(angle) * _field(draws.uniform(high=side / 10))
    width = _field(draws.uniform(high=side / 10)).clamp_min(1e-3)
    rings = ((right.square() + down.square()).sqrt() + wave) % width / width - 0.5
    return x + 12.8 * level / 255 * rings.unsqueeze(1)


def plasma_noise(x: Tensor, draws: Draws, level: float) -> Tensor:
    """Mix in swirls of colour."""
    rows, columns = filters.pixel_grid(x)
    time, sharpness = _field(draws.uniform(high=6 * math.pi)), _field(draws.uniform(low=0.5))
    scale = _field(draws.uniform(low=0.075, high=0.2)) * min(x.shape[2:])
    rounds = _field(4 + draws.integers(3))
    right, down = columns / scale, rows / scale
    frequency, drift, damping, phase = 1.0, 1.0, torch.ones_like(time), torch.zeros_like(time)
    for number in range(6):
        first = torch.cos(down * frequency - phase + time / drift) / damping
        second = torch.sin(right * frequency - phase + time / drift) / damping
        on = (number < rounds).to(x)
        right, down = right + on * (first - 0.3 * second), down + on * (second + 0.3 * first)
        frequency, phase, damping = frequency * 1.93, phase * time * drift, damping * (2.25 - sharpness)
        drift *= 1.15
    red, blue = torch.sin(right - time), torch.sin(down + time)
    green = torch.sin((right + down + torch.sin(time)) * 0.5)
    colours = torch.stack((red, green, blue), dim=1)
    amount = 6.4 * level / 255
    return (1 - amount) * x + amount * (colours if x.shape[1] == 3 else filters.luminance(colours))


def perlin_noise(x: Tensor, draws: Draws, level: float) -> Tensor:
    """Mix in turbulence (Perlin 1985) of five octaves; the first has seven cells along the image's shorter side."""
    side = min(x.shape[2:])
    turbulence = sum(_gradient_noise(x, draws, side / 7 / 2**octave).abs() / 2**octave for octave in range(5))
    amount = 0.05 * level
    return (1 - amount) * x + amount * (0.5 * turbulence + 0.5).clamp(0, 1).unsqueeze(1)


def checkerboard_cutout(x: Tensor, draws: Draws, level: float) -> Tensor:
    """Make random squares of a rotated checkerboard grey, all of them on its black fields."""
    rows, columns = filters.pixel_grid(x)
    angle = _field(draws.uniform(high=2 * math.pi))
    scale = (_field(draws.uniform(low=0.1, high=0.25)) * min(x.shape[2:])).clamp_min(1)
    first = (angle.cos() * rows + angle.sin() * columns) / scale
    second = (-angle.sin() * rows + angle.cos() * columns) / scale
    black = (first % 2).long() == (second % 2).long()
    fields = 40  # along each axis: more than any board has
    chosen = draws.uniform(fields, fields) < level / 10
    number = (first.long() % fields) * fields + second.long() % fields
    cut = black & chosen.flatten(1).gather(1, number.flatten(1)).view_as(black)
    return torch.where(cut.unsqueeze(1), GREY, x)


def sparkles(x: Tensor, draws: Draws, level: float) -> Tensor:
    """Add five white stars."""
    side = min(x.shape[2:])
    for _ in range(SPARKLES):
        centre = draws.uniform(2, high=side)
        star = _star(x, draws, centre, 0.01 * level * side, shortest=1.0, sharpness=1.0)
        x = x + star * (1 - x)
    return x


def inverse_sparkles(x: Tensor, draws: Draws, level: float) -> Tensor:
    """Make the image white outside one star."""
    side = min(x.shape[2:])
    centre = draws.uniform(2, low=0.25, high=0.75) * side
    star = _star(x, draws, centre, 0.25 * side, shortest=-math.inf, sharpness=6.5 * level / 50)
    return 1 + star * (x - 1)


def caustic_refraction(x: Tensor, draws: Draws, level: float) -> Tensor:
    """The image seen through moving water: refracted, and lit by caustics."""
    side = min(x.shape[2:])
    rows, columns = filters.pixel_grid(x)
    time = _field(draws.uniform(low=0.5, high=2.0))
    size = _field(draws.uniform(low=0.75, high=1.25)) * side
    light = filters.gaussian_blur(_caustics(rows / size, columns / size, time).unsqueeze(1), 1.0)[:, 0]
    padded = torch.nn.functional.pad(light, (1, 1, 1, 1))
    along_rows = padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]
    along_columns = padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]
    length = (along_rows.square() + along_columns.square() + 1).sqrt()
    upward = 1 / length
    refraction, lens = 4.0, 0.05 * level * side
    bent = (1 - (1 - upward.square()) / refraction**2).sqrt() - upward / refraction
    bent = torch.where(upward >= 1 - 1e-3, 0.0, bent * lens / length)
    seen = filters.sample(x, rows + bent * along_rows, columns + bent * along_columns)
    return seen + 0.2 * level * (along_rows - along_columns).unsqueeze(1)


def _field(values: Tensor) -> Tensor:
    """Reshape [B] to [B,1,1]."""
    return values.view(-1, 1, 1)


def _star(x: Tensor, draws: Draws, centre: Tensor, radius: float, shortest: float, sharpness: float) -> Tensor:
    """A star [B,1,H,W] in [0, 1]: rays of random length around a centre [B,2], brightest near the centre."""
    rows, columns = filters.pixel_grid(x)
    down, right = rows - _field(centre[:, 0]), columns - _field(centre[:, 1])
    rays = _field(50 + draws.integers(150))
    lengths = (radius * (1 + 0.25 * draws.normal(MOST_RAYS))).clamp_min(shortest)
    turn = (torch.atan2(right, down) + math.pi) / (2 * math.pi) * rays
    number, part = turn.floor(), turn - turn.floor()
    here = lengths.gather(1, (number % rays).long().flatten(1)).view_as(turn)
    following = lengths.gather(1, ((number + 1) % rays).long().flatten(1)).view_as(turn)
    length = here + part * (following - here)
    near = (length.square() / (down.square() + right.square() + 1e-4)) ** sharpness
    return ((1 - (part - 0.5).square()) * near).clamp(0, 1).unsqueeze(1)


def _gradient_noise(x: Tensor, draws: Draws, cell: float) -> Tensor:
    """Perlin noise [B,H,W] on a lattice with cells of `cell` pixels."""
    rows, columns = (axis / cell for axis in filters.pixel_grid(x))
    points = (int(rows.max()) + 2, int(columns.max()) + 2)
    angles = draws.uniform(*points, high=2 * math.pi).flatten(1)
    down, right = rows.floor(), columns.floor()

    def corner(row: int, column: int) -> Tensor:
        number = ((down + row) * points[1] + right + column).long().flatten(1).expand(len(x), -1)
        angle = angles.gather(1, number).view(len(x), *rows.shape[1:])
        return angle.sin() * (rows - down - row) + angle.cos() * (columns - right - column)

    across, along = (_smooth(part) for part in (columns - right, rows - down))
    upper = torch.lerp(corner(0, 0), corner(0, 1), across.expand(len(x), -1, -1))
    lower = torch.lerp(corner(1, 0), corner(1, 1), across.expand(len(x), -1, -1))
    return 1.5 * torch.lerp(upper, lower, along.expand(len(x), -1, -1))


def _smooth(part: Tensor) -> Tensor:
    return part.square() * (3 - 2 * part)


def _caustics(rows: Tensor, columns: Tensor, time: Tensor) -> Tensor:
    """Light [B,H,W] in [0, 1] on the ground under water, from five rounds of a feedback of sines."""
    down, right = rows % 1 * 2 * math.pi - 250, columns % 1 * 2 * math.pi - 250
    first, second, light = down, right, torch.ones_like(down)
    for number in range(5):
        t = time * (1 - 3.5 / (number + 1))
        first, second = (
            down + torch.cos(t - first) + torch.sin(t + second),
            right + torch.sin(t - second) + torch.cos(t + first),
        )
        near = 0.005 * ((down / torch.sin(first + t)).square() + (right / torch.cos(second + t)).square()).sqrt().pow(
            -1
        )
        light = light + near / 0.005**2
    return (1.17 - (light / 5) ** 1.4).abs().pow(8).clamp(0, 1)
