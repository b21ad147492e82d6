"""The figures for `talking-head` in docs/results.md: every clip of grid_s1/dev by itself, beside SVT-AV1, x265 and x264.

python scripts/measure_talking_head.py --data DIR [--manifold FILE] [--n 1 2 4 8 16] -o results.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from mcode.baseline import CODERS, CrfSearch
from mcode.errors import InputError, McodeError
from mcode.manifold import load
from mcode.transcode import encode_file
from mcode.video import FrameReader


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--manifold", default="talking-head")
    parser.add_argument("--n", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--quality", type=int)
    parser.add_argument("--codecs", nargs="*", choices=list(CODERS), default=["av1", "h265", "h264"])
    parser.add_argument("-o", "--output", type=Path, required=True)
    given = parser.parse_args()
    try:
        measure(given)
    except McodeError as error:
        parser.error(str(error))


def measure(given: argparse.Namespace) -> None:
    folder = given.data / "grid_s1" / "dev"
    clips = sorted(folder.glob("*.mpg"))
    if not clips:
        raise InputError(f"{folder}: no clips (.mpg) there")
    model = load(given.manifold)
    if model.frame_size is None:
        raise InputError(f"manifold {model.name} is for pictures of any size; give one of the clips' own")
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for n in given.n:
            out = Path(scratch) / "clip.mcode"
            options = {"manifold": model, "n": n, "quality": given.quality, "size": model.frame_size, "audio": "none"}
            made = [encode_file(clip, out, force=True, **options) for clip in clips]
            row = {
                "codec": model.name,
                "setting": f"N = {n}",
                "kbps": statistics.mean(m.rate_kbps for m in made),
                "worst_kbps": max(m.rate_kbps for m in made),
                "psnr_db": statistics.mean(m.psnr_db for m in made),
            }
            rows.append(row)
            print(row, flush=True)
    for codec in given.codecs:
        made = []
        for clip in clips:
            frames = list(FrameReader(clip, size=model.frame_size, crop_to=model.frame_size))
            made.append(CrfSearch(frames, codec).at_crf(CODERS[codec].crf_floor))
        row = {
            "codec": CODERS[codec].label,
            "setting": f"{CODERS[codec].encoder} {CODERS[codec].preset}, CRF {CODERS[codec].crf_floor} (floor)",
            "kbps": statistics.mean(m.rate_kbps for m in made),
            "worst_kbps": max(m.rate_kbps for m in made),
            "psnr_db": statistics.mean(m.psnr_db for m in made),
        }
        rows.append(row)
        print(row, flush=True)
    given.output.write_text(json.dumps({"size": list(model.frame_size), "clips": len(clips), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
