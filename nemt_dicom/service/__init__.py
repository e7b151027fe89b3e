"""The processes of `nemt-dicom serve`: listener, worker, delivery, and their supervisor."""
