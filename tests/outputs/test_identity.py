"""The same UID is the same answer, and nothing that an output does not show changes its UID."""

import hashlib
import shutil
from dataclasses import replace
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset, dcmread
from pydicom.data import get_testdata_file
from pydicom.filewriter import dcmwrite

from nemt_dicom.config import ExplanationSettings, InputSettings, OutputSettings
from nemt_dicom.intake.header import dataset_offset
from nemt_dicom.model.bundle import Bundle, save_figures, shipped_folder
from nemt_dicom.model.explainer import Explainer
from nemt_dicom.model.manifest import signed
from nemt_dicom.outputs import derived, identity
from nemt_dicom.outputs.derived import Origin
from nemt_dicom.outputs.secondary_capture import build_secondary_capture, legend
from nemt_dicom.outputs.segmentation import build_fractional, build_segmentation
from nemt_dicom.pipeline import build_outputs, content_digest, read_source
from nemt_dicom.state.records import Output
from tests.outputs.output_kit import explanation, origin, pixels, source

KINDS = ("seg", "sc", "seg_fractional")
PARTS = ("instance", "series", "tracking", "dimension")


Built = tuple[Output, bytes]


def build(made_from: Origin) -> dict[str, Built]:
    outputs = (
        build_segmentation(made_from),
        build_secondary_capture(made_from, pixels()),
        build_fractional(made_from),
    )
    return {built[0].kind: built for built in outputs}


def uids(made_from: Origin, part: str = "instance") -> dict[str, str]:
    return {kind: made_from.uid(kind, part) for kind in KINDS}


def other_provenance(**changes: str) -> Origin:
    base = explanation()
    return origin(explained=replace(base, provenance=replace(base.provenance, **changes)))


def test_all_uids_of_an_image_differ() -> None:
    made = [origin().uid(kind, part, i) for kind in KINDS for part in PARTS for i in (1, 2)]
    assert len(set(made)) == len(made)
    assert all(uid.startswith("2.25.") and len(uid) <= 44 for uid in made)
    assert uids(origin()) == uids(origin())


@pytest.mark.parametrize(
    "other",
    [
        origin(source(SOPInstanceUID="1.2.3.9")),
        other_provenance(model_digest="cd" * 32),
        other_provenance(bundle_name="other"),
        other_provenance(bundle_version="2.0"),
    ],
    ids=["image", "model", "name", "version"],
)
@pytest.mark.parametrize("part", PARTS)
def test_what_every_output_shows_changes_every_uid(other: Origin, part: str) -> None:
    assert not set(uids(origin(), part).values()) & set(uids(other, part).values())


def test_the_choice_to_explain_below_the_threshold_counts_below_it_only() -> None:
    def chosen(p: float) -> list[Origin]:
        return [origin(explained=explanation(p, explain_below_threshold=e)) for e in (False, True)]

    before, after = chosen(0.4)
    for part in PARTS:
        assert not set(uids(before, part).values()) & set(uids(after, part).values())
    before, after = chosen(0.9)
    assert build(before) == build(after)


def test_other_content_stays_in_its_series() -> None:
    """A PACS sends an image again with other content."""
    other = origin(digest="d2")
    assert uids(other, "series") == uids(origin(), "series")
    assert not set(uids(other).values()) & set(uids(origin()).values())


CHANGES: dict[str, Any] = {
    "seg_plane_geometry": "none",
    "seg_fractional": True,
    "sc_longest_side": 800,
    "sc_jpeg_quality": 80,
}
CHANGED = {
    "seg_plane_geometry": {"seg", "seg_fractional"},
    "seg_fractional": set(),  # decides whether one is made
    "sc_longest_side": {"sc"},
    "sc_jpeg_quality": {"sc"},
}


@pytest.mark.parametrize("setting", OutputSettings.model_fields)
def test_a_setting_changes_the_uids_of_what_it_changes(setting: str) -> None:
    before, after = origin(), origin(**{setting: CHANGES[setting]})
    for part in PARTS:
        one, other = uids(before, part), uids(after, part)
        assert {kind for kind in KINDS if one[kind] != other[kind]} == CHANGED[setting]
    for kind, (_, data) in build(before).items():
        same = data == build(after)[kind][1]
        assert same is (kind not in CHANGED[setting]), kind


def test_another_release_changes_software_versions_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = build(origin())
    monkeypatch.setattr(derived, "__version__", "99.0.0")
    for kind, built in build(origin()).items():
        old, new = (dcmread(BytesIO(data)) for _, data in (before[kind], built))
        assert old != new
        for ds in (old, new):
            del ds.SoftwareVersions
            del ds.ContributingEquipmentSequence[0].SoftwareVersions
        assert old == new


