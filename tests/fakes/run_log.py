"""A run log in memory."""

import threading
from dataclasses import replace


class FakeRunLog:
    def __init__(self, records=()):
        self.records = {record.id: record for record in records}
        self.updates = []
        self.failing = None
        self._lock = threading.Lock()

    def add_run(self, record):
        with self._lock:
            self.records[record.id] = record

    def update_run(self, run, *, status=None, progress=None, error=None):
        with self._lock:
            if self.failing is not None:
                raise self.failing
            self.updates.append((run, status, progress))
            changes = {} if status is None else {"status": status}
            if progress is not None:
                changes |= {"stage": progress.stage, "done": progress.done, "total": progress.total}
            if error is not None:
                changes["error"] = error
            if run in self.records:
                self.records[run] = replace(self.records[run], **changes)

    def run(self, run):
        return self.records.get(run)

    def runs(self, *, kinds=(), statuses=()):
        found = [
            record
            for record in self.records.values()
            if (not kinds or record.kind in kinds) and (not statuses or record.status in statuses)
        ]
        return tuple(sorted(found, key=lambda record: record.created, reverse=True))
