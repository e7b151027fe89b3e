"""Radiographs through the running service to a real PACS: Orthanc receives, DCMTK sends."""

import hashlib
import json
import subprocess
from collections import Counter
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread
from pydicom.config import disable_value_validation
from pydicom.data import get_testdata_file
from pydicom.uid import SecondaryCaptureImageStorage, SegmentationStorage, generate_uid

from tests.service.hospital import PATIENCE, Orthanc, Service, send, site
from tests.service.service_kit import wait_for

pytestmark = pytest.mark.servers


@pytest.fixture
def storescu(program) -> str:
    return program("storescu")


@pytest.fixture
def orthanc(program) -> str:
    return program("Orthanc")


@pytest.fixture
def chests(tmp_path: Path) -> list[Path]:
    """Twelve images, each another study: a small real radiograph under twelve identities."""
    with disable_value_validation():
        ds = dcmread(str(get_testdata_file("RG1_UNCR.dcm", download=False)))
        pixels = ds.pixel_array[::4, ::4].copy()
        ds.Rows, ds.Columns = pixels.shape
        files = []
        for number in range(12):
            ds.PixelData = (pixels + number).tobytes()
            ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
            ds.StudyInstanceUID, ds.SeriesInstanceUID = generate_uid(), generate_uid()
            files.append(tmp_path / f"chest-{number}.dcm")
            ds.save_as(files[-1])
    return files


def header(file: Path) -> Dataset:
    with disable_value_validation():
        return dcmread(file, force=True, stop_before_pixels=True)


def derived_objects(pacs: Orthanc, folder: Path) -> dict[str, list[tuple[str, Path, Dataset]]]:
    """Everything at the PACS by the SOP Instance UID of the image that it was derived from."""
    folder.mkdir(exist_ok=True)
    found: dict[str, list[tuple[str, Path, Dataset]]] = {}
    for instance in pacs.instances():
        data = pacs.get(f"/instances/{instance}/file")
        ds = dcmread(BytesIO(data), stop_before_pixels=True)
        path = folder / f"{ds.SOPInstanceUID}.dcm"
        path.write_bytes(data)
        source = str(ds.SourceImageSequence[0].ReferencedSOPInstanceUID)
        found.setdefault(source, []).append((instance, path, ds))
    return found


def check_objects(pacs: Orthanc, files: list[Path], folder: Path, program) -> int:
    """One SEG and one SC an image, in its study, valid and readable. Returns how many objects."""
    found = derived_objects(pacs, folder)
    assert set(found) == {str(header(file).SOPInstanceUID) for file in files}
    studies = {str(header(f).SOPInstanceUID): str(header(f).StudyInstanceUID) for f in files}
    count = 0
    for source, objects in found.items():
        classes = sorted(str(ds.SOPClassUID) for _, _, ds in objects)
        assert classes == sorted([SecondaryCaptureImageStorage, SegmentationStorage])
        for instance, path, ds in objects:
            count += 1
            assert str(ds.StudyInstanceUID) == studies[source]
            check_readable(path, program)
            if ds.SOPClassUID == SecondaryCaptureImageStorage or ds.Columns % 8 == 0:
                preview = pacs.get(f"/instances/{instance}/preview")
                assert preview.startswith(b"\x89PNG"), path
    return count


