"""`Explanation` -> overlay image as a DICOM Secondary Capture (PS3.3 A.8.1), JPEG Baseline.

The picture is the radiograph with its own window, never turned. The drawn segment is a thin tint
and a contour. Text stands in bands above and below the picture, so that it hides no anatomy. It is
centred, because viewers write their text into the corners.
"""

import math
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from highdicom.sc import SCImage
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from pydicom import Dataset, dcmread
from pydicom.encaps import encapsulate, generate_frames
from pydicom.multival import MultiValue
from pydicom.uid import ExplicitVRLittleEndian, JPEGBaseline8Bit

from nemt_dicom.model.explanation import Explanation, Verdict
from nemt_dicom.outputs import derived
from nemt_dicom.outputs.derived import DISCLAIMER, Origin
from nemt_dicom.outputs.repair import decimal
from nemt_dicom.state.records import Output

SERIES_NUMBER = 9901

COLOUR = (86, 200, 235)
"""Sky blue: calm, different from grey for every colour vision, and in no radiograph."""
TINT = 0.16
"""Opacity of the fill: ribs and vessels stay readable beneath it."""
CONTOUR = 0.95
HALO = 0.45
TEXT = (225, 230, 232)
TEXT_MUTED = (165, 172, 176)
LEGEND_SHARE = 0.74
"""Share of the width that the legend may use."""


def build_secondary_capture(
    origin: Origin, pixels: NDArray[np.float32], aspect: float = 1.0
) -> tuple[Output, bytes]:
    """The overlay of `pixels`, (rows, columns) in [0, 1] with 1 white, as a stored object.

    aspect: height of a pixel divided by its width; the overlay's pixels are square.
    """
    clean = derived.reference(origin.source)
    picture, scale = render(origin.explanation, pixels, origin.settings.sc_longest_side, aspect)
    dataset = SCImage(
        pixel_array=np.zeros((2, 2, 3), np.uint8),  # replaced below by our JPEG
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        study_instance_uid=clean.StudyInstanceUID,
        series_instance_uid=origin.uid("sc", "series"),
        series_number=SERIES_NUMBER,
        sop_instance_uid=origin.uid("sc"),
        instance_number=origin.instance_number,
        patient_orientation=("L", "F"),  # replaced by the source's
        transfer_syntax_uid=ExplicitVRLittleEndian,
        **derived.equipment(origin.explanation),
    )
    dataset.ConversionType = "WSD"
    dataset.ImageType = ["DERIVED", "SECONDARY"]
    _set_pixels(dataset, picture, origin.settings.sc_jpeg_quality)
    derived.finish(dataset, origin, clean)
    _set_compression_history(dataset, clean)
    dataset.DateOfSecondaryCapture = dataset.ContentDate
    dataset.TimeOfSecondaryCapture = dataset.ContentTime
    dataset.BurnedInAnnotation = clean.get("BurnedInAnnotation", "NO")
    spacing = derived.pixel_spacing(origin.source)
    if spacing is not None:
        heights, widths = spacing
        dataset.PixelSpacing = [
            decimal(heights / (aspect * scale)),
            decimal(widths / scale),
        ]
    return derived.to_output(dataset, "sc")


def _set_pixels(dataset: Dataset, picture: Image.Image, quality: int) -> None:
    """Encapsulated JPEG Baseline in 4:2:2, as YBR_FULL_422 says (PS3.5 8.2.1)."""
    buffer = BytesIO()
    picture.save(buffer, "JPEG", quality=quality, subsampling="4:2:2", optimize=True)
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    dataset.PhotometricInterpretation = "YBR_FULL_422"
    dataset.SamplesPerPixel, dataset.PlanarConfiguration = 3, 0
    dataset.Rows, dataset.Columns = picture.height, picture.width
    dataset.PixelData = encapsulate([buffer.getvalue()])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True  # else a sender writes it malformed


def _set_compression_history(dataset: Dataset, clean: Dataset) -> None:
    """Adds our JPEG to the lossy steps of the source (PS3.3 C.7.6.1.1.5)."""
    ratio = dataset.Rows * dataset.Columns * 3 / len(dataset.PixelData)
    ratios: list[Any] = [decimal(round(ratio, 2))]
    methods: list[Any] = ["ISO_10918_1"]
    if clean.get("LossyImageCompression") == "01":
        before_ratio = clean.get("LossyImageCompressionRatio")
        before_method = clean.get("LossyImageCompressionMethod")
        if before_ratio and before_method:
            ratios = [*_listed(before_ratio), *ratios]
            methods = [*_listed(before_method), *methods]
    dataset.LossyImageCompression = "01"
    dataset.LossyImageCompressionRatio = ratios
    dataset.LossyImageCompressionMethod = methods


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, MultiValue) else [value]


def render(
    explanation: Explanation, pixels: NDArray[np.float32], longest_side: int, aspect: float = 1.0
) -> tuple[Image.Image, float]:
    """The overlay with its bands of text, and the width of a source pixel in output pixels."""
    rows, columns = pixels.shape
    scale = longest_side / max(rows * aspect, columns)
    size = (max(1, round(columns * scale)), max(1, round(rows * aspect * scale)))
    grey = Image.fromarray(np.rint(pixels * 255).astype(np.uint8), "L")
    picture = grey.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0).convert("RGB")
    if explanation.verdict is Verdict.EXPLAINED:
        segment = Image.fromarray(explanation.segment.astype(np.uint8) * 255, "L")
        picture = _draw_segment(picture, segment.resize(size, Image.Resampling.BILINEAR))
    return _add_bands(picture, explanation, longest_side), scale


