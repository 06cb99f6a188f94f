"""An engine while it is built: its plan is written beside the store's engines, and becomes one of them in one step."""

import hashlib
import json
import os
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from ..manifest import FileRecord, TensorRecord
from ..typed_json import from_json
from .private_files import sync_folder, write_private
from .record import EngineIdentity, EngineRecord, check_record


class Building:
    """What a builder has in hand: where to write, and what makes an engine of it."""

    def __init__(self, store: Path, folder: Path, identity: EngineIdentity, finished: EngineRecord | None) -> None:
        """Made by `EngineStore.building`.

        Args:
            store: the folder of the engines.
            folder: of this build alone, on the same disk.
            identity: of the engine.
            finished: the engine, where another process has built it.
        """
        self.identity = identity
        self.finished = finished
        self._store, self._folder = store, folder
        # a name of its own: the child of a builder that was killed may still write to that builder's
        self.plan = folder / f"plan-{secrets.token_hex(4)}"

    def commit(
        self,
        *,
        inputs: Sequence[TensorRecord],
        outputs: Sequence[TensorRecord],
        refittable: Sequence[str] = (),
        seconds: float,
        peak_memory: int,
    ) -> EngineRecord:
        """Makes an engine of the plan that was written.

        Args:
            inputs: of the engine, in its order.
            outputs: likewise.
            refittable: the weights that have to be given to it when it is opened.
            seconds: that the build took.
            peak_memory: of the process that built it, in bytes.

        Raises:
            FileNotFoundError: no plan was written.
            OSError: the disk is full, or broken.
            ValueError: the plan is empty, or the record would not be readable.
        """
        assert self.finished is None, "it is built"
        self.plan.chmod(0o600)
        with self.plan.open("r+b") as file:
            os.fsync(file.fileno())
            size = os.fstat(file.fileno()).st_size
            plan = FileRecord(size=size, sha256=hashlib.file_digest(file, "sha256").hexdigest())
        record = EngineRecord(
            identity=self.identity,
            plan=plan,
            inputs=tuple(inputs),
            outputs=tuple(outputs),
            refittable=tuple(refittable),
            built_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
            seconds=seconds,
            peak_memory=peak_memory,
        )
        text = record.text()
        if from_json(EngineRecord, json.loads(text), "record") != record:
            raise ValueError(f"the record of {self.identity.name} does not survive being written: {record}")
        check_record(record)
        written = self._folder / "record"
        write_private(written, text.encode())
        self._publish(written)
        self.finished = record
        return record

    def _publish(self, record: Path) -> None:
        """The plan first, the record last: an engine is there when its record is."""
        plan = self._store / f"{self.identity.name}.plan"
        self.plan.replace(plan)
        try:
            sync_folder(self._store)
            record.replace(plan.with_suffix(".json"))
            sync_folder(self._store)
        except BaseException:
            plan.with_suffix(".json").unlink(missing_ok=True)
            plan.unlink()
            raise
