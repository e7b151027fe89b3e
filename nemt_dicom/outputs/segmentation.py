"""`Explanation` -> DICOM Segmentation (PS3.3 A.51, C.8.20), on the source's rows and columns."""

from typing import Any

import numpy as np
from highdicom.color import CIELabColor
from highdicom.seg import Segmentation, SegmentDescription
from highdicom.sr.coding import CodedConcept
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.tag import Tag
from pydicom.uid import ExplicitVRLittleEndian, JPEGLSLossless

from nemt_dicom.config import PlaneGeometry
from nemt_dicom.outputs import derived
from nemt_dicom.outputs.derived import TYPE_2, Origin
from nemt_dicom.outputs.repair import decimal
from nemt_dicom.state.records import Output

SERIES_NUMBER = 9902
SERIES_NUMBER_FRACTIONAL = 9903

CATEGORY = CodedConcept("309825002", "SCT", "Spatial and Relational Concept")
TYPE = CodedConcept("130404", "DCM", "Saliency")
LUNG = CodedConcept("39607008", "SCT", "Lung")
DISPLAY_COLOUR = CIELabColor(78, -32, -20)
"""The overlay's sky blue, CIELab D50."""

FOR_HIGHDICOM = frozenset(
    {
        *("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Modality"),
        *("Rows", "Columns", "PatientOrientation", "LossyImageCompression"),
        *("LossyImageCompressionRatio", "LossyImageCompressionMethod"),
    }
)
IDENTITY_ORIENTATION = [1, 0, 0, 0, 1, 0]


def build_segmentation(origin: Origin) -> tuple[Output, bytes]:
    """The drawn segment as a BINARY segmentation of one frame; empty if nothing is drawn."""
    pixels = origin.explanation.drawn[None].astype(np.uint8)
    dataset = _build(origin, "seg", pixels, "BINARY", SERIES_NUMBER, ExplicitVRLittleEndian)
    return derived.to_output(dataset, "seg")


def build_fractional(origin: Origin) -> tuple[Output, bytes]:
    """The soft mask as a FRACTIONAL segmentation: mask weight, not disease probability."""
    explanation = origin.explanation
    shown = np.where(explanation.drawn.any(), explanation.mask, np.float32(0))
    dataset = _build(
        origin,
        "seg_fractional",
        shown[None],
        "FRACTIONAL",
        SERIES_NUMBER_FRACTIONAL,
        JPEGLSLossless,
    )
    dataset.ContentDescription = "Mask weight 0 to 1, not disease probability"
    return derived.to_output(dataset, "seg_fractional")


def _build(
    origin: Origin,
    kind: str,
    pixels: NDArray[Any],
    segmentation_type: str,
    series_number: int,
    transfer_syntax_uid: str,
) -> Dataset:
    explanation = origin.explanation
    target = explanation.provenance.target
    clean = derived.reference(origin.source)
    template = _template(clean)
    dataset = Segmentation(
        source_images=[template],
        pixel_array=pixels,
        segmentation_type=segmentation_type,
        segment_descriptions=[_segment(origin, kind)],
        series_instance_uid=origin.uid(kind, "series"),
        series_number=series_number,
        sop_instance_uid=origin.uid(kind),
        instance_number=origin.instance_number,
        omit_empty_frames=False,
        transfer_syntax_uid=transfer_syntax_uid,
        content_label=_content_label(target),
        content_description=f"Explanation of {target}"[:64],
        **derived.equipment(explanation),
    )
    derived.finish(dataset, origin, clean)
    _set_dimension_organization(dataset, origin.uid(kind, "dimension"))
    _set_plane_geometry(dataset, origin)
    if derived.pixel_spacing(origin.source) is None:
        derived.remove(dataset, "FrameOfReferenceUID", "PositionReferenceIndicator")
    return dataset


