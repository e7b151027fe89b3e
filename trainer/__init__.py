"""Training of model bundles for `nemt-dicom serve`."""
