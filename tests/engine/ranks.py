"""Run a function on several gloo ranks, once a test module."""

import os
import socket
from collections.abc import Callable
from typing import Any

import torch.multiprocessing as mp


def _run(rank: int, function: Callable[..., None], world_size: int, port: int, arguments: tuple[Any, ...]) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_WORLD_SIZE": str(world_size)}
    function(*arguments)


def spawn_ranks(function: Callable[..., None], world_size: int, *arguments: Any) -> None:
    """Call `function(*arguments)` in `world_size` new processes with the environment of a launcher."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(_run, (function, world_size, port, arguments), nprocs=world_size)
