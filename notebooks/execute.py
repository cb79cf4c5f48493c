"""Run every notebook of this folder anew and save it with its outputs: `make notebooks`.

Runs go to a temporary directory. The code is formatted by `make format`, not here.
"""

import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

for path in sorted(Path(__file__).parent.glob("*.ipynb")):
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as directory:
        place = {"metadata": {"path": directory}}
        NotebookClient(notebook, resources=place, record_timing=False, coalesce_streams=True).execute()
    notebook.metadata.language_info = {"name": "python"}
    nbformat.write(notebook, path)
    print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")
