"""Files in and out: DICOM, exports, uploads, nodules drawn into maps."""
