"""Verify an exported encoder against the run that it came from.

Example:
    python export/verify.py runs/goldi_super-demo/onnx runs/goldi_super-demo

Prints the largest absolute difference and the lowest cosine of every output on the run's validation pictures; exit
code 1 when one differs by more than 1e-4.
"""

import argparse
from pathlib import Path

from vlp.errors import run_command


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export", type=Path, help="a folder that export/to_onnx.py wrote")
    parser.add_argument("run", type=Path, help="the folder of the run")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as in data.validation=/data/val/*.tar")
    arguments = parser.parse_intermixed_args()

    from rich.console import Console

    from vlp.export.folder import read_marker
    from vlp.export.onnx_encoder import FILE, open_session, run_onnx
    from vlp.export.verify import report, verify
    from vlp.run import load_run

    read_marker(arguments.export)
    recipe, model = load_run(arguments.run, arguments.overrides)
    session = open_session(arguments.export / FILE)
    return 0 if report(verify(recipe, model, lambda pixels: run_onnx(session, pixels)), Console()) else 1


if __name__ == "__main__":
    run_command(main)
