#!/usr/bin/env bash
# Remakes the tables and figures of "Generative Compression": trains what is missing, then measures everything.
#   scripts/reproduce.sh DATA [OUT]     DATA: the folder with small/, kth/, grid_s1/ (and perceptual/); OUT: results
# Trained manifolds stay in OUT/manifolds; a run that was stopped goes on where it was.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ "$#" -lt 1 ] || [ ! -d "$1" ]; then
    echo "usage: scripts/reproduce.sh DATA [OUT]: ${1:-DATA} is no folder of data" >&2
    exit 2
fi
data="$(cd "$1" && pwd)"
out="${2:-results}"
. scripts/environment.sh
make_environment evaluate
export MCODE_PERCEPTUAL="${MCODE_PERCEPTUAL:-$data/perceptual}"
mkdir -p "$out/manifolds"
for config in configs/paper/*.toml configs/talking-head.toml; do
    name="$(basename "$config" .toml)"
    if [ ! -f "$out/manifolds/$name/$name.safetensors" ]; then
        .venv/bin/python -m mcode train "$config" --data "$data" --out "$out/manifolds/$name" --resume
    fi
done
exec .venv/bin/python -m mcode evaluate paper --data "$data" --manifolds "$out/manifolds" -o "$out"
