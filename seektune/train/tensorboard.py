"""TensorBoard events, written in the training thread, so that a full disk is an error like any other."""

from collections.abc import Mapping
from pathlib import Path
from time import time
from typing import Self

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from seektune.io.atomic import AtomicAppender


class Events:
    """A new events file; viewers drop events of earlier files after `last_step`. A context manager.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, folder: Path, last_step: int):
        folder.mkdir(exist_ok=True)
        self._file = AtomicAppender(folder / f"events.out.tfevents.{time():.6f}.seektune")
        self._records = RecordWriter(self._file)
        self._records.write(Event(wall_time=time(), file_version="brain.Event:2").SerializeToString())
        begin = SessionLog(status=SessionLog.START)
        self._records.write(Event(wall_time=time(), step=last_step + 1, session_log=begin).SerializeToString())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Write the values of a step by tag."""
        summary = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()])
        self._records.write(Event(wall_time=time(), step=step, summary=summary).SerializeToString())
