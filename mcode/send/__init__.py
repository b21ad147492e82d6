"""Live sending: a file, a camera or a test picture as RTP over UDP, MCode beside an ordinary codec and the sound.

    sources.py -> encoders, packets (sender.py; baseline.py: the ordinary codec) -> channel, sockets (wire.py)

Lanes go to HOST:PORT (MCode), PORT + 2 (the baseline) and PORT + 4 (Opus), each with its RTCP on the same port (RFC
5761). The channel sits here, behind the packetisers: it damages pictures; the sound shares only its delay. Not here:
mcode.receive.

config.py       what is asked for
descriptions.py the session descriptions written
testsrc.py      the test picture
"""

from mcode.send.config import SendConfig
from mcode.send.sender import Sender, SendReport, send
from mcode.send.sources import Source, release_decoders
from mcode.send.testsrc import read_stamp, test_picture
from mcode.send.wire import LaneReport

__all__ = [
    "LaneReport",
    "SendConfig",
    "SendReport",
    "Sender",
    "Source",
    "read_stamp",
    "release_decoders",
    "send",
    "test_picture",
]
