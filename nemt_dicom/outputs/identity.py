"""UIDs of outputs: the same whenever the same output is made again (PS3.5 B.2).

An output's UID hangs on everything that decides its content, and on nothing else. So the same UID
never stands for two different answers, and nothing is shown twice because something has changed
that the output does not show.
"""

import json
import uuid

from nemt_dicom.config import OutputSettings
from nemt_dicom.model.explanation import Explanation

NEMT_NAMESPACE = uuid.UUID("6d8e2b4c-0f5a-5c1e-9a53-1d0b7c4e8f21")

REVISIONS = {"seg": 1, "seg_fractional": 1, "sc": 1}
"""How a release encodes each kind of output. A release that encodes a kind otherwise raises its
number by one, so that its outputs get UIDs of their own; `tests/outputs/test_identity.py` records
what each number stands for. SoftwareVersions, which names the release, is the one exception.
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
    content_digest: SHA-256 of the image's dataset; it does not count for a series, because a PACS
        sends an image again with other content.
    kind: "seg", "sc" or "seg_fractional".
    part: "instance", "series" or another UID inside.

    The name and the version of the bundle count, although they decide no explanation: they stand
    in the output. The release and the time of receipt do not count: an image that is explained
    again, by a later release or by a second service, is not shown twice.
    """
    provenance = explanation.provenance
    written = settings.model_dump(mode="json", include=set(SETTINGS[kind]))
    key = {
        "source": source_uid,
        "content": content_digest if part != "series" else "",
        "model": provenance.model_digest,
        "bundle": [provenance.bundle_name, provenance.bundle_version],
        "explain_below_threshold": explanation.explain_below_threshold,
        "settings": written,
        "kind": kind,
        "revision": REVISIONS[kind],
        "part": part,
        "index": index,
    }
    name = json.dumps(key, sort_keys=True, separators=(",", ":"))
    return f"2.25.{uuid.uuid5(NEMT_NAMESPACE, name).int}"
