"""Methods that every threat inherits, shown with the smallest threat a user could write."""

import pytest
import torch

from foundations.errors import UsageError
from threat_specification import BoundThreat, Intersection, Linf, Threat


class BoundBrightness(BoundThreat):
    def evaluate(self, delta):
        return delta.flatten(1).mean(1).abs()

    def project(self, delta, threshold, lower=None, upper=None):
        return self.scale(delta, threshold, lower, upper)


class Brightness(Threat):
    """|mean of the change|."""

    name = "brightness"

    def bind(self, examples, labels):
        return BoundBrightness(examples.float())


def problem(batch=4):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(batch, 1, 6, 6, generator=generator)
    return x, torch.zeros(batch, dtype=torch.long), x + 0.3 + 0.1 * torch.rand(x.shape, generator=generator)


def test_a_users_threat_gets_the_whole_interface():
    x, y, z = problem()
    threat = Brightness()
    assert threat.prepare(num_devices=2) is threat
    torch.testing.assert_close(threat.evaluate(x, y, z), (z - x).flatten(1).mean(1))
    out = threat.project(x, y, z, 0.05)
    assert bool((out >= 0).all() & (out <= 1).all())
    assert float(threat.evaluate(x, y, out).max()) <= 0.05 * (1 + 1e-6)
    assert float(threat.evaluate(x, y, out).min()) > 0.049
    assert torch.equal(threat.project(x, y, out, 0.0501), out)
    both = Intersection([(threat, 0.05), (Linf(), 0.01)])
    assert float((both.project(x, y, z, 1.0) - x).abs().max()) <= 0.01 + 1e-7


def test_16_bit_differences_are_not_rounded():
    x, y, z = problem()
    x, z = x.half(), z.half()
    expected = (z.double() - x.double()).flatten(1).mean(1)
    torch.testing.assert_close(Brightness().evaluate(x, y, z).double(), expected, rtol=1e-6, atol=0)


def test_feasible_rows_of_a_mixed_batch_come_back_bit_identical():
    x, y, z = problem()
    z[1] = x[1] + 0.01 * (0.5 - x[1])
    out = Brightness().project(x, y, z, 0.05)
    assert torch.equal(out[1], z[1]) and not torch.equal(out[0], z[0])


@pytest.mark.parametrize(
    "change,message",
    [
        (lambda x, y, z: (x * 2, y, z), r"values in \[0, 1\]"),
        (lambda x, y, z: (x * float("nan"), y, z), "NaN"),
        (lambda x, y, z: ((x * 255).byte(), y, z), "floats"),
        (lambda x, y, z: (x[0], y, z), r"\[B,C,H,W\]"),
        (lambda x, y, z: (x, y[:2], z), "4 integers"),
        (lambda x, y, z: (x, y.float(), z), "4 integers"),
        (lambda x, y, z: (x, y, z[:2]), "perturbed_examples: expected shape"),
        (lambda x, y, z: (x, y, z * float("inf")), "finite"),
    ],
)
def test_unfit_arguments_are_named(change, message):
    arguments = change(*problem())
    for call in (Brightness().evaluate, Brightness().project):
        with pytest.raises(UsageError, match=message):
            call(*arguments)


@pytest.mark.parametrize("threshold", [-0.1, float("nan"), float("inf")])
def test_unfit_thresholds(threshold):
    with pytest.raises(UsageError, match="threshold"):
        Brightness().project(*problem(), threshold)
