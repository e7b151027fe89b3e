# Sourced by demo.sh and test.sh: makes .venv beside pyproject.toml and installs into it.
# prepare_environment EXTRAS   e.g. prepare_environment '' or prepare_environment '[train,dev]'

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

may_install() { # true where apt can be used without asking anybody
  command -v apt-get >/dev/null || return 1
  [ "$(id -u)" = 0 ] || sudo -n true 2>/dev/null
}

apt_install() {
  local as_root=()
  [ "$(id -u)" = 0 ] || as_root=(sudo -n)
  "${as_root[@]}" apt-get update -qq
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

find_python() {
  local candidate
  for candidate in "${PYTHON:-}" python3 python3.13 python3.12 python3.11; do
    if [ -n "$candidate" ] && command -v "$candidate" >/dev/null &&
      "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
      command -v "$candidate"
      return
    fi
  done
  echo "Python 3.11 or newer is needed; install it, or name it: PYTHON=/path/to/python3.12 $0" >&2
  return 1
}

prepare_environment() {
  local extras=$1 python stamp
  if [ ! -x "$root/.venv/bin/pip" ]; then
    python=$(find_python)
    if ! "$python" -c 'import ensurepip' 2>/dev/null; then
      if may_install; then apt_install python3-venv; else
        echo "Python's venv module is missing: sudo apt-get install python3-venv" >&2
        return 1
      fi
    fi
    rm -rf "$root/.venv"
    "$python" -m venv "$root/.venv"
  fi
  stamp="$root/.venv/installed$extras"
  if [ ! -f "$stamp" ] || [ "$root/pyproject.toml" -nt "$stamp" ] || [ "$root/deploy/constraints.txt" -nt "$stamp" ] ||
    [ "$root/nemt_dicom/__init__.py" -nt "$stamp" ]; then # it has the version
    echo "Installing into .venv (PyTorch with CUDA: several GB at the first time)"
    "$root/.venv/bin/pip" install --disable-pip-version-check --no-warn-script-location \
      -c "$root/deploy/constraints.txt" -e "$root$extras"
    touch "$stamp"
  fi
}
