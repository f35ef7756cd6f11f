"""Faults put into the code on purpose, each of which some test must notice; a file for each part of the project."""

from __future__ import annotations

from . import attacks, exact, others, runs, testing, threats
from .mutant import Mutant

MUTANTS: list[Mutant] = [
    *attacks.MUTANTS,
    *threats.MUTANTS,
    *testing.MUTANTS,
    *exact.MUTANTS,
    *runs.MUTANTS,
    *others.MUTANTS,
]
