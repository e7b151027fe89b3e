"""Every error this project raises on purpose.

NemtError
├── ConfigError        a setting is unknown or has a value that is not allowed
├── BundleError        a model bundle is damaged, incomplete or of another version
│   └── SelfTestError  the bundle's golden image no longer gives the recorded answer
├── StateInUse         another service holds the state folder
├── StateError         the state folder or its database cannot be used
├── DamagedBlob        a file of the spool is not what was stored
├── DataError          training or evaluation data are missing or contradict themselves
├── TrainingError      a training run cannot go on
├── BadOutput          an explanation holds NaN or infinity; it is never sent
└── Refused            an instance is not one this service explains (see `Reason`)
"""

from enum import StrEnum


class NemtError(Exception):
    """Root of all errors raised on purpose. The text names what is wrong and what to do."""


class ConfigError(NemtError):
    """A setting is unknown or its value is not allowed."""


class BundleError(NemtError):
    """A model bundle is damaged, incomplete or of a schema version this release cannot read."""


class SelfTestError(BundleError):
    """The golden image of a bundle does not give the recorded tensor, response or mask."""


class StateInUse(NemtError):
    """Another `nemt-dicom serve` holds the lock of the state folder."""


class StateError(NemtError):
    """The state folder or its database cannot be used as it is."""


class DamagedBlob(NemtError):
    """A file of the spool does not hold the bytes that its name, their SHA-256, says."""


class DataError(NemtError):
    """Training or evaluation data are missing, unreadable or contradict themselves."""


class TrainingError(NemtError):
    """A training run cannot go on: diverged, collapsed or misconfigured."""


class BadOutput(NemtError):
    """An explanation holds NaN or infinity. An empty explanation is valid, this is not."""


class Reason(StrEnum):
    """Why an instance is refused: the code shown by `nemt-dicom jobs` and written to the log."""

    # Found by the bounded look at the header, refused on the wire.
    INVALID_UID = "invalid_uid"
    UID_MISMATCH = "uid_mismatch"
    UNPARSABLE = "unparsable"
    MISSING_ATTRIBUTE = "missing_attribute"
    NO_PIXEL_DATA = "no_pixel_data"
    INVALID_SIZE = "invalid_size"
    TOO_LARGE = "too_large"
    # Found later; the instance was acknowledged and ends as `refused`.
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
    """An instance is not one this service explains.

    `reason` is the stable code; `detail` says what was found and holds no patient data.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason.value}: {detail}")
        self.reason = reason
        self.detail = detail
