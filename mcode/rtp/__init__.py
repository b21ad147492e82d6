"""RTP without sockets: packets, control packets, session descriptions and payload formats, bytes in and objects out.

packets.py    the RTP packet (RFC 3550), and when two packets follow each other
reception.py  one lane's incoming packets: whose they are, in what order, what is lost; the statistics of a receiver
report payload.py    MCode keyframes in RTP packets, and back
h264.py       H.264 (RFC 6184, packetization-mode 1) and H.265 (RFC 7798) in RTP packets, and back
opus.py       Opus (RFC 7587)
rtcp.py       sender and receiver reports, BYE, PLI (RFC 3550 section 6, RFC 4585)
sdp.py        the session description (RFC 8866)
"""
