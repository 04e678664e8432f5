"""The profiles of an output's runs: a small file each, kept where a run's own folder may be removed by its user."""

import json
from dataclasses import asdict
from pathlib import PurePath

from gptj_batch.records.output import OutputFolder
from pipelines.ledger import Ledger
from pipelines.profile import Profile


def write_profile(output: str, profile: Profile) -> None:
    """Keep a run's profile for later ones. Raises OutputError."""
    folder = OutputFolder.at(output)
    with folder.whole_file(_file(folder, profile.run)) as staged:
        staged.write_text(json.dumps(asdict(profile)) + "\n", encoding="utf-8")


def last_profile(output: str, ledger: Ledger, min_rows: int) -> Profile | None:
    """Return the profile of the last finished run of so many rows; None where there is none that can be read."""
    folder = OutputFolder.at(output)
    for entry in reversed(ledger.entries):
        if entry.rows >= min_rows:
            try:
                return Profile.from_json(json.loads(folder.store.read(_file(folder, entry.run))))
            except (OSError, ValueError, KeyError, TypeError):
                continue
    return None


def _file(folder: OutputFolder, run: str) -> PurePath:
    return folder.private / "profiles" / f"{run}.json"
