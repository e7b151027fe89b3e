#!/usr/bin/env bash
# ./deploy/test.sh [PYTEST_OPTION ...]   installs into .venv and runs every test
# As many tests at a time as there are processors; -n 0: one after the other.
# CI=true: a missing server is a failure. NEMT_TEST_DATA: folder of the real radiographs.
set -euo pipefail
# shellcheck source=deploy/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
prepare_environment '[train,dev]'

missing=()
command -v Orthanc >/dev/null || missing+=(orthanc)
command -v storescu >/dev/null || missing+=(dcmtk)
command -v dciodvfy >/dev/null || missing+=(dicom3tools)
"$root/.venv/bin/python" -c 'import cv2' 2>/dev/null || missing+=(libgl1 libglib2.0-0)
if [ ${#missing[@]} -gt 0 ]; then
  if may_install; then
    echo "Installing ${missing[*]}"
    apt_install "${missing[@]}"
  else
    echo "Not installed: ${missing[*]}; the tests that need them are listed as not run." >&2
  fi
fi
cd "$root"
# One thread a test process, and none that spins while it waits: tests pass beside other work.
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive
exec .venv/bin/python -m pytest -n auto --dist loadfile "$@"
