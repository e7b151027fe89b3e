#!/usr/bin/env bash
# ./deploy/demo.sh [DICOM_FILE ...]   installs into .venv and runs `nemt-dicom demo`
set -euo pipefail
# shellcheck source=deploy/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
prepare_environment ''
exec "$root/.venv/bin/nemt-dicom" demo "$@"
