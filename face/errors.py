"""The exception tree: errors of inputs and of the environment.

A caller's mistake raises ``ValueError`` instead. Four errors are both: they are about
a name that nothing has, and an address of the wrong form.

DffError
├── BadPhoto        a file is not a readable image within limits
├── BadVideo        a file is not a readable video, or none can be written there
├── BadLandmarks    a landmark file is missing, malformed or not finite
├── NoFace          a photo holds no face that can be found
├── BadFit          inverse rendering did not reach an acceptable fit
├── BadModel        a face model file is missing, malformed or of another version
│   └── UnknownModel            no face model has that name; also a ValueError
├── BadWeights      a weights file is malformed or of another model
│   └── UnknownWeights          no weights have that name; also a ValueError
├── NoRenderer      this machine lacks what a rendering backend needs
├── MissingExtra    a library of an optional part of the distribution is not installed
├── BadDataset      a dataset is incomplete, altered or of another plan
├── StorageError    storage refused or failed permanently
│   ├── TransientStorageError   storage failed temporarily
│   ├── BadPlace                no file can have that path or address; also a ValueError
│   ├── NotFound                no object has that key
│   ├── UnreadableObject        one object can't be read; the others may be
│   └── Conflict                a key that must be new holds something else
├── ServiceError    an aligner over HTTP refused a request or did not answer
├── ClusterError    a Ray cluster can't be reached, refuses the connection, or failed a job
│   └── BadClusterAddress       an address of the wrong form; also a ValueError
├── ShardFailed     the process that made a shard died, every time it was tried
├── Diverged        the training loss is not finite
└── BudgetExceeded  too many inputs failed
"""

from __future__ import annotations


class DffError(Exception):
    """Root of every error that the project raises on purpose."""

    @property
    def class_name(self) -> str:
        """The nearest class that the tree above lists: a module may have finer ones of its own."""
        return next(one.__name__ for one in type(self).__mro__ if not one.__name__.startswith("_"))


class BadPhoto(DffError):
    """A file is not a readable image within limits."""


class BadVideo(DffError):
    """A file is not a readable video, or none can be written to it."""


class BadLandmarks(DffError):
    """A landmark file is missing, malformed or holds values that are not finite."""


class NoFace(DffError):
    """A photo holds no face that can be found."""


class BadFit(DffError):
    """Inverse rendering did not reach an acceptable fit."""


class BadModel(DffError):
    """A face model file is missing, malformed or of another version."""


class UnknownModel(BadModel, ValueError):
    """No face model has that name."""


class BadWeights(DffError):
    """A weights file is malformed or belongs to another model."""


class UnknownWeights(BadWeights, ValueError):
    """No weights have that name."""


class NoRenderer(DffError):
    """This machine lacks what a rendering backend needs."""


class MissingExtra(DffError, ImportError):
    """A library of an optional part (extra) of the distribution is not installed.

    It is an ImportError too, for code that asks whether an optional part can be imported.
    """

    def __init__(self, library: str, extra: str) -> None:
        super().__init__(
            f"{library} is not installed; install it with: pip install 'deep-face-feature[{extra}]'"
        )
        self.library = library
        self.extra = extra

    def __reduce__(self) -> tuple[type[MissingExtra], tuple[str, str]]:
        return MissingExtra, (self.library, self.extra)


class BadDataset(DffError):
    """A dataset is incomplete, altered or of another plan."""


class StorageError(DffError):
    """Storage refused or failed permanently."""


class TransientStorageError(StorageError):
    """Storage failed temporarily; a retry may succeed."""


class BadPlace(StorageError, ValueError):
    """No such file can have that path or address, whatever the machine."""


class NotFound(StorageError):
    """No object has that key."""


class UnreadableObject(StorageError):
    """One object can't be read, by its key, its permissions or its archive; others may be."""


class Conflict(StorageError):
    """A key that must be new already holds something else."""


class ShardFailed(DffError):
    """The process that made a shard died, every time it was tried."""


class ServiceError(DffError):
    """An aligner over HTTP refused a request or did not answer."""

    def __init__(self, status: int, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.status = status  # of HTTP; 0 without an answer
        self.kind = kind  # of problem, as "busy"; "" when the answer is no problem details

    def __reduce__(self) -> tuple[type[ServiceError], tuple[int, str, str]]:
        return ServiceError, (self.status, self.kind, str(self))


class ClusterError(DffError):
    """A Ray cluster can't be reached, refuses the connection, or failed a job."""


class BadClusterAddress(ClusterError, ValueError):
    """The address of a Ray cluster has the wrong form."""


class Diverged(DffError):
    """Training diverged: the loss is not finite."""


class BudgetExceeded(DffError):
    """More inputs failed than the job's failure budget allows."""
