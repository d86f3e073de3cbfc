"""A user's mistake is one line and exit code 2."""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from vlp.errors import UserError, nearest, run_command


def leave(main) -> int | str | None:
    with pytest.raises(SystemExit) as left:
        run_command(main)
    return left.value.code


def test_a_message_is_one_line_and_survives_a_process_border() -> None:
    error = UserError("file x:\n  wrong\tthere")
    assert str(error) == "file x: wrong there"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    def mistaken() -> None:
        raise UserError("train.steps: given 0\nallowed are 1 and more")

    def interrupted() -> None:
        raise KeyboardInterrupt

    def broken() -> None:
        raise RuntimeError("a bug keeps its traceback")

    assert leave(mistaken) == 2
    assert capsys.readouterr().err == "error: train.steps: given 0 allowed are 1 and more\n"
    assert leave(interrupted) == 130
    assert leave(lambda: None) == 0
    assert leave(lambda: 1) == 1
    with pytest.raises(RuntimeError, match="traceback"):
        run_command(broken)


def test_nearest() -> None:
    assert nearest("stesp", ["steps", "seed"]) == "; did you mean 'steps'?"
    assert nearest("zzz", ["steps", "seed"]) == ""
    assert nearest("x", []) == ""


def test_the_command_says_one_line(repository: Path) -> None:
    command = [sys.executable, "tools/train.py", "recipes/clip.yaml", "train.stesp=20", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=repository)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: recipes/clip.yaml: unknown key 'train.stesp'; did you mean 'steps'?")
