"""The exceptions a user of KVTuner can meet.

::

    KVTunerError                 anything this package raises on purpose
    ├── InputError               what the user gave breaks a rule (exit code 2)
    │   ├── PolicyError          a policy, a precision pair or a policy file
    │   ├── SchemeError          a quantisation scheme
    │   ├── PromptError          a prompt set
    │   └── ModelError           a model that cannot be found, read or quantised
    ├── StoreError               the result store is locked, newer, or damaged
    ├── ComputeError             a worker died or the device ran out of memory
    └── CancelledError           the user asked a job to stop

Every message is one line: the rule, the value, the way out.
"""


class KVTunerError(Exception):
    """Base of everything this package raises on purpose; the message is one line."""


class InputError(KVTunerError):
    """What the user gave breaks a rule."""


class PolicyError(InputError):
    """A policy, a precision pair or a policy file is not valid."""


class SchemeError(InputError):
    """A quantisation scheme is not valid, or does not fit the model."""


class PromptError(InputError):
    """A prompt set cannot be read or is outside its limits."""


class ModelError(InputError):
    """A model cannot be found, read, or quantised with a reason given."""


class StoreError(KVTunerError):
    """The result store cannot be opened or read."""


class ComputeError(KVTunerError):
    """Model work failed on the worker."""


class CancelledError(KVTunerError):
    """A job stopped because somebody asked for it."""
