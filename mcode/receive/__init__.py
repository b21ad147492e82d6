"""Live receiving: RTP over UDP to frames and sound. The lanes are sans-IO (mcode.lanes); `Receiver` gives them sockets, clocks
and threads for a player, `receive_to_file` writes one lane to a file. Not here: mcode.send, and the window.

    socket -> channel (if damage is done here) -> lane, its sender's clock (network.py, link.py)
        -> decoded, shown when PlayoutClock says (receiver.py: view.py, playout.py)
        -> or decoded and written (recording.py: recorder.py)
"""

from mcode.receive.link import PLI_GAP_S
from mcode.receive.network import read_session
from mcode.receive.playout import AudioChunk, PlayoutClock
from mcode.receive.receiver import Receiver
from mcode.receive.recording import ReceiveReport, receive_to_file
from mcode.receive.view import Delay, LaneView

__all__ = [
    "PLI_GAP_S",
    "AudioChunk",
    "Delay",
    "LaneView",
    "PlayoutClock",
    "ReceiveReport",
    "Receiver",
    "read_session",
    "receive_to_file",
]
