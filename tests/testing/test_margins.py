"""Margins of a claim's points: those that devices may round either way are doubtful, and no others."""

from __future__ import annotations

import pytest
import torch

from testing.claims.judging import DOUBT, Margins


def test_margins_near_zero_are_doubtful_whatever_the_scale_of_the_logits() -> None:
    labels = torch.tensor([0, 0, 0, 0, 0])
    rows = torch.tensor(
        [[0.0, 1, -9, -9], [1, 0, -9, -9], [1, 1 + 1e-5, -9, -9], [1, 1 - 1e-5, -9, -9], [torch.nan, 0, 0, 0]]
    )
    for scale in (1e-6, 1.0, 1e6):
        margins = Margins.of(rows * scale, labels)
        assert margins.possible.tolist() == [True, False, True, True, True]
        assert margins.sure.tolist() == [True, False, False, False, True]
        assert margins.doubt[0] == pytest.approx(DOUBT * 10 * scale)


def test_one_extreme_logit_puts_no_margin_in_doubt() -> None:
    """Else a network that rules one class out by -1e6 could be told to be wrong where it is clearly right."""
    right = torch.tensor([[5.0, 0, -1, -2, -1e6], [5, 0, -1, -2, -torch.inf]])
    assert not Margins.of(right, torch.zeros(2, dtype=torch.long)).possible.any()
    two = Margins.of(torch.tensor([[5.0, 0], [1, 1 - 1e-6], [0, 1]]), torch.zeros(3, dtype=torch.long))
    assert two.possible.tolist() == [False, True, True] and two.sure.tolist() == [False, False, True]


def test_what_logits_have_in_common_puts_no_margin_in_doubt() -> None:
    """Of two classes the doubt was a share of it: at 1,000, an image that is right by 0.05 counted as broken."""
    right = torch.tensor([[0.05, 0.0], [0.02, 0.0], [0.001, 0.0], [1e-7, 0.0]], dtype=torch.float64)
    label = torch.zeros(len(right), dtype=torch.long)
    for offset in (0.0, 1e2, 1e3, 1e5, -1e5, 1e8):
        for third in ([], [0.0], [-9.0, -9.0]):
            logits = torch.cat([right, torch.tensor([third] * len(right), dtype=torch.float64)], 1) + offset
            assert not Margins.of(logits, label).possible[:2].any()
    two = Margins.of(right + 1000, label)
    assert two.doubt.max() < 0.01 and two.possible.tolist() == [False, False, True, True]  # float32 hardly sees 0.001
    assert Margins.of(right, label).possible.tolist() == [False, False, False, False]
    assert Margins.of(right.flip(1) + 1e8, label).sure.tolist() == [True, True, False, False]
