#!/usr/bin/env bash
# Makes the environment and runs the tests, all but the slow ones. Arguments go to pytest: scripts/test.sh -m slow
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh
make_environment player,live,cluster,dev
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-2}" QT_QPA_PLATFORM="${QT_QPA_PLATFORM:-offscreen}"
if [ "$#" -eq 0 ]; then set -- -m "not slow"; fi
exec .venv/bin/python -m pytest "$@"
