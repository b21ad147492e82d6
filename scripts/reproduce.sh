#!/usr/bin/env bash
# Remakes the tables and figures of "Generative Compression": trains what is missing, then measures everything.
#   scripts/reproduce.sh DATA [OUT]     DATA: the folder with small/, kth/, grid_s1/ (and perceptual/); OUT: results,
#   beside the scripts
# Trained manifolds stay in OUT/manifolds; a run that was stopped goes on where it was.
# To try it: SHARE=0.001 trains that share of each configuration's steps, into OUT/share-0.001 with all its results,
# PICTURES=20 measures on so many test pictures, ONLY=figure7 makes these parts alone.
set -euo pipefail
here=$(pwd)
if [ "$#" -lt 1 ] || [ ! -d "$1" ]; then
    echo "usage: scripts/reproduce.sh DATA [OUT]: ${1:-DATA} is no folder of data" >&2
    exit 2
fi
data="$(cd "$1" && pwd)"
cd "$(dirname "$0")/.."
out="${2:-results}"
if [ "$#" -gt 1 ]; then
    case $2 in /*) ;; *) out=$here/$2 ;; esac
fi
share="${SHARE:-1}"
if ! awk -v s="$share" 'BEGIN { exit !(s + 0 > 0 && s + 0 <= 1) }'; then
    echo "reproduce.sh: SHARE=$share is not above 0 and at most 1" >&2
    exit 2
fi
if ! awk -v s="$share" 'BEGIN { exit !(s + 0 == 1) }'; then
    out=$out/share-$share  # a try's manifolds are not to be taken for whole ones
fi
. scripts/environment.sh
make_environment evaluate
export MCODE_PERCEPTUAL="${MCODE_PERCEPTUAL:-$data/perceptual}"
mkdir -p "$out/manifolds"
for config in configs/paper/*.toml configs/talking-head.toml; do
    name="$(basename "$config" .toml)"
    folder="$out/manifolds/$name"
    if [ ! -f "$folder/$name.safetensors" ]; then
        mkdir -p "$folder"
        awk -v s="$share" '/^steps = / { n = int($3 * s); $3 = n < 2 ? 2 : n }
            /^class_epochs = / { $3 = $3 * s } { print }' "$config" >"$folder/config.toml"
        .venv/bin/python -m mcode train "$folder/config.toml" --data "$data" --out "$folder" --resume
    fi
done
exec .venv/bin/python -m mcode evaluate paper --data "$data" --manifolds "$out/manifolds" -o "$out" \
    ${ONLY:+--only "$ONLY"} ${PICTURES:+--pictures "$PICTURES"}
