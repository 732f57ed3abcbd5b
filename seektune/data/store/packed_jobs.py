"""Jobs as bytes for other processes: each process unpacks them once, and so makes their tokenizer and source once."""

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from seektune.data.store.shard import ShardJob, ShardRecord


@dataclass(frozen=True)
class PackedJobs:
    """The jobs of a preparation. Picklable; cheap to send with every job."""

    pickled: bytes

    @classmethod
    def of(cls, jobs: Sequence[ShardJob]) -> "PackedJobs":
        """Jobs that share their source and encoder, as they do after unpacking."""
        return cls(pickle.dumps(list(jobs)))

    def run(self, number: int) -> ShardRecord:
        """Run a job by its number; errors as of `ShardJob.run`."""
        return _unpacked(self.pickled)[number].run()


@lru_cache(maxsize=1)
def _unpacked(pickled: bytes) -> list[ShardJob]:
    jobs: list[ShardJob] = pickle.loads(pickled)
    return jobs
