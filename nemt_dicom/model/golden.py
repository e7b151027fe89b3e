"""The golden image of a bundle: a synthetic radiograph with the recorded answer to it.

A replay through the served path shows whether the bundle still gives the answer that it gave when
it was saved. It also finds a library that computes differently.
"""

from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import torch
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from nemt_dicom.config import InputSettings
from nemt_dicom.errors import SelfTestError
from nemt_dicom.intake.radiograph import Radiograph
from nemt_dicom.model.network import ExplainedNetwork
from nemt_dicom.model.preprocess import Preprocessing

LIMITS = {"tensor": 1e-4, "response": 5e-3, "mask": 1e-2}
"""Largest allowed differences: those between processors and library releases are smaller, those of
a wrong weight or a wrong step are larger.
"""


def record(preprocessing: Preprocessing, network: ExplainedNetwork) -> dict[str, bytes]:
    """The two golden files of a bundle with this network, by name."""
    buffer = BytesIO()
    golden_radiograph().save_as(buffer, enforce_file_format=True)
    answer = replay(BytesIO(buffer.getvalue()), preprocessing, network)
    return {"golden.dcm": buffer.getvalue(), "golden.safetensors": save(answer)}


def require_same(
    image: Path, answer: Path, preprocessing: Preprocessing, network: ExplainedNetwork
) -> None:
    """Replays the golden image on `network`; raises `SelfTestError` beyond tolerance."""
    actual = replay(image, preprocessing, network)
    try:
        arrays = load_file(answer)
        expected = {name: arrays[name] for name in LIMITS}
    except (SafetensorError, KeyError) as error:
        raise SelfTestError(f"{answer}: {error}") from error
    for name, limit in LIMITS.items():
        if expected[name].shape != actual[name].shape:
            raise SelfTestError(f"golden {name} has shape {actual[name].shape}")
        off = float(np.abs(expected[name] - actual[name]).max())
        if not off <= limit:
            raise SelfTestError(
                f"the golden image of {image.parent} gives another {name}: off by {off:.4g}, "
                f"{limit:.4g} is allowed; the libraries or the hardware compute differently"
            )


def replay(
    golden: Path | BytesIO, preprocessing: Preprocessing, network: ExplainedNetwork
) -> dict[str, NDArray[np.float32]]:
    """Tensor (1, S, S), response (1,) and mask (S, S) of a golden file, by the served path."""
    radiograph = Radiograph.from_dataset(pydicom.dcmread(golden), InputSettings())
    tensor, _ = preprocessing(radiograph)
    device = next(network.parameters()).device
    with torch.inference_mode():
        response, mask = network.explain(torch.from_numpy(tensor)[None].to(device))
    return {
        "tensor": tensor,
        "response": response.cpu().numpy().astype(np.float32),
        "mask": np.ascontiguousarray(mask[0, 0].cpu().numpy(), dtype=np.float32),
    }


def golden_radiograph() -> Dataset:
    """A synthetic DX image with two dark lungs and a bright patch: drawn by formula, of nobody.

    It comes as MONOCHROME1 with a rescale, a window and a mirrored PatientOrientation, so that a
    replay passes through every step of the front end.
    """
    rows, columns = 420, 350
    y, x = np.mgrid[0:rows, 0:columns].astype(np.float64)
    scene = 0.75 + 0.15 * np.cos(y / 17.0) * (np.abs(x - 175) < 40)
    for centre in (100.0, 250.0):
        lung = ((x - centre) / 55) ** 2 + ((y - 210) / 140) ** 2
        scene -= 0.5 * np.exp(-(lung**3))
    scene += 0.45 * np.exp(-(((x - 240) / 30) ** 2 + ((y - 290) / 35) ** 2))
    scene = (scene - scene.min()) / (scene.max() - scene.min())
    stored = np.rint((1 - scene[:, ::-1]) * 4000).astype("<u2")
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = DigitalXRayImageStorageForPresentation
    ds.SOPInstanceUID = "2.25.301437190011223344556677889900112233445"
    ds.StudyInstanceUID = "2.25.301437190011223344556677889900112233446"
    ds.SeriesInstanceUID = "2.25.301437190011223344556677889900112233447"
    ds.PatientName, ds.PatientID = "GOLDEN^SYNTHETIC", "GOLDEN"
    ds.Modality, ds.BodyPartExamined, ds.ViewPosition = "DX", "CHEST", "PA"
    ds.PatientOrientation = ["R", "F"]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME1"
    ds.Rows, ds.Columns = rows, columns
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.RescaleSlope, ds.RescaleIntercept = 2, -1000
    ds.WindowCenter, ds.WindowWidth = 3000, 8000
    ds.PixelData = stored.tobytes()
    return ds
