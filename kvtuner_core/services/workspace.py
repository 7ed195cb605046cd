"""What every use case works with: settings, the store, the place where model work runs, and the queue."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

from platformdirs import user_data_path

from kvtuner_core.compute import DaskCompute, InlineCompute
from kvtuner_core.domain.ports import Compute
from kvtuner_core.errors import InputError
from kvtuner_core.jobs.queue import JobQueue
from kvtuner_core.store import Store

DATA_FOLDER = Path(__file__).resolve().parents[2] / "data"
"""The project's `data` folder."""

MOST_WORKERS = 256
"""Most worker processes that this machine is asked to start."""

_STORE_NAME = "kvtuner.duckdb"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Where things are kept and what may be read.

    Attributes:
        home: Folder of converted models and, by default, of the store.
        store_path: The store's file, or ``None`` for one in memory.
        scheduler: Address of an existing Dask scheduler such as ``tcp://host:8786``, or ``None``.
        workers: Worker processes that share the CPU, or most of those with a GPU each; ``None`` means
            one, or one per GPU.
        model_roots: Folders in which local models and prompt files may lie; ``None`` means anywhere,
            an empty tuple nowhere.
    """

    home: Path
    store_path: Path | None
    scheduler: str | None = None
    workers: int | None = None
    model_roots: tuple[Path, ...] | None = None

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None, *, loopback: bool = True) -> "Settings":
        """Read the variables ``KVTUNER_HOME``, ``_STORE``, ``_SCHEDULER``, ``_WORKERS`` and ``_MODEL_ROOTS``.

        Args:
            environ: The variables, by default those of this process.
            loopback: Whether only this machine can reach the server. If others can and no roots
                are set, no local path is allowed.

        Raises:
            InputError: If a variable is not usable.
        """
        variables = os.environ if environ is None else environ
        home = Path(variables.get("KVTUNER_HOME") or user_data_path("kvtuner")).expanduser().absolute()
        store = Path(variables.get("KVTUNER_STORE") or home / _STORE_NAME).expanduser().absolute()
        roots = _roots(variables.get("KVTUNER_MODEL_ROOTS", ""))
        if roots is None and not loopback:
            roots = ()
        return cls(
            home=home,
            store_path=store,
            scheduler=variables.get("KVTUNER_SCHEDULER") or None,
            workers=_workers(variables.get("KVTUNER_WORKERS", "")),
            model_roots=roots,
        )

    def with_store(self, path: Path | None) -> "Settings":
        """These settings with another store file."""
        return self if path is None else replace(self, store_path=path.expanduser().absolute())

    def in_memory(self) -> "Settings":
        """These settings with a store that is forgotten at the end."""
        return replace(self, store_path=None)

    @property
    def model_cache(self) -> Path:
        """Folder in which converted models are kept."""
        return self.home / "models"


def _workers(text: str) -> int | None:
    if not text.strip():
        return None
    if not text.strip().isdecimal() or not 1 <= int(text) <= MOST_WORKERS:
        raise InputError(f"KVTUNER_WORKERS must be a whole number from 1 to {MOST_WORKERS}; got {text!r}.")
    return int(text)


def _roots(text: str) -> tuple[Path, ...] | None:
    parts = [part for part in text.split(os.pathsep) if part.strip()]
    if not parts:
        return None
    roots = tuple(Path(part).expanduser().absolute() for part in parts)
    for root in roots:
        if not root.is_dir():
            raise InputError(f"KVTUNER_MODEL_ROOTS must name existing folders; got {str(root)!r}. Create or remove it.")
    return roots


def is_allowed(path: Path, roots: tuple[Path, ...] | None) -> bool:
    """Whether ``path``, links resolved, lies in one of ``roots`` (``None``: anywhere)."""
    if roots is None:
        return True
    real = path.resolve()
    return any(real.is_relative_to(root.resolve()) for root in roots)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workspace:
    """The open parts that use cases join.

    Attributes:
        settings: Where things are.
        store: Results, runs and uploads.
        compute: Where model work runs.
        queue: Long work, one after another on each device.
    """

    settings: Settings
    store: Store
    compute: Compute
    queue: JobQueue

    @classmethod
    def open(cls, settings: Settings, *, inline: bool) -> "Workspace":
        """Open the store and prepare compute; no model is loaded and no worker is started yet.

        Args:
            settings: Where things are.
            inline: Whether models run in this process, as for the command line and notebooks,
                instead of on Dask workers.

        Raises:
            StoreError: If the store is locked, newer or damaged.
        """
        if settings.store_path is not None:
            try:
                settings.store_path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InputError(
                    f"The store's folder must be writable; got {str(settings.store_path.parent)!r} "
                    f"({error.strerror}). Set KVTUNER_STORE or --store to another file."
                ) from error
        store = Store.open(settings.store_path)
        compute: Compute
        if inline:
            compute = InlineCompute(cache_dir=settings.model_cache, roots=settings.model_roots)
        else:
            compute = DaskCompute(
                cache_dir=settings.model_cache,
                roots=settings.model_roots,
                scheduler=settings.scheduler,
                processes=settings.workers,
            )
        return cls(settings=settings, store=store, compute=compute, queue=JobQueue(store))

    def __enter__(self) -> "Workspace":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the queue, release the models or workers, and close the store."""
        self.queue.close()
        self.compute.close()
        self.store.close()
