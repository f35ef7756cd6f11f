"""The merge runner: read claims, keep the smallest witness for each image, write one file."""

from __future__ import annotations

from typing import Any

from foundations.files import write_bytes
from foundations.results import rounded
from runners.base import Runner
from testing.claims.claim import Claim, merged
from testing.claims.judging import described


class Merge(Runner):
    """A runner that needs neither model nor data: it takes each file at its word, as `verify` does not."""

    def prepare(self) -> None:
        self.claims = [Claim.read(file) for file in self.desc.files]
        self.whole = merged(self.claims)

    def run(self) -> dict[str, Any]:
        if self.environment.is_primary:
            write_bytes(self.desc.opened(self.environment.root_dir), self.whole.to_bytes())
        facts = self.whole.facts
        figures = {
            described(each): "{} -> {}".format(
                ", ".join(rounded(claim.facts["claims"][place]["accuracy"]) for claim in self.claims),
                rounded(each["accuracy"]),
            )
            for place, each in enumerate(facts["claims"])
        }
        return {"claim": self.whole.digest, "authors": facts["authors"], "figures": figures}
