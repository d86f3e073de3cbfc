"""The record of a run: lines of steps that are made again are dropped, and so is a line cut off by a kill."""

import json
from pathlib import Path

import pytest
import torch

from vlp.engine.monitor import Monitor
from vlp.engine.trainer import add_reports, stop_if_not_finite
from vlp.errors import UserError

LINE = {"loss": 1.0, "loss/a": 1.0, "weight/a": 0.5, "lr": 0.1, "samples_per_second": 3.0, "step_seconds": 0.3}


def test_a_resumed_run_keeps_the_lines_up_to_its_checkpoint(tmp_path: Path):
    lines = [json.dumps({"step": step, **LINE}) for step in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 4, "lo')
    with Monitor(tmp_path, start=2, steps=5) as monitor:
        monitor.log({"step": 3, **LINE, "loss": 7.0})
    kept = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in kept] == [(1, 1.0), (2, 1.0), (3, 7.0)]
    assert list((tmp_path / "tensorboard").iterdir())


def test_losses_add_up_over_micro_batches_and_weights_do_not():
    first = {"loss": torch.tensor(1.0), "loss/a": torch.tensor(2.0), "weight/a": torch.tensor(0.5)}
    second = {"loss": torch.tensor(3.0), "loss/a": torch.tensor(4.0), "weight/a": torch.tensor(0.25)}
    assert add_reports(add_reports({}, first), second) == {"loss": 4.0, "loss/a": 6.0, "weight/a": 0.25}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_before_the_update_and_is_named(bad: float):
    report = {"loss": torch.tensor(bad), "loss/good": torch.tensor(1.0), "loss/vqa": torch.tensor(bad)}
    with pytest.raises(UserError, match=r"step 8: loss/vqa is not finite; nothing was updated"):
        stop_if_not_finite(report, 7)
    stop_if_not_finite({"loss": torch.tensor(1.0)}, 7)
