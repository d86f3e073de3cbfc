"""Export a run's vision encoder to ONNX, and verify it with ONNX Runtime against the trained model.

Example:
    python export/to_onnx.py runs/goldi_super-demo --out runs/goldi_super-demo/onnx

DIR then holds model.onnx, preprocessor_config.json and vlp_export.json. Exit code 1, and nothing written, when an
output differs by more than 1e-4 on the run's validation pictures.
"""

import argparse
import json
import sys
from pathlib import Path

from vlp.errors import run_command


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the folder of a finished run")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as in data.validation=/data/val/*.tar")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder, or an earlier export")
    parser.add_argument("--opset", type=int, default=20, help="ONNX operator set (default: 20)")
    parser.add_argument("--force", action="store_true", help="write into a folder that is no export of ours")
    arguments = parser.parse_intermixed_args()

    from rich.console import Console

    from vlp.evaluation.encode import validation_shards
    from vlp.export.folder import check_out, export_folder
    from vlp.export.metadata import encoder_metadata, preprocessor_config
    from vlp.export.onnx_encoder import FILE, open_session, run_onnx, write_onnx
    from vlp.export.verify import report, verify
    from vlp.run import load_run

    check_out(arguments.out, arguments.force)
    recipe, model = load_run(arguments.run, arguments.overrides)
    validation_shards(recipe)
    metadata = encoder_metadata(recipe)
    print(f"exporting {arguments.run} to ONNX, opset {arguments.opset}", flush=True)
    with export_folder(arguments.out, {"target": "onnx"} | metadata, arguments.force) as folder:
        write_onnx(model, recipe.model.vision.image_size, folder / FILE, metadata, arguments.opset)
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor_config(recipe), indent=2) + "\n")
        session = open_session(folder / FILE)
        if not report(verify(recipe, model, lambda pixels: run_onnx(session, pixels)), Console()):
            print(f"{arguments.out}: not written, because the export differs from the trained model", file=sys.stderr)
            sys.exit(1)
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    run_command(main)
