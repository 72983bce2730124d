"""`hubring data`: seal a folder of data, and check a sealed one. Loads no torch."""

import json as jsons
import sys
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from cyclopts import App, Parameter

from hubring.options import Json

app = App(name="data", help="Seal a folder of data, so that a changed file is found.")
Folder: TypeAlias = Annotated[Path, Parameter(help="The data's folder.")]


@app.command
def seal(folder: Folder, /, *, json: Json = False) -> int:
    """Write down every file's size and SHA-256, into the folder: hubring-manifest.json.

    Then run.loader(dataset, sealed="FOLDER") refuses a file that is changed, missing or new.
    """
    from hubring_worker import sealed

    manifest = sealed.seal(folder)
    if json:
        _print_json(
            folder=str(folder),
            digest=manifest.digest,
            files=len(manifest.files),
            bytes=manifest.size,
        )
    else:
        _print(f"{folder}: {len(manifest.files)} files, {manifest.size} bytes, sealed")
        _print(f"digest {manifest.digest}")
    return 0


@app.command
def check(folder: Folder, /, *, json: Json = False) -> int:
    """Read every file and compare it with the seal. Exit code 2 where one differs."""
    from hubring_worker import sealed

    verdict = sealed.check(folder)
    if json:
        _print_json(
            folder=str(folder),
            good=verdict.is_good,
            digest=verdict.digest,
            files=verdict.files,
            changed=verdict.changed,
            missing=verdict.missing,
            extra=verdict.extra,
            unreadable=dict(verdict.unreadable),
        )
    sealed.require(folder, verdict)
    if not json:
        _print(f"{folder}: {verdict.files} files are as they were sealed")
        _print(f"digest {verdict.digest}")
    return 0


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")


def _print_json(**fields: Any) -> None:
    _print(jsons.dumps(fields))
