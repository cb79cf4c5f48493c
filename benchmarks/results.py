"""The results on disk: one JSON file and the Markdown table made of it, written after each measurement."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.tables import render


class Results:
    """What was measured so far; a new row replaces the one of the same name and leaves the others."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._file = directory / "results.json"
        self._values: dict[str, Any] = {"machine": {}, "tuning": {}, "rows": {}, "curves": {}}
        if self._file.is_file():
            self._values |= json.loads(self._file.read_text(encoding="utf-8"))

    def put_machine(self, machine: Mapping[str, Any]) -> None:
        """Describe the machine that measures."""
        self._values["machine"] = dict(machine)

    @property
    def machine(self) -> Mapping[str, Any]:
        """Return what `put_machine` was given."""
        machine: Mapping[str, Any] = self._values["machine"]
        return machine

    def get(self, part: str, name: str) -> Any:
        """Return an entry of "tuning", "rows" or "curves", None where there is none."""
        return self._values[part].get(name)

    def put(self, part: str, name: str, value: Mapping[str, Any]) -> None:
        """Set an entry and write both files."""
        self._values[part][name] = dict(value)
        self.directory.mkdir(parents=True, exist_ok=True)
        self._file.write_text(json.dumps(self._values, indent=1) + "\n", encoding="utf-8")
        (self.directory / "results.md").write_text(self.report(), encoding="utf-8")

    def report(self) -> str:
        """Return the Markdown report of all results."""
        return render(self._values)
