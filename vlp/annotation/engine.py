"""Where work over shards runs: in this process, or on a Ray cluster."""

import pickle
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

from vlp.data.sources import is_remote
from vlp.errors import UserError

Engine = Literal["local", "ray"]
R = TypeVar("R")


def map_shards(
    make: Callable[[], Callable[[str], R]], shards: list[str], engine: Engine, actors: int = 1, gpus: float = 0
) -> Iterator[tuple[str, R]]:
    """Each shard with what the function that `make` returns gives for it, in any order.

    Args:
        make: called once in every process that works, to load models; picklable for Ray.
        actors, gpus: processes of the Ray engine, on a cluster or, where none is found, on this machine's cores; and
            GPUs of each.
    """
    if not shards:
        return
    if engine == "local":
        function = make()
        yield from ((shard, function(shard)) for shard in shards)
        return
    try:
        import ray
    except ImportError:
        raise UserError("--engine ray wants Ray: pip install -e '.[annotate]'") from None

    if not ray.is_initialized():
        ray.init(log_to_driver=False, logging_level="warning")
    ray.data.DataContext.get_current().enable_progress_bars = False  # ours counts shards
    rows = [{"shard": s, "path": s if is_remote(s) else str(Path(s).absolute())} for s in shards]
    items = ray.data.from_items(rows, override_num_blocks=len(rows))
    pool = ray.data.ActorPoolStrategy(size=actors)
    for row in items.map(_Actor, fn_constructor_args=(make,), compute=pool, num_gpus=gpus or None).iter_rows():
        yield row["shard"], pickle.loads(row["result"])


class _Actor:
    """Keeps what `make` loads from shard to shard."""

    def __init__(self, make: Callable[[], Callable[[str], Any]]):
        self.make = cache(make)

    def __call__(self, row: dict[str, str]) -> dict[str, str | bytes]:
        return {"shard": row["shard"], "result": pickle.dumps(self.make()(row["path"]))}
