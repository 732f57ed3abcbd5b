"""Encodes shards on a Ray cluster, whose machines share the cache folder."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from seektune.data.store.shard import ShardJob, ShardRecord, read_record

EXTRA = "--ray needs the package ray: pip install 'seektune[ray]'"


def ray_runner(address: str) -> Callable[[Sequence[ShardJob], Callable[[ShardRecord], None]], list[ShardRecord]]:
    """A runner of jobs on the cluster at an address; "auto" is the one that this machine belongs to.

    Ray Data maps the jobs, one block each. Blocks of a worker that is lost are run again.

    Raises:
        ValueError: Ray is not installed.
        OSError: no cluster answers at the address.
    """
    try:
        import ray
    except ImportError:
        raise ValueError(EXTRA) from None
    try:
        ray.init(address=address, ignore_reinit_error=True, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise OSError(
            f"--ray={address}: no Ray cluster answers ({reason}); start one with `ray start --head`"
        ) from None
    return _run


def _run(jobs: Sequence[ShardJob], done: Callable[[ShardRecord], None]) -> list[ShardRecord]:
    """Map the jobs over the cluster.

    Raises:
        ValueError, OSError: as `ShardJob.run`; the error of the first job that failed. Or the machines do not share the
            folder of the shards.
    """
    import ray

    ray.data.DataContext.get_current().enable_progress_bars = False
    blocks = ray.data.from_items([{"job": number} for number in range(len(jobs))], override_num_blocks=len(jobs))
    failures: dict[int, Exception] = {}
    for row in blocks.map(_Mapped(jobs)).iter_rows():
        if row["error"]:
            failures[row["job"]] = OSError(row["error"]) if row["is_os_error"] else ValueError(row["error"])
        else:
            done(ShardRecord(**row["record"]))
    if failures:
        raise failures[min(failures)]
    return [_shared(job) for job in jobs]


class _Mapped:
    """Runs a job by its number; an error is returned, as Ray would try a job that raises again."""

    def __init__(self, jobs: Sequence[ShardJob]):
        self._jobs = jobs

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        try:
            record = asdict(self._jobs[row["job"]].run())
        except (ValueError, OSError) as error:
            return {**row, "error": str(error), "is_os_error": isinstance(error, OSError), "record": None}
        return {**row, "error": "", "is_os_error": False, "record": record}


def _shared(job: ShardJob) -> ShardRecord:
    try:
        return read_record(job.folder, job.number)
    except (OSError, ValueError, TypeError):
        raise OSError(
            f"{job.folder}: shard {job.number} is not here; Ray's machines must share the cache folder, which "
            "XDG_CACHE_HOME chooses"
        ) from None