def _draw_segment(picture: Image.Image, soft: Image.Image) -> Image.Image:
    """Tints the segment and draws its contour with a dark halo, so that it shows on white too."""
    inside = soft.point(lambda v: 255 if v >= 128 else 0)
    line = _edge(inside, 1).filter(ImageFilter.BoxBlur(0.5))
    halo = _edge(inside, 3).filter(ImageFilter.BoxBlur(1))
    for layer, colour, opacity in (
        (inside, COLOUR, TINT),
        (halo, (0, 0, 0), HALO),
        (line, COLOUR, CONTOUR),
    ):
        strength = layer.point(lambda v, opacity=opacity: round(v * opacity))
        picture = Image.composite(Image.new("RGB", picture.size, colour), picture, strength)
    return picture


def _edge(inside: Image.Image, radius: int) -> Image.Image:
    """255 within `radius` pixels of the segment's border, otherwise 0."""
    return inside.filter(ImageFilter.BoxBlur(radius)).point(lambda v: 255 if 5 < v < 250 else 0)


@dataclass(frozen=True, kw_only=True)
class LegendLine:
    text: str
    colour: tuple[int, int, int]
    swatch: bool = False
    """True: a sample of the segment's colour stands before the text."""


def legend(explanation: Explanation) -> list[LegendLine]:
    """The text of the overlay, top line first; the disclaimer comes after it."""
    e, p = explanation.evidence, explanation.provenance
    target = p.target.upper()
    below = f"below threshold ({p.decision_threshold:.3f})"
    first = f"NEMt explanation: {target}   p = {e.probability:.3f}"
    evidence = f"segment occluded: p = {e.occluded:.3f}   only segment: p = {e.kept:.3f}"
    bundle = f"{p.bundle_name} {p.bundle_version} ({p.short_digest})"
    match explanation.verdict:
        case Verdict.EXPLAINED:
            if explanation.below_threshold:
                first += f", {below}, drawn by setting"
            lines = [first, "region this output depends on, not a finding", evidence]
        case Verdict.BELOW_THRESHOLD:
            lines = [first, f"{below}: nothing drawn"]
        case Verdict.NO_REGION:
            lines = [first, "no region stands out: nothing drawn"]
        case Verdict.UNRELIABLE:
            lines = [first, "explanation unreliable: nothing drawn", evidence]
    drawn = explanation.verdict is Verdict.EXPLAINED
    return [
        LegendLine(text=lines[0], colour=TEXT),
        *(
            LegendLine(text=text, colour=TEXT, swatch=drawn and number == 0)
            for number, text in enumerate(lines[1:])
        ),
        LegendLine(text=bundle, colour=TEXT_MUTED),
    ]


def _add_bands(picture: Image.Image, explanation: Explanation, longest_side: int) -> Image.Image:
    """Black bands above and below, with the legend and the disclaimer at top and bottom.

    A picture that is narrower than its legend gets bands at its sides as well.
    """
    lines = [*legend(explanation), LegendLine(text=DISCLAIMER, colour=TEXT)]
    width = int(picture.width * LEGEND_SHARE)
    font = _fitting_font([line.text for line in lines], width, longest_side // 48)
    step = round(font.size * 1.45)
    top, bottom = 2 * step, step * len(lines) + step
    longest = max(font.getlength(line.text) for line in lines)
    whole = max(picture.width, math.ceil(longest) + 4 * step)  # a swatch and some air
    canvas = Image.new("RGB", (whole, top + picture.height + bottom))
    canvas.paste(picture, ((whole - picture.width) // 2, top))
    draw = ImageDraw.Draw(canvas)
    middle = whole / 2
    # Viewers write their orientation letter at the very top: keep to the band's lower half.
    draw.text((middle, top - step * 0.65), DISCLAIMER, font=font, fill=TEXT, anchor="mm")
    for number, line in enumerate(lines):
        y = top + picture.height + step * (number + 0.85)
        draw.text((middle, y), line.text, font=font, fill=line.colour, anchor="mm")
        if line.swatch:
            left = middle - draw.textlength(line.text, font=font) / 2 - step
            box = (left, y - step * 0.28, left + step * 0.56, y + step * 0.28)
            tint = tuple(round(c * 0.35) for c in COLOUR)
            draw.rectangle(box, fill=tint, outline=COLOUR, width=2)
    return canvas


def _fitting_font(texts: list[str], width: int, size: int) -> ImageFont.FreeTypeFont:
    """Pillow's font in the largest size, 9 to `size` pixels, in which the longest text fits."""
    while True:
        font = ImageFont.load_default(size)
        if not isinstance(font, ImageFont.FreeTypeFont):
            raise RuntimeError("Pillow was built without FreeType; install its binary wheel")
        if size <= 9 or max(font.getlength(text) for text in texts) <= width:
            return font
        size -= 1


def picture(data: bytes) -> Image.Image:
    """The picture inside a Secondary Capture of ours, RGB."""
    dataset = dcmread(BytesIO(data))
    frame = next(generate_frames(dataset.PixelData, number_of_frames=1))
    return Image.open(BytesIO(frame)).convert("RGB")


def as_png(data: bytes) -> bytes:
    """The picture inside a Secondary Capture of ours, as a PNG file."""
    buffer = BytesIO()
    picture(data).save(buffer, "PNG")
    return buffer.getvalue()
