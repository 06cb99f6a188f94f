"""A folder of engines, each of which is there as a whole or not at all, and is checked before it is given."""

import contextlib
import hashlib
import io
import logging
import os
import shlex
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from ..model_folder import ModelFolder
from ..source import cache_folder
from .building import Building
from .files import EngineFiles, refuse
from .fit import Here, newest_that_fits, source
from .private_files import check_private_folder, make_private_folder, open_private, write_private
from .record import EngineIdentity, EngineRecord, built_at, read_record

logger = logging.getLogger(__name__)

_SHOWN = 4  # engines that do not fit, in a message


def default_store() -> "EngineStore":
    """The store in the user's cache."""
    return EngineStore(cache_folder() / "engines")


class EngineStore(EngineFiles):
    """The engines of one folder."""

    def record(self, name: str) -> EngineRecord:
        """The record of an engine, whose plan is there; of the plan only the size is looked at.

        Raises:
            FileNotFoundError: there is no such engine, or its plan is missing.
            PermissionError: others can write the record.
            ValueError: the record is broken, or of another engine, or the plan is of another size.
        """
        record = read_record(self.path(name, ".json"))
        size = self.path(name, ".plan").stat(follow_symlinks=False).st_size
        if size != record.plan.size:
            raise ValueError(f"{name}.plan is damaged: it has {size} bytes, {record.plan.size} were written")
        return record

    def records(self) -> list[EngineRecord]:
        """The engines, the newest first; what cannot be read is left out with a warning.

        Raises:
            PermissionError: others can write the folder.
        """
        records, broken = self._look()
        for name, error in broken.items():
            logger.warning("%s is left out: %s", name, _sentence(error))
        return records

    def find(
        self, folder: ModelFolder, network: str, *, flavour: str, version: str, gpu: str, gpu_name: str | None
    ) -> EngineRecord:
        """The newest engine of a network that can be loaded here and is of this model.

        Args:
            folder: of the model; its manifest says what the engine has to have been built from.
            network: of the folder.
            flavour: of the TensorRT that is to load it.
            version: of the same.
            gpu: compute capability, such as "sm89".
            gpu_name: of the very GPU.

        Raises:
            FileNotFoundError: the store has no engine of the network, or the folder has no such network.
            PermissionError: others can write the store, or the only engine.
            ValueError: the store has some, and none fits; says why, and how to build one.
        """
        here = Here(flavour=flavour, version=version, gpu=gpu, gpu_name=gpu_name)
        wanted = source(folder, network)
        records, broken = self._look(network)
        found, refused = newest_that_fits(records, wanted, here)
        if found is not None:
            return found
        for error in broken.values():
            if isinstance(error, PermissionError):
                raise error
        refused = [f"{name} is broken: {_sentence(error)}" for name, error in broken.items()] + refused
        command = self._build_command(folder.path, here)
        if not refused:
            raise FileNotFoundError(f"{self.folder} has no engine of {network}; build one: {command}")
        shown = refused if len(refused) <= _SHOWN else [*refused[:_SHOWN], f"{len(refused) - _SHOWN} more"]
        raise ValueError(f"no engine of {network} in {self.folder} fits: {'; '.join(shown)}; build one: {command}")

    def read_plan(self, record: EngineRecord) -> bytes:
        """The plan of an engine; these very bytes are those that were checked.

        Raises:
            FileNotFoundError: it is missing.
            PermissionError: others can write it, or the folder.
            ValueError: it is not what was built.
        """
        with self._open_plan(record) as file:
            content = file.readall()
        if len(content) != record.plan.size or hashlib.sha256(content).hexdigest() != record.plan.sha256:
            raise _changed(record)
        return content

    def check_plan(self, record: EngineRecord) -> None:
        """Reads the plan of an engine, and raises as `read_plan` does; memory stays flat."""
        with self._open_plan(record) as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != record.plan.sha256:
                raise _changed(record)

    def read_cache(self, record: EngineRecord) -> bytes | None:
        """What the engine's runtime kept of an earlier run; None where there is nothing.

        Raises:
            PermissionError: others can write it, or the folder.
        """
        check_private_folder(self.folder)
        try:
            with open_private(self.path(record.identity.name, ".cache")) as file:
                return file.readall()
        except FileNotFoundError:
            return None

    def keep_cache(self, record: EngineRecord, content: bytes) -> None:
        """Keeps what the engine's runtime wants to have the next time; not where the engine is gone, or being changed.

        Raises:
            PermissionError: others can write the folder, or this user cannot.
        """
        check_private_folder(self.folder)
        name = record.identity.name
        with (
            contextlib.suppress(BlockingIOError, FileNotFoundError, ValueError),
            self.alone(name, waits=refuse) as folder,
        ):
            if self.record(name) == record:  # and no other was built in its place
                write_private(folder / "cache", content)
                (folder / "cache").replace(self.path(name, ".cache"))

    @contextlib.contextmanager
    def building(self, identity: EngineIdentity, *, progress: Callable[[str], None]) -> Iterator[Building]:
        """The build of an engine, by one process at a time; the next one finds what the first one has built.

        What the block has not committed is gone when it ends, and after a process that was killed, when the next one
        builds the same engine.

        Args:
            identity: of the engine.
            progress: told when another process has to be waited for.

        Raises:
            PermissionError: others can write the folder, or the engine that is there.
            OSError: the folder cannot be written.
            ValueError: there can be no such engine.
        """
        name = identity.name
        self.path(name, ".json")
        make_private_folder(self.folder)
        waits = partial(progress, f"waiting for another build of {name} in {self.folder}")
        with self.alone(name, waits=waits) as folder:
            finished = self._finished(name)
            if finished is None:
                self.discard(name)
            try:
                yield Building(self.folder, folder, identity, finished)
            except OSError as error:
                error.filename = error.filename or str(self.folder)  # a full disk does not say which one it is
                raise

    def remove(self, record: EngineRecord) -> int:
        """Removes an engine.

        Returns:
            How many bytes that were; 0 where another process is building it now, and it is left alone.
        """
        with contextlib.suppress(BlockingIOError), self.alone(record.identity.name, waits=refuse):
            return self.discard(record.identity.name)
        return 0

    def _build_command(self, model: Path, here: Here) -> str:
        """What a user types to build engines of a model for here, into this store."""
        command = ["safelight", "build", str(model), "--target", here.flavour]
        if here.flavour == "tensorrt-rtx" and here.gpu is not None:
            command += ["--gpu", here.gpu]
        if self.folder != default_store().folder:
            command += ["--output", str(self.folder)]
        return shlex.join(command)

    def _finished(self, name: str) -> EngineRecord | None:
        """The engine if it is whole: a build that is asked for is what mends one that is not."""
        try:
            record = self.record(name)
            self.check_plan(record)
        except (FileNotFoundError, ValueError) as error:
            if os.path.lexists(self.path(name, ".json")):
                logger.warning("%s is built again: %s", name, _sentence(error))
            return None
        return record

    def _look(self, network: str | None = None) -> tuple[list[EngineRecord], dict[str, Exception]]:
        """The engines (of a network), the newest first; and those that are broken, by their names."""
        records: list[EngineRecord] = []
        broken: dict[str, Exception] = {}
        for name in self.names():
            if network not in (None, name.rpartition("-")[0]) or not os.path.lexists(self.path(name, ".json")):
                continue
            try:
                records.append(self.record(name))
            except (OSError, ValueError) as error:
                broken[name] = error
        return sorted(records, key=built_at, reverse=True), broken

    def _open_plan(self, record: EngineRecord) -> io.FileIO:
        check_private_folder(self.folder)
        file = open_private(self.path(record.identity.name, ".plan"))
        if os.fstat(file.fileno()).st_size != record.plan.size:  # gigabytes need not be read to tell that
            file.close()
            raise _changed(record)
        return file


def _changed(record: EngineRecord) -> ValueError:
    name = record.identity.name
    return ValueError(f"{name}.plan is not what was built: it is damaged or was changed; build it again")


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}"
    return str(error)
