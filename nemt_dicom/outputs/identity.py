"""UIDs of outputs: the same whenever the same output is made again (PS3.5 B.2).

The UID of an output is made from everything that decides its content, and from nothing else. So the
same UID never stands for two different answers. And a change that the output does not show makes no
second output.
"""

import json
import uuid

from nemt_dicom.config import OutputSettings
from nemt_dicom.model.explanation import Explanation

NEMT_NAMESPACE = uuid.UUID("6d8e2b4c-0f5a-5c1e-9a53-1d0b7c4e8f21")

REVISIONS = {"seg": 1, "seg_fractional": 1, "sc": 1}
"""The revision of the encoding of each kind of output.

A release that changes the encoding of a kind raises its number by one, so that its outputs get new
UIDs. `tests/outputs/test_identity.py` records the encoding of each revision. SoftwareVersions,
which names the release, is the one exception.
"""

SETTINGS = {
    "seg": ("seg_plane_geometry",),
    "seg_fractional": ("seg_plane_geometry",),
    "sc": ("sc_longest_side", "sc_jpeg_quality"),
}
"""The output settings that change each kind of output."""


def make_uid(
    *,
    source_uid: str,
    content_digest: str,
    explanation: Explanation,
    settings: OutputSettings,
    kind: str,
    part: str,
    index: int,
) -> str:
    """The UID of an output, of its series, or of a part of it.

    source_uid: SOP Instance UID of the image.
    content_digest: SHA-256 of the image's dataset. It is no part of the UID of a series, because a
        PACS may send an image again with other content.
    kind: "seg", "sc" or "seg_fractional".
    part: "instance", "series" or another UID inside.

    The name and the version of the bundle are part of it: they decide no explanation, but the
    output shows them. The release and the time of receipt are no part of it: an image that is
    explained again, by a later release or by a second service, is not shown twice.
    """
    provenance = explanation.provenance
    written = settings.model_dump(mode="json", include=set(SETTINGS[kind]))
    key = {
        "source": source_uid,
        "content": content_digest if part != "series" else "",
        "model": provenance.model_digest,
        "bundle": [provenance.bundle_name, provenance.bundle_version],
        "explain_below_threshold": (
            explanation.below_threshold and explanation.explain_below_threshold
        ),
        "settings": written,
        "kind": kind,
        "revision": REVISIONS[kind],
        "part": part,
        "index": index,
    }
    name = json.dumps(key, sort_keys=True, separators=(",", ":"))
    return f"2.25.{uuid.uuid5(NEMT_NAMESPACE, name).int}"