def check_readable(path: Path, program) -> None:
    def run(*command: str) -> str:
        done = subprocess.run([*command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command[0]}: {done.stderr}"
        return done.stdout + done.stderr

    report = run(program("dciodvfy"), str(path))
    assert "Segmentation" in report or "SCImage" in report
    assert [line for line in report.splitlines() if line.startswith("Error")] == []
    assert "(0008,0018)" in run(program("dcmdump"), str(path))
    # DCMTK's dcmj2pnm is dcm2pnm with JPEG
    run(program("dcmj2pnm"), "--write-png", str(path), str(path.with_suffix(".png")))
    assert path.with_suffix(".png").stat().st_size > 100


def test_each_image_comes_back_explained_once(
    tmp_path, storescu, orthanc, program, chests, random_bundle
) -> None:
    leg = Path(str(get_testdata_file("RG3_UNCR.dcm", download=False)))
    whole = Path(str(get_testdata_file("RG1_J2KR.dcm", download=False)))
    files = [*chests[:3], whole]
    with site(tmp_path, orthanc, random_bundle.folder) as (pacs, service):
        assert send(storescu, service.port, *files, leg).returncode == 0
        jobs = wait_for(service.settled, "every job", PATIENCE)
        assert Counter(j["state"] for j in jobs) == {"done": 4, "refused": 1}
        (refused,) = [j for j in jobs if j["state"] == "refused"]
        assert refused["sop_instance_uid"] == header(leg).SOPInstanceUID
        assert refused["reason"] == "not_chest"
        assert check_objects(pacs, files, tmp_path / "out", program) == 8

        # our own SC sent back is refused, so that nothing goes round in circles
        own = next((tmp_path / "out").glob("*.dcm"))
        for own in (tmp_path / "out").glob("*.dcm"):
            if header(own).SOPClassUID == SecondaryCaptureImageStorage:
                break
        assert send(storescu, service.port, own).returncode == 0
        again = wait_for(lambda: len(jobs := service.settled()) == 6 and jobs, "the refusal")
        by_uid = {j["sop_instance_uid"]: j for j in again}
        assert by_uid[str(header(own).SOPInstanceUID)]["reason"] == "derived_output"

        # the same files again: nothing new
        before = sorted(pacs.instances())
        assert send(storescu, service.port, *files).returncode == 0
        assert (
            sorted(j["duplicates"] for j in wait_for(service.settled, "every job", PATIENCE))[-4:]
            == [1] * 4
        )
        assert sorted(pacs.instances()) == before
        assert pacs.changes() == 8
        shown = service.run("jobs", "show", str(header(files[0]).SOPInstanceUID), "--json")
        evidence = json.loads(shown.stdout)[0]["evidence"]
        assert {"probability", "probability_occluded", "probability_kept"} <= set(evidence)
        assert service.stop() == 0
        assert "9RG1" not in service.log()
        assert "CompressedSamples" not in service.log()


def kill_in_the_middle(
    pacs: Orthanc, service: Service, storescu: str, files: list[Path], kills: int
) -> dict[str, str]:
    """Sends everything, kills the service several times, sends again what was not acknowledged.

    Returns the content digest of every object that the PACS has, by SOP Instance UID.
    """
    command = [storescu, "--no-halt", "--propose-jpeg8", "-aec", "NEMT", "127.0.0.1"]
    for _ in range(kills):
        sending = subprocess.Popen(
            [*command, str(service.port), *map(str, files)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        arrived = len(pacs.instances())
        enough = arrived + max(1, (2 * len(files) - arrived) // (kills + 2))
        wait_for(lambda enough=enough: len(pacs.instances()) >= enough, "some objects", PATIENCE)
        service.kill()
        service.start()  # at once: neither the port nor the lock is held by an orphan
        sending.wait()
    assert send(storescu, service.port, *files).returncode == 0
    jobs = wait_for(service.settled, "every job", PATIENCE)
    assert Counter(j["state"] for j in jobs) == {"done": len(files)}
    return {
        str(dcmread(BytesIO(data)).SOPInstanceUID): hashlib.sha256(data).hexdigest()
        for data in (pacs.get(f"/instances/{i}/file") for i in pacs.instances())
    }


def test_nothing_is_lost_or_doubled_when_the_service_is_killed(
    tmp_path, storescu, orthanc, program, chests, random_bundle
) -> None:
    with site(tmp_path, orthanc, random_bundle.folder) as (pacs, service):
        objects = kill_in_the_middle(pacs, service, storescu, chests, kills=3)
        assert len(objects) == 2 * len(chests)
        assert check_objects(pacs, chests, tmp_path / "out", program) == 2 * len(chests)


@pytest.mark.realdata
def test_real_radiographs_with_the_bundle_that_ships(
    tmp_path, storescu, orthanc, program, real_data
) -> None:
    interop = sorted((real_data / "dicom-interop").glob("*.dcm"))
    rsna = sorted((real_data / "rsna-mini" / "stage_2_train_images").glob("*.dcm"))[:40]
    legs = [f for f in interop if f.name.startswith("RG3")]
    files = [f for f in interop if f not in legs] + rsna
    with site(tmp_path, orthanc, None) as (pacs, service):
        assert send(storescu, service.port, *files, *legs).returncode == 0
        jobs = wait_for(service.settled, "every job", PATIENCE)
        assert Counter(j["state"] for j in jobs) == {"done": len(files), "refused": len(legs)}
        assert check_objects(pacs, files, tmp_path / "out", program) == 2 * len(files)
        before = sorted(pacs.instances())
        assert send(storescu, service.port, *files).returncode == 0
        wait_for(service.settled, "every job", PATIENCE)
        assert sorted(pacs.instances()) == before
