"""An export's folder: it appears whole or not at all, and nobody else's files are touched unasked."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vlp.errors import UserError

MARKER = "vlp_export.json"
"""Written last; a folder that has it was made by these tools."""


def check_out(out: Path, force: bool) -> None:
    """Raises `UserError` when `out` is a file, or a folder with something in it that no export made."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; name a folder")
    if out.is_dir() and any(out.iterdir()) and not (out / MARKER).is_file() and not force:
        raise UserError(
            f"--out {out} exists and is not an export of ours; name another folder, or add --force to write into it "
            "(files of other names stay)"
        )


@contextmanager
def export_folder(out: Path, metadata: dict[str, Any], force: bool = False) -> Iterator[Path]:
    """Gives an empty folder to write into, which becomes `out` when the block ends well and is removed otherwise.

    Into an `out` that exists its files go one by one, the marker last.
    """
    check_out(out, force)
    partial = out.with_name(out.name + ".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        (partial / MARKER).write_text(json.dumps(metadata, indent=2) + "\n")
        if out.is_dir() and any(out.iterdir()):
            (out / MARKER).unlink(missing_ok=True)
            for file in sorted(partial.rglob("*"), key=lambda file: file.name == MARKER):
                if file.is_file():
                    target = out / file.relative_to(partial)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    os.replace(file, target)
        else:
            partial.rename(out)
    except OSError as error:
        raise UserError(f"cannot write {out} ({error.strerror}); name another folder") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def read_marker(folder: Path) -> dict[str, Any]:
    """The metadata of an exported folder. Raises `UserError` when it is none."""
    try:
        return json.loads((folder / MARKER).read_text())
    except (OSError, ValueError):
        raise UserError(f"{folder} is no exported folder: it has no readable {MARKER}; export a run first") from None
