#!/usr/bin/env bash
# From nothing to a comparison: makes the environment, encodes VIDEO (or a clip that MCode renders itself), decodes it, and
# leaves a side-by-side video, a report and a picture in results/demo. Usage: scripts/demo.sh [VIDEO]
set -euo pipefail
here=$(pwd)
cd "$(dirname "$0")/.."
. scripts/environment.sh
make_environment player,live
out=results/demo
mkdir -p "$out"
if [ "$#" -gt 0 ]; then
    case $1 in /*) video=$1 ;; *) video=$here/$1 ;; esac
else
    video=$out/clip.mp4
    .venv/bin/mcode testclip "$video" --force
fi
.venv/bin/mcode encode "$video" -o "$out/demo.mcode" --force
.venv/bin/mcode decode "$out/demo.mcode" -o "$out/decoded.mp4" --force
.venv/bin/mcode compare "$video" --against h264,av1 -o "$out/report.html" --force
printf '\n'
for made in demo.mcode decoded.mp4 side-by-side.mp4 report.html report.png; do
    [ ! -e "$out/$made" ] || printf '  %s\n' "$PWD/$out/$made"
done