def _template(clean: Dataset) -> Dataset:
    """The source image for highdicom, without the patient: `derived.finish` writes the rest.

    highdicom quotes some patients' names in warnings. It refuses character sets that the standard
    allows (PS3.3 C.12.1.1.2: an empty first value). With a frame of reference it would need a
    position.
    """
    template = Dataset()
    template.update({e.tag: e for e in clean if e.keyword in FOR_HIGHDICOM})
    for keyword in TYPE_2:
        setattr(template, keyword, "")
    return template


def _segment(origin: Origin, kind: str) -> SegmentDescription:
    explanation = origin.explanation
    return SegmentDescription(
        segment_number=1,
        segment_label=f"Explanation: {explanation.provenance.target}"[:64],
        segmented_property_category=CATEGORY,
        segmented_property_type=TYPE,
        algorithm_type="AUTOMATIC",
        algorithm_identification=derived.algorithm(explanation),
        tracking_uid=origin.uid(kind, "tracking"),
        tracking_id=f"NEMt {explanation.provenance.target}"[:64],
        anatomic_regions=[LUNG],
        display_color=DISPLAY_COLOUR,
    )


def _content_label(target: str) -> str:
    """The target as a code string (CS): upper case, 16 characters at most."""
    clean = "".join(c if c.isascii() and c.isalnum() else "_" for c in target.upper())
    return clean[:16] or "EXPLANATION"


def _set_dimension_organization(dataset: Dataset, uid: str) -> None:
    """Replaces highdicom's random Dimension Organization UID."""
    dataset.DimensionOrganizationSequence[0].DimensionOrganizationUID = uid
    for item in dataset.DimensionIndexSequence:
        item.DimensionOrganizationUID = uid


def _set_plane_geometry(dataset: Dataset, origin: Origin) -> None:
    """Writes the plane geometry of the setting `auto`: viewers need it, the standard does not.

    Without plane orientation OHIF crashes to a black page. With another spacing than the
    radiograph's, viewers draw the mask in the wrong place and do not warn. So the spacing is
    exactly that of the radiograph, or absent. If it is absent, there is no frame of reference
    either (PS3.3 C.7.6.16.2.1: Pixel Spacing is type 1C).
    """
    if origin.settings.seg_plane_geometry is PlaneGeometry.NONE:
        return
    shared = dataset.SharedFunctionalGroupsSequence[0]
    measures = Dataset()
    measures.SliceThickness = 1
    spacing = derived.pixel_spacing(origin.source)
    if spacing is not None:
        measures.PixelSpacing = [decimal(value) for value in spacing]
        measures.SpacingBetweenSlices = 1
        position = Dataset()
        position.ImagePositionPatient = [0, 0, 0]
        frame = dataset.PerFrameFunctionalGroupsSequence[0]
        frame.PlanePositionSequence = [position]
        if "SegmentIdentificationSequence" in shared:  # dwv looks for it in the frame
            frame.SegmentIdentificationSequence = shared.SegmentIdentificationSequence
            del shared.SegmentIdentificationSequence
        _set_two_dimensions(dataset)
    shared.PixelMeasuresSequence = [measures]
    orientation = Dataset()
    orientation.ImageOrientationPatient = IDENTITY_ORIENTATION
    shared.PlaneOrientationSequence = [orientation]


def _set_two_dimensions(dataset: Dataset) -> None:
    """Segment number and position as the dimension index, which dwv needs."""
    organization = dataset.DimensionIndexSequence[0].DimensionOrganizationUID

    def index(pointer: str, group: str, label: str) -> Dataset:
        item = Dataset()
        item.DimensionOrganizationUID = organization
        item.DimensionIndexPointer = Tag(pointer)
        item.FunctionalGroupPointer = Tag(group)
        item.DimensionDescriptionLabel = label
        return item

    dataset.DimensionIndexSequence = [
        index("ReferencedSegmentNumber", "SegmentIdentificationSequence", "Segment Number"),
        index("ImagePositionPatient", "PlanePositionSequence", "Image Position Patient"),
    ]
    frame = dataset.PerFrameFunctionalGroupsSequence[0]
    frame.FrameContentSequence[0].DimensionIndexValues = [1, 1]
