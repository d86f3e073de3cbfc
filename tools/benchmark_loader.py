"""How many images a second one core loads, beside open_clip's own pipeline on the same shards, in one run.

Draws 500-pixel JPEGs with one caption each, and reads them to 224 pixels by both, in turns; what counts is the
processor time of this process, so another load on the machine does not decide it. open_clip's pipeline wants
webdataset 0.2.86, in a folder of its own:

    pip install --no-deps --target /tmp/peer webdataset==0.2.86 pandas python-dateutil six
    python tools/benchmark_loader.py --peer /tmp/peer
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from vlp.errors import UserError, run_command

BATCH = 100
COLUMNS = ("open_clip", "vlp", "vlp, 2 + 6 views")


def main() -> None:
    """Parse the command line, run the loaders in turns, print images a second of processor time and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, metavar="DIR", help="folder with webdataset 0.2.86 and pandas")
    parser.add_argument("--images", type=int, default=1000, metavar="N", help="of each turn (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=5, metavar="N", help="default: %(default)s")
    parser.add_argument("--read", choices=COLUMNS, help=argparse.SUPPRESS)
    parser.add_argument("--shards", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.read:
        seconds = read_with_peer(args) if args.read == COLUMNS[0] else read(args, views=args.read == COLUMNS[2])
        print(json.dumps(seconds))
        return
    if args.peer and not (args.peer / "webdataset").is_dir():
        raise UserError(f"--peer {args.peer} has no webdataset; fill it by the command in --help")

    columns = COLUMNS if args.peer else COLUMNS[1:]
    with tempfile.TemporaryDirectory() as folder:
        size = write_shards(Path(folder), args.images)
        print(f"{args.images} JPEGs of 500 x 375, {size / args.images / 1024:.0f} KiB each, to 224 pixels; per core:")
        rates: dict[str, list[float]] = {column: [] for column in columns}
        for _ in range(args.turns):
            for column in columns:
                rates[column].append(args.images / in_a_process(column, folder, args))
    for column, found in rates.items():
        print(f"{column:>20}: {median(found):7.0f} images/s   ({', '.join(f'{rate:.0f}' for rate in found)})")
    if args.peer:
        ratios = [ours / theirs for theirs, ours in zip(rates[COLUMNS[0]], rates[COLUMNS[1]], strict=True)]
        print(f"vlp over open_clip: {median(ratios):.2f} ({', '.join(f'{ratio:.2f}' for ratio in ratios)})")


def in_a_process(column: str, folder: str, args: argparse.Namespace) -> float:
    """Seconds of processor time that one turn takes, in a fresh process."""
    command = [sys.executable, __file__, "--read", column, "--shards", folder, "--images", str(args.images)]
    paths = [str(args.peer)] if column == COLUMNS[0] else []
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([*paths, *sys.path[1:]])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{column} failed: {(done.stderr.splitlines() or ['no message'])[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def write_shards(folder: Path, images: int) -> int:
    """Four shards of pictures with detail at every scale, as photographs have; returns the bytes of the JPEGs."""
    import numpy as np
    import webdataset
    from PIL import Image

    rng, size = np.random.default_rng(0), 0
    words = ["a", "photo", "of", "two", "small", "dogs", "on", "green", "grass", "near", "wooden", "benches", "and"]
    for shard in range(4):
        with webdataset.TarWriter(str(folder / f"{shard}.tar"), encoder=False) as tar:
            for number in range(shard, images, 4):
                pixels = np.zeros((375, 500, 3), np.float32)
                for scale in (1, 4, 16, 64, 256):
                    noise = rng.integers(0, 256, (375 // scale + 1, 500 // scale + 1, 3), dtype=np.uint8)
                    layer = Image.fromarray(noise).resize((500, 375), Image.Resampling.BICUBIC)
                    pixels += np.asarray(layer, np.float32) * scale**0.25 / 11.25  # the weights' sum
                stream = io.BytesIO()
                Image.fromarray(pixels.astype(np.uint8)).save(stream, "JPEG", quality=90)
                size += stream.tell()
                caption = " ".join(rng.choice(words, 12)).encode()
                tar.write({"__key__": f"{number:06d}", "jpg": stream.getvalue(), "txt": caption, "json": b"{}"})
    return size


def read(args: argparse.Namespace, views: bool) -> float:
    """Seconds of processor time in which this project's loader reads the images, in this process."""
    import torch

    from vlp.data.loader import make_loader
    from vlp.objectives.graph import graph_needs
    from vlp.recipe import SHIPPED_RECIPES, load_recipe

    torch.set_num_threads(1)
    overrides = [
        *("scale=cc3m", f"data.train={args.shards}/*.tar", "data.fields=img2dataset", "data.workers=0"),
        *("data.streams=4", "data.shuffle=100", f"train.batch_size={BATCH}"),
        "objectives.contrastive.captions=raw",
    ]
    if views:
        overrides += ["objectives.distillation={type: self_distillation}"]
    recipe = load_recipe(SHIPPED_RECIPES / "clip.yaml", overrides, world_size=1)
    needs = graph_needs(recipe).data
    loader = make_loader(recipe, lambda _: needs, 0, 1, {}, 0)
    return seconds_of(lambda: next(loader), args.images)


def read_with_peer(args: argparse.Namespace) -> float:
    """The same by open_clip's training pipeline: its augmentation, its tokenizer, its WebDataset pipeline."""
    import open_clip
    import torch
    from open_clip.transform import image_transform_v2
    from open_clip_train.data import get_wds_dataset
    from open_clip_train.params import parse_args

    torch.set_num_threads(1)
    config = open_clip.get_model_preprocess_cfg(open_clip.create_model("ViT-B-16", load_weights=False))
    transform = image_transform_v2(open_clip.transform.PreprocessCfg(**config), is_train=True)
    options = parse_args([
        *("--train-data", f"{args.shards}/{{0..3}}.tar", "--train-num-samples", str(10 * args.images)),
        *("--dataset-type", "webdataset", "--batch-size", str(BATCH), "--workers", "0"),
    ])  # fmt: skip
    options.world_size = 1
    data = get_wds_dataset(options, transform, is_train=True, tokenizer=open_clip.get_tokenizer("ViT-B-16"))
    batches = iter(data.dataloader)
    return seconds_of(lambda: next(batches), args.images)


def seconds_of(load: Callable[[], object], images: int) -> float:
    """Processor time for `images`, after a first batch that fills buffers and caches."""
    load()
    begun = time.process_time()
    for _ in range(images // BATCH):
        load()
    return (time.process_time() - begun) * images / (images // BATCH * BATCH)


if __name__ == "__main__":
    run_command(main)
