"""Work over processes: in order, a few pieces ahead, and no silence when one dies."""

import os

import pytest

from vlp.errors import UserError
from vlp.processes import processes


def test_results_come_in_order_and_little_is_begun_ahead() -> None:
    taken = []
    with processes(2) as mapper:
        for item, result in mapper(abs, (taken.append(number) or -number for number in range(40))):
            assert result == -item and len(taken) <= result + 6
    assert taken == list(range(40))


def leave(number: int) -> int:
    os._exit(number)


def fail(number: int) -> int:
    raise UserError(f"number {number}")


def test_a_process_that_fails_or_is_killed_is_told() -> None:
    with pytest.raises(UserError, match="number 7"), processes(2) as mapper:
        list(mapper(fail, [7, 8]))
    with pytest.raises(UserError, match=r"a worker process was killed, .* try fewer --workers"), processes(2) as mapper:
        list(mapper(leave, [9, 9]))
