"""A folder of pages over claims that can be published as it is: no script from elsewhere, equal claims equal bytes."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from datasets.base import Dataset
from foundations.environment import Environment
from foundations.errors import RunError, UsageError
from foundations.files import write_json, write_text
from runners.checks import names_in
from runners.claims import Refuted, check_images, dataset_of
from runners.inputs import read_data
from runners.report.desc import CLAIMS, ReportDesc
from runners.report.site_card import model_card
from runners.report.site_entries import Entry, Record, entries_of, groups_of, leaderboard
from runners.report.site_pages import entry_html, index_html
from runners.report.site_pictures import Shown, shown_of

NOT_HERE = "No pictures: the data set, or the same images of it, was not there when this page was made."
NO_POINTS = "No pictures: this claim has no changed images."


@dataclass(frozen=True)
class Site:
    """The claims of a site, all read and found to be in the one form of a claim, before anything is written."""

    desc: ReportDesc
    environment: Environment
    entries: list[Entry]

    @classmethod
    def of(cls, desc: ReportDesc, environment: Environment) -> Site:
        """The claims that flags name, or those below the root; raises RunError if there are none."""
        root = environment.root_dir
        files = [Path(name).expanduser() for name in names_in(desc.site.claims)]
        files = files or sorted((root / CLAIMS).rglob("*.zip"))
        if not files:
            raise RunError(
                f"--site: expected claims (*.zip) below {root / CLAIMS}, got none; name them by "
                "--claims=A.zip,B.zip, or make one by python nonisotropic.py bundle"
            )
        entries = entries_of(files, root)
        for entry in entries:
            dataset_of(entry.claim, entry.file)  # raises RunError for flags of no data set, as `verify` does
        return cls(desc, environment, entries)

    def counts(self) -> dict[str, int]:
        verified = sum(entry.is_verified for entry in self.entries)
        return {"claims": len(self.entries), "tables": len(groups_of(self.entries)), "verified": verified}

    def write(self) -> None:
        folder, entries = Path(self.desc.site.site), []
        data: dict[str, Dataset] = {}
        for entry in self.entries:
            shown, entry = self._looked_at(entry, data)
            entries.append(entry)
            note = NOT_HERE if shown is None else "" if shown else NO_POINTS
            write_text(folder / f"{entry.stem}.html", entry_html(entry, shown or [], note))
            write_text(folder / f"{entry.stem}.md", model_card(entry, self.desc.site.site_url))
        groups = groups_of(entries)
        write_json(folder / "leaderboard.json", leaderboard(groups))
        write_text(folder / "index.html", index_html(groups))

    def _looked_at(self, entry: Entry, read: dict[str, Dataset]) -> tuple[list[Shown] | None, Entry]:
        """The pictures of a claim, and the claim, refuted if it contradicts itself on images that are here."""
        try:
            return self._shown(entry, read), entry
        except Refuted as error:
            self.environment.log(f"note: {error}")
            here = Record("this page", (), "the data set that was here", (str(error),))
            return None, entry if entry.is_refuted else replace(entry, record=here)

    def _shown(self, entry: Entry, read: dict[str, Dataset]) -> list[Shown] | None:
        """The pictures of a claim; None if its images are not here. `read` keeps the data sets."""
        try:
            dataset = dataset_of(entry.claim, entry.file, data_dir=self.desc.dataset.data_dir, download=False)
            name = json.dumps(dataset.hashed(), sort_keys=True)
            if name not in read:
                read.clear()  # one at a time in memory
                read[name] = read_data(self.desc, self.environment, dataset)
            data = read[name]
            check_images(entry.claim, entry.file, data)
            return shown_of(entry.claim, data)
        except Refuted:
            raise
        except (RunError, UsageError, ImportError) as error:
            self.environment.log(f"note: no pictures of {entry.file.name}: {error}")
            return None