@pytest.mark.parametrize("kind", KINDS)
def test_another_revision_of_a_kind_changes_its_uids(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    before = uids(origin())
    monkeypatch.setitem(identity.REVISIONS, kind, identity.REVISIONS[kind] + 1)
    assert {name for name in KINDS if uids(origin())[name] != before[name]} == {kind}


# --- an encoding and its revision ---

RECORDED = {
    "seg": (1, "03077446c0748f6e0ff473a8d0a0519d74001651fc757b47e74a22076403cbab"),
    "sc": (1, "d6fc8e38cd020d5c455477ef3a12842273effb763030fb14bf8399b968fb1865"),
    "seg_fractional": (1, "5df05e4cd43dd3dab5c01f3386f8d6b9dcdc6db4ca4319460a1e2619eacc4436"),
}


def encoding(kind: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """SHA-256 of the dataset of a fixed input, with fixed UIDs and versions.

    JPEG data and what follows from their length are left out, for they are a library's. Of the
    overlay the words of its legend count.
    """
    monkeypatch.setattr(Origin, "uid", lambda *_: "2.25.1")
    monkeypatch.setattr(derived, "__version__", "0")
    header = source(TimezoneOffsetFromUTC="+0100", PixelSpacing=[0.2, 0.2], PatientAge="051Y")
    data = build(origin(header))[kind][1]
    if kind == "seg":
        return hashlib.sha256(data[dataset_offset(BytesIO(data)) :]).hexdigest()
    ds = dcmread(BytesIO(data))
    for keyword in ("PixelData", "LossyImageCompressionRatio", "Rows", "Columns"):
        if kind == "sc" or keyword == "PixelData":
            ds.pop(keyword, None)
    buffer = BytesIO()
    bare = Dataset(ds)
    dcmwrite(buffer, bare, implicit_vr=False, little_endian=True)
    words = [line.text for line in legend(explanation())] if kind == "sc" else []
    return hashlib.sha256(buffer.getvalue() + repr(words).encode()).hexdigest()


@pytest.mark.parametrize("kind", KINDS)
def test_an_encoding_changes_with_its_revision(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it fails, outputs of this kind are encoded otherwise than in the last release.

    Raise the number in `identity.REVISIONS` by one, unless this release has raised it already, and
    record the digest. A new release of highdicom or pydicom may be the reason, too.
    """
    assert (identity.REVISIONS[kind], encoding(kind, monkeypatch)) == RECORDED[kind]


# --- a bundle's figures ---


def explained_by(bundle: Bundle, **settings: int) -> dict[str, Built]:
    file = Path(get_testdata_file("RG1_UNCR.dcm", download=False)).read_bytes()
    image = read_source(file, InputSettings())
    choice = ExplanationSettings(device="cpu", explain_below_threshold=True)
    (answer,) = Explainer(bundle, choice).explain([image.radiograph])
    received = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
    written = OutputSettings(seg_fractional=True, **settings)
    outputs = build_outputs(
        image, answer, settings=written, digest=content_digest(file), received=received
    )
    return {built[0].kind: built for built in outputs}


def series(built: Built) -> str:
    return str(dcmread(BytesIO(built[1])).SeriesInstanceUID)


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("bundles") / "copy"
    return Bundle.load(Path(shutil.copytree(shipped_folder(), folder)))


@pytest.fixture(scope="module")
def before(shipped: Bundle) -> dict[str, Built]:
    return explained_by(shipped)


def test_other_figures_change_no_output(shipped: Bundle, before: dict[str, Built]) -> None:
    digests = {shipped.digest}
    for images in (1, 2):
        assert shipped.evaluation is not None
        scope = shipped.evaluation.scope.model_copy(update={"images": images})
        measured = shipped.evaluation.model_copy(update={"scope": scope})
        published = save_figures(shipped, measured, f"# Measured on {images} images\n")
        digests.add(published.digest)
        assert explained_by(Bundle.load(shipped.folder)) == before
    assert len(digests) == 3


def test_the_quality_of_the_overlay_is_the_overlays(
    shipped: Bundle, before: dict[str, Built]
) -> None:
    after = explained_by(shipped, sc_jpeg_quality=80)
    for kind in ("seg", "seg_fractional"):
        assert after[kind] == before[kind]
    assert after["sc"][0].sop_instance_uid != before["sc"][0].sop_instance_uid
    assert series(after["sc"]) != series(before["sc"])


def test_another_mask_threshold_is_another_model(
    shipped: Bundle, before: dict[str, Built], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(shipped.folder, tmp_path / "other"))
    content = Bundle.load(folder).manifest.model_dump(mode="json") | {"mask_threshold": 0.6}
    (folder / "manifest.json").write_bytes(signed(content))
    for kind, built in explained_by(Bundle.load(folder)).items():
        assert built[0].sop_instance_uid != before[kind][0].sop_instance_uid
        assert series(built) != series(before[kind])
