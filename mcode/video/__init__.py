"""Video files in and out: anything FFmpeg opens becomes RGB frames, frames become MP4, Matroska, y4m or PNG, sound is copied.

reading.py   frames out of files, in order of time
sound.py     the sound of a file, cut with the pictures, on its way into another one
writing.py   frames into files
streams.py   a file's tracks: opened, chosen, read as packets and as decoded pictures
times.py     when pictures are due: the file's own clock, joints, seeking
pixels.py    colours, orientation, size
images.py    image files by Pillow
output.py    files that get their name when they are whole
paths.py     the names that users give

Not here: the .mcode file (container.py) and the codecs to compare with (baseline.py).
"""

from mcode.video.images import check_picture_size, open_image, picture_size
from mcode.video.output import OutputFile
from mcode.video.paths import StrPath, check_input
from mcode.video.pixels import centre_crop, check_size, resize
from mcode.video.reading import FrameReader, VideoInfo, frames_at, probe, read_picture
from mcode.video.sound import AudioTrack, add_sound, audio_packets, probe_audio
from mcode.video.times import TICK, due_s, picture_zero, time_base
from mcode.video.writing import FrameWriter, check_frames_output

__all__ = [
    "TICK",
    "AudioTrack",
    "FrameReader",
    "FrameWriter",
    "OutputFile",
    "StrPath",
    "VideoInfo",
    "add_sound",
    "audio_packets",
    "centre_crop",
    "check_frames_output",
    "check_input",
    "check_picture_size",
    "check_size",
    "due_s",
    "frames_at",
    "open_image",
    "picture_size",
    "picture_zero",
    "probe",
    "probe_audio",
    "read_picture",
    "resize",
    "time_base",
]
