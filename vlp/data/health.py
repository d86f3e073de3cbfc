"""What a reader could not use: counted by reason, reported, and too much when it is more than a share."""

import sys
from collections import Counter, deque

from vlp.data.shards import top_reasons
from vlp.errors import UserError

WINDOW = 1000
"""The share of bad samples is that of the last so many."""


class StreamHealth:
    """One stream's bad samples and shards, against `data.bad_share`."""

    def __init__(self, bad_share: float):
        self.bad_share = bad_share
        self.last: deque[str | None] = deque(maxlen=WINDOW)
        self.bad = self.failed_shards = 0
        self.skipped: Counter[str] = Counter()

    def count(self, reason: str | None) -> None:
        """Take in a sample: why it is unusable, or None. Raises `UserError` when too many of the last are."""
        if len(self.last) == WINDOW:
            self.bad -= self.last[0] is not None
        self.last.append(reason)
        if reason is None:
            return
        self.bad += 1
        self.skipped[reason] += 1
        if len(self.last) == WINDOW and self.bad > self.bad_share * WINDOW:
            raise UserError(
                f"data.train: {self.bad} of the last {WINDOW} samples of a reader could not be used, more than "
                f"data.bad_share={self.bad_share}: {top_reasons(Counter(filter(None, self.last)))}; mend them, or "
                "raise data.bad_share"
            )

    def fail_shard(self, reason: str, shards: int) -> None:
        """Report a shard that was given up, one of `shards` of an epoch. Raises `UserError` when too many were; one
        alone among several is never too many."""
        self.failed_shards += 1
        self.skipped["unreadable_shard"] += 1
        print(f"data: what is left of a shard is skipped: {reason}", file=sys.stderr, flush=True)
        if self.failed_shards > self.bad_share * shards and (self.failed_shards > 1 or shards == 1):
            raise UserError(
                f"data.train: {self.failed_shards} of a reader's {shards} shards could not be read in this epoch, more "
                f"than data.bad_share={self.bad_share}; the last: {reason}"
            )

    def begin_epoch(self) -> None:
        """Shards are judged epoch by epoch."""
        self.failed_shards = 0

    def take_skipped(self) -> Counter[str]:
        """What was skipped since the last call."""
        skipped, self.skipped = self.skipped, Counter()
        return skipped
