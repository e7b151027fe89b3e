"""From an explanation to DICOM objects: Segmentation and Secondary Capture."""
