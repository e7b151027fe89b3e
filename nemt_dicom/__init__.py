"""NEMt DICOM: explains chest radiographs beside a PACS. Research only, not for diagnosis."""

__version__ = "0.7.0"
