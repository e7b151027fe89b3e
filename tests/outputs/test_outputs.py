"""SEG and SC: what describes them, where the mask lands, what the legend says."""

from pathlib import Path

import numpy as np
import pytest
from pydicom.uid import ComputedRadiographyImageStorage

from nemt_dicom.config import PlaneGeometry
from nemt_dicom.errors import BadOutput
from nemt_dicom.model.explanation import Verdict
from nemt_dicom.outputs import derived, secondary_capture, segmentation
from nemt_dicom.outputs.derived import Origin
from nemt_dicom.state.records import Output
from tests.outputs.output_kit import (
    BUILT,
    COLUMNS,
    ROWS,
    errors_of_outputs,
    explanation,
    origin,
    pixels,
    read,
    sc,
    seg,
    source,
)


@BUILT
def test_references_and_description(build) -> None:
    ds = build()
    item = ds.SourceImageSequence[0]
    assert (item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID) == (
        ComputedRadiographyImageStorage,
        "1.2.3.1",
    )
    assert item.PurposeOfReferenceCodeSequence[0].CodeValue == "121322"
    assert ds.StudyInstanceUID == "1.2.3.2"
    assert ds.SeriesInstanceUID != "1.2.3.3"
    assert ds.InstanceNumber == 7
    assert "NOT FOR DIAGNOSTIC USE" in ds.SeriesDescription
    assert len(ds.SeriesDescription) <= 64
    for figure in ("0.900", "0.300", "0.800", "pneumonia", "ab" * 32):
        assert figure in ds.DerivationDescription
    assert ds.ContributingEquipmentSequence[0].PurposeOfReferenceCodeSequence[0].CodeValue == (
        "109102"
    )


def test_codes_of_the_segment() -> None:
    segment = seg().SegmentSequence[0]
    assert segment.SegmentedPropertyTypeCodeSequence[0].CodeValue == "130404"
    assert segment.SegmentedPropertyCategoryCodeSequence[0].CodeValue == "309825002"
    assert segment.SegmentAlgorithmType == "AUTOMATIC"
    assert segment.SegmentLabel == "Explanation: pneumonia"
    assert seg().ContentLabel == "PNEUMONIA"


def outputs(origin: Origin) -> list[tuple[Output, bytes]]:
    return [
        segmentation.build_segmentation(origin),
        secondary_capture.build_secondary_capture(origin, pixels()),
    ]


def test_the_same_input_gives_the_same_bytes() -> None:
    assert outputs(origin()) == outputs(origin())


@pytest.mark.parametrize("target", ["pneumonia", "a finding with a name of many words " * 2])
def test_series_description_fits(target: str) -> None:
    text = derived.series_description(target)
    assert len(text) <= 64
    assert target[:22] in text
    assert text.endswith("NOT FOR DIAGNOSTIC USE")


@BUILT
def test_times_are_those_of_receipt_in_the_zone_of_the_study(build) -> None:
    ds = build(header=source(TimezoneOffsetFromUTC="-0400"))
    assert (ds.ContentDate, ds.ContentTime) == ("20260304", "193015")
    assert (ds.InstanceCreationDate, ds.SeriesTime) == ("20260304", "193015")


@BUILT
@pytest.mark.parametrize(
    ("ratios", "methods"),
    [(["10"], ["ISO_15444_1"]), (["10", "5"], ["ISO_10918_1", "ISO_15444_1"])],
)
def test_lossy_history_is_inherited(build, ratios: list[str], methods: list[str]) -> None:
    ds = build(
        header=source(
            LossyImageCompression="01",
            LossyImageCompressionRatio=ratios,
            LossyImageCompressionMethod=methods,
        )
    )
    ours = 1 if build is sc else 0
    assert ds.LossyImageCompression == "01"
    found = [str(v) for v in np.atleast_1d(ds.LossyImageCompressionMethod)]
    assert found == methods + ["ISO_10918_1"] * ours
    shown = np.atleast_1d(ds.LossyImageCompressionRatio).tolist()
    assert [float(v) for v in shown[: len(ratios)]] == [float(v) for v in ratios]
    assert len(shown) == len(found)


