#!/usr/bin/env bash
# From nothing to a comparison: makes the environment, encodes VIDEO (or a clip that MCode renders itself), decodes it, and
# leaves a side-by-side video, a report and a picture in results/demo. Usage: scripts/demo.sh [VIDEO]
set -euo pipefail
here=$(pwd)
cd "$(dirname "$0")/.."
. scripts/environment.sh
if [ "$#" -gt 0 ]; then
    case $1 in /*) video=$1 ;; *) video=$here/$1 ;; esac
    [ -f "$video" ] || { say "demo.sh: $1: no such file; give a video, or nothing for a rendered clip"; exit 2; }
fi
make_environment player,live
mcode=.venv/bin/mcode
out=results/demo
mkdir -p "$out"

if [ "$#" -eq 0 ]; then
    video=$out/clip.mp4
    printf '\nRender a clip\n\n'
    $mcode testclip "$video" --force
fi
printf '\nAny footage: manifold general, every 4th frame sent\n\n'
$mcode encode "$video" -o "$out/demo.mcode" --force
$mcode decode "$out/demo.mcode" -o "$out/decoded.mp4" --force
$mcode compare "$video" --against h264,av1 -o "$out/report.html" --force
if [ "$#" -eq 0 ]; then
    printf '\nA scene that both ends know: a manifold learned from 24 s of it, every 8th frame sent\n\n'
    $mcode compare player/assets/talking-head.mp4 --manifold player/assets/demo-head.safetensors --n 8 \
        --against h264,av1 -o "$out/known-scene/report.html" --force
    known="known-scene/report-side-by-side.mp4 known-scene/report.html known-scene/report.png"
fi
printf '\nLook at\n'
for made in decoded.mp4 report-side-by-side.mp4 report.html report.png ${known:-}; do
    printf '  %s\n' "$PWD/$out/$made"
done
[ "$#" -eq 0 ] || printf '\nIs it one scene, or one face? Learn it: mcode adapt VIDEO... -o mine.safetensors\n'
