"""Every error that this project raises on purpose.

NemtError
├── ConfigError        a setting is unknown or has a value that is not allowed
├── BundleError        a model bundle is damaged, incomplete or of another version
│   └── SelfTestError  the golden image of the bundle does not give the recorded result
├── StateInUse         another service holds the state folder
├── StateError         the state folder or its database cannot be used
├── DamagedBlob        a file of the spool does not hold the bytes that were stored
├── DataError          training or evaluation data are missing or contradict themselves
├── TrainingError      a training run cannot go on
├── BadOutput          an explanation holds NaN or infinity; it is never sent
└── Refused            this service does not explain the instance (see `Reason`)
"""

from enum import StrEnum


class NemtError(Exception):
    """Root of all errors that are raised on purpose. The text names the problem and a remedy."""


class ConfigError(NemtError):
    """A setting is unknown or its value is not allowed."""


class BundleError(NemtError):
    """A bundle is damaged, incomplete or of a schema version that this release cannot read."""


class SelfTestError(BundleError):
    """The golden image of a bundle does not give the recorded tensor, response or mask."""


class StateInUse(NemtError):
    """Another `nemt-dicom serve` holds the lock of the state folder."""


class StateError(NemtError):
    """The state folder or its database cannot be used."""


class DamagedBlob(NemtError):
    """A file of the spool does not hold the stored bytes: its name is not their SHA-256."""


class DataError(NemtError):
    """Training or evaluation data are missing, unreadable or contradict themselves."""


class TrainingError(NemtError):
    """A training run cannot go on: it diverged, it collapsed or its options are wrong."""


class BadOutput(NemtError):
    """An explanation holds NaN or infinity. (An empty explanation is valid.)"""


class Reason(StrEnum):
    """Why an instance is refused. `nemt-dicom jobs` and the log show these codes."""

    # The listener checks the header and refuses the instance on the wire.
    INVALID_UID = "invalid_uid"
    UID_MISMATCH = "uid_mismatch"
    UNPARSABLE = "unparsable"
    MISSING_ATTRIBUTE = "missing_attribute"
    NO_PIXEL_DATA = "no_pixel_data"
    INVALID_SIZE = "invalid_size"
    TOO_LARGE = "too_large"
    # The worker checks the rest. The instance was acknowledged; its state becomes `refused`.
    SOP_CLASS = "sop_class"
    NOT_CR_DX = "not_cr_dx"
    FOR_PROCESSING = "for_processing"
    DERIVED_OUTPUT = "derived_output"
    NOT_CHEST = "not_chest"
    LATERAL_VIEW = "lateral_view"
    MULTI_FRAME = "multi_frame"
    COLOUR = "colour"
    BELOW_MINIMUM_AGE = "below_minimum_age"
    BURNED_IN = "burned_in_annotation"
    TRANSFER_SYNTAX = "transfer_syntax"
    INVALID_ATTRIBUTE = "invalid_attribute"
    DECODE_FAILED = "decode_failed"
    NON_FINITE = "non_finite"
    NO_CONTRAST = "no_contrast"


class Refused(NemtError):
    """This service does not explain the instance.

    reason: the code; stable over releases.
    detail: a description of the problem, without patient data.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason.value}: {detail}")
        self.reason = reason
        self.detail = detail