def test_burned_in_annotation() -> None:
    assert sc().BurnedInAnnotation == "NO"
    assert sc(header=source(BurnedInAnnotation="YES")).BurnedInAnnotation == "YES"
    assert sc(header=source(BurnedInAnnotation="NO")).BurnedInAnnotation == "NO"


def test_seg_holds_the_segment_pixel_by_pixel() -> None:
    ds = seg()
    assert (ds.Rows, ds.Columns, ds.NumberOfFrames) == (ROWS, COLUMNS, 1)
    assert np.array_equal(ds.pixel_array, explanation().segment)


@pytest.mark.parametrize(
    ("given", "verdict"),
    [
        (explanation(p=0.4), Verdict.BELOW_THRESHOLD),
        (explanation(occluded=0.85), Verdict.UNRELIABLE),
        (explanation(segment=np.zeros((ROWS, COLUMNS), np.bool_)), Verdict.NO_REGION),
    ],
)
def test_nothing_is_drawn_where_there_is_nothing_to_say(given, verdict) -> None:
    assert given.verdict is verdict
    ds = seg(explained=given)
    assert ds.NumberOfFrames == 1
    assert not ds.pixel_array.any()
    picture, _ = secondary_capture.render(given, pixels(), 512)
    rgb = np.asarray(picture).astype(int)
    assert (rgb[60:500].max(axis=2) - rgb[60:500].min(axis=2)).max() == 0  # no colour
    text = " ".join(line.text for line in secondary_capture.legend(given))
    assert "nothing drawn" in text
    assert f"p = {given.evidence.probability:.3f}" in text


def test_below_threshold_can_be_drawn_and_says_so() -> None:
    given = explanation(p=0.4, occluded=0.1, explain_below_threshold=True)
    assert seg(explained=given).pixel_array.any()
    text = " ".join(line.text for line in secondary_capture.legend(given))
    assert "below threshold (0.500), drawn by setting" in text


def test_not_a_number_is_no_output() -> None:
    with pytest.raises(BadOutput):
        explanation(p=float("nan"))
    with pytest.raises(BadOutput):
        explanation(mask=np.full((ROWS, COLUMNS), np.inf, np.float32))


def test_overlay_shows_colour_where_the_segment_is_and_nowhere_else() -> None:
    given = explanation()
    picture, scale = secondary_capture.render(given, np.full((ROWS, COLUMNS), 0.5, np.float32), 900)
    assert scale == 3.0
    rgb = np.asarray(picture).astype(int)
    top = (picture.height - 900) // 2
    band = next(y for y in range(picture.height) if rgb[y, 0].sum() > 100)  # first row of picture
    assert band < top * 2
    image = rgb[band : band + 900]
    coloured = image[..., 2] - image[..., 0] > 10
    expected = given.segment.repeat(3, axis=0).repeat(3, axis=1)
    core = np.zeros_like(expected)
    core[130:350, 100:260] = True
    assert coloured[core].all()
    outside = ~expected
    outside[110:370, 80:280] = False  # the contour is as wide as this at most
    assert not coloured[outside].any()


def test_overlay_spacing_is_scaled_and_bands_hide_nothing() -> None:
    ds = sc(header=source(PixelSpacing=[0.2, 0.2]), sc_longest_side=600)
    assert [float(v) for v in ds.PixelSpacing] == [0.1, 0.1]
    assert "ImagerPixelSpacing" not in ds
    assert ds.Columns == 2 * COLUMNS
    assert ds.Rows > 2 * ROWS  # the radiograph whole, and the bands


