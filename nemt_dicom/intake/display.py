"""The DICOM display pipeline (PS3.4 Annex N): stored values become brightness on a display.

Modality LUT (PS3.3 C.11.1) -> VOI LUT (PS3.3 C.11.2) -> polarity (PS3.3 C.7.6.3.1.2, C.11.6).
Each step maps one value to one value. So the pipeline runs once for every value between the
smallest and the largest stored value (at most 65536 values). Then each pixel is looked up.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from nemt_dicom.errors import Reason, Refused


def display_curve(
    dataset: Dataset, values: NDArray[np.int64], used: tuple[int, int]
) -> NDArray[np.float64]:
    """The brightness of each of `values`: (n,) float64 from 0 (black) to 1 (white).

    values: (n,) consecutive stored values.
    used: the smallest and the largest value of a pixel. They are shown black and white if the
        dataset has no VOI transformation.

    The result can hold NaN or infinity if the rescale or the window overflows. Raises `Refused` if
    an attribute has no usable value, or if all pixels have the same value.
    """
    with np.errstate(all="ignore"):
        rescaled = _modality(dataset, values)
        shown = _voi(dataset, rescaled)
        if shown is None:
            ends = rescaled[np.asarray(used) - values[0]]
            low, high = float(ends.min()), float(ends.max())
            if dataset.get("ModalityLUTSequence"):  # the table may not be monotonic
                inner = rescaled[used[0] - values[0] : used[1] - values[0] + 1]
                low, high = float(inner.min()), float(inner.max())
            if not high > low and np.isfinite([low, high]).all():
                raise Refused(Reason.NO_CONTRAST, "all pixels have the same value")
            shown = np.clip((rescaled - low) / (high - low), 0.0, 1.0)
    inverse = (
        dataset.PhotometricInterpretation == "MONOCHROME1"
        or dataset.get("PresentationLUTShape") == "INVERSE"
    )  # DX writes both for one inversion (PS3.3 table C.8-70): two do not cancel each other
    return np.asarray(1.0 - shown if inverse else shown, np.float64)


def _modality(dataset: Dataset, values: NDArray[np.int64]) -> NDArray[np.float64]:
    """The modality values of stored values (PS3.3 C.11.1)."""
    if dataset.get("ModalityLUTSequence"):
        return _look_up(dataset.ModalityLUTSequence[0], values)[0]
    slope = _number(dataset, "RescaleSlope", 1.0)
    return np.asarray(values * slope + _number(dataset, "RescaleIntercept", 0.0), np.float64)


def _voi(dataset: Dataset, rescaled: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Values from 0 to 1 by the first VOI transformation; None if the dataset has no usable one."""
    if dataset.get("VOILUTSequence"):
        if not np.isfinite(rescaled).all():
            return rescaled
        entries, full = _look_up(dataset.VOILUTSequence[0], np.rint(rescaled))
        return entries / full
    if dataset.get("WindowCenter") in (None, "") or dataset.get("WindowWidth") in (None, ""):
        return None
    center, width = _number(dataset, "WindowCenter", 0.0), _number(dataset, "WindowWidth", 0.0)
    function = dataset.get("VOILUTFunction") or "LINEAR"
    if width <= 0 or (function == "LINEAR" and width < 1):
        return None  # PS3.3 C.11.2.1.2 forbids it; some devices write 0 for "no window"
    return window(rescaled, center, width, function)


def _look_up(item: Dataset, values: NDArray[Any]) -> tuple[NDArray[np.float64], float]:
    """Looks whole-numbered `values` up in a LUT (PS3.3 C.11.1.1 and C.11.2.1.1).

    LUTDescriptor gives the number of entries, the first mapped value and the bits per entry. Values
    below or above the table get its first or its last entry.

    Returns the entries, and the largest value that an entry can have.
    """
    count, first, bits = (int(number) for number in item.LUTDescriptor)
    count = count % 65536 or 65536
    # The VR is US or SS. If no value reaches the table, it was read with the wrong sign.
    for start in (first, first - 65536, first + 65536):
        if start <= values.max() and start + count > values.min():
            first = start
            break
    data = item.LUTData
    words = np.frombuffer(data, "<u2") if isinstance(data, bytes) else np.atleast_1d(data)
    words = words.astype(np.int64) & 0xFFFF
    if bits <= 8 and words.size < count:  # each word holds two entries
        words = words.astype("<u2").view(np.uint8).astype(np.int64)
    entries = words[:count].astype(np.float64)
    index = np.clip(values - first, 0, entries.size - 1).astype(np.int64)
    return entries[index], max(float((1 << bits) - 1), float(entries.max()))


def window(
    values: NDArray[np.float64], center: float, width: float, function: str
) -> NDArray[np.float64]:
    """A VOI window with an output range from 0 to 1 (PS3.3 C.11.2.1.2 and C.11.2.1.3).

    function: LINEAR, LINEAR_EXACT or SIGMOID. Any other name raises `Refused`.
    """
    if function == "LINEAR":
        if width == 1:
            return np.where(values <= center - 0.5, 0.0, 1.0)
        return np.clip((values - (center - 0.5)) / (width - 1) + 0.5, 0.0, 1.0)
    if function == "LINEAR_EXACT":
        return np.clip((values - center) / width + 0.5, 0.0, 1.0)
    if function == "SIGMOID":
        return 1.0 / (1.0 + np.exp(-4.0 * (values - center) / width))
    raise Refused(Reason.INVALID_ATTRIBUTE, "VOILUTFunction is not LINEAR, LINEAR_EXACT or SIGMOID")


def _number(dataset: Dataset, keyword: str, default: float) -> float:
    """The first value of a numeric attribute. Raises `Refused` if it is not a finite number."""
    value = dataset.get(keyword)
    if value is None or value == "":
        return default
    try:
        number = float(value[0] if isinstance(value, list | tuple) or _is_multi(value) else value)
    except (TypeError, ValueError, IndexError) as error:
        raise Refused(Reason.INVALID_ATTRIBUTE, f"{keyword} is not a number") from error
    if not np.isfinite(number):
        raise Refused(Reason.NON_FINITE, f"{keyword} is not finite")
    return number


def _is_multi(value: Any) -> bool:
    return hasattr(value, "__getitem__") and not isinstance(value, str)