@pytest.mark.parametrize("aspect", [0.5, 2.0])
def test_overlay_has_square_pixels(aspect: float) -> None:
    """The segment's 80 rows and 60 columns are as high and as wide as they are on the patient."""
    spacing = source(PixelSpacing=[0.2 * aspect, 0.2])
    built = secondary_capture.build_secondary_capture(
        origin(spacing, sc_longest_side=600), np.full((ROWS, COLUMNS), 0.5, np.float32), aspect
    )
    heights, widths = (float(value) for value in read(built).PixelSpacing)
    rgb = np.asarray(secondary_capture.picture(built[1])).astype(int)
    rows, columns = np.nonzero(
        rgb[: -(rgb.shape[0] // 4), :, 2] - rgb[: -(rgb.shape[0] // 4), :, 0] > 20
    )
    height, width = np.ptp(rows) * heights, np.ptp(columns) * widths  # mm
    assert heights == pytest.approx(widths)
    assert height / width == pytest.approx(80 * aspect / 60, rel=0.1)


@pytest.mark.parametrize("columns", [40, 80, 160])
def test_legend_of_a_narrow_picture_is_whole(columns: int) -> None:
    """What does not fit over the picture gets room beside it: no word is cut at the border."""
    black = np.zeros((400, columns), np.float32)
    given = explanation(mask=black, segment=black > 0)
    rgb = np.asarray(secondary_capture.render(given, black, 1024)[0])
    assert rgb.max() > 200, "there is text"
    assert rgb[:, :3].max() == rgb[:, -3:].max() == 0


def test_seg_plane_geometry() -> None:
    with_spacing = seg(header=source(PixelSpacing=[0.143, 0.15]))
    shared = with_spacing.SharedFunctionalGroupsSequence[0]
    assert [float(v) for v in shared.PixelMeasuresSequence[0].PixelSpacing] == [0.143, 0.15]
    orientation = shared.PlaneOrientationSequence[0].ImageOrientationPatient
    assert list(orientation) == [1, 0, 0, 0, 1, 0]
    frame = with_spacing.PerFrameFunctionalGroupsSequence[0]
    assert list(frame.PlanePositionSequence[0].ImagePositionPatient) == [0, 0, 0]
    assert frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber == 1
    assert len(with_spacing.DimensionIndexSequence) == 2
    for header in (source(), source(PixelSpacing=[0, 0]), source(ImagerPixelSpacing=[0.1, 0.1])):
        ds = seg(header=header)
        measures = ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
        assert "PixelSpacing" not in measures
        assert "SliceThickness" in measures
        assert "PlaneOrientationSequence" in ds.SharedFunctionalGroupsSequence[0]
    none = seg(header=source(PixelSpacing=[0.1, 0.1]), seg_plane_geometry=PlaneGeometry.NONE)
    assert "PlaneOrientationSequence" not in none.SharedFunctionalGroupsSequence[0]
    assert "FrameOfReferenceUID" not in with_spacing


def test_fractional_is_the_mask_weight() -> None:
    ds = read(segmentation.build_fractional(origin()))
    assert ds.SegmentationType == "FRACTIONAL"
    assert ds.MaximumFractionalValue == 255
    from nemt_dicom.intake.pixel_data import CODECS

    frame = CODECS[ds.file_meta.TransferSyntaxUID](
        next(__import__("pydicom").encaps.generate_frames(ds.PixelData, number_of_frames=1))
    )
    assert np.array_equal(frame, np.rint(explanation().mask * 255).astype(np.uint8))


@pytest.mark.servers
@pytest.mark.parametrize("spacing", [None, [0.2, 0.2], [0, 0]])
@pytest.mark.parametrize("geometry", list(PlaneGeometry))
@pytest.mark.parametrize("frame_of_reference", [{}, {"FrameOfReferenceUID": "1.2.3.9"}], ids=len)
def test_dciodvfy_finds_no_error(
    tmp_path: Path, program, spacing, geometry, frame_of_reference
) -> None:
    header = source(PatientAge="51", StudyDate="1995.07.20", **frame_of_reference)
    if spacing is not None:
        header.PixelSpacing = spacing
    built = origin(header, seg_plane_geometry=geometry)
    assert errors_of_outputs(program("dciodvfy"), built, tmp_path) == []
