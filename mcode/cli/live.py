"""send, receive, play, testclip: streams and the window."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer

from mcode.cli.apps import app
from mcode.cli.extras import check_display, extras, signals_end
from mcode.cli.options import (
    DEMO_SIZE,
    Adaptive,
    BitErrorRate,
    Bundle,
    CodedSize,
    Coder,
    Device,
    Duration,
    Force,
    Interval,
    Json,
    Loss,
    Manifold,
    Quality,
    Seed,
    Size,
    Start,
    baseline_rate,
    fec,
    number,
    one_of,
    output_option,
    rate_option,
    seconds_of,
    size_of,
    whole,
)
from mcode.cli.output import (
    byte_count,
    milliseconds,
    minutes,
    print_json,
    print_report,
    print_table,
    print_warnings,
    progress_bar,
)
from mcode.errors import InputError


@app.command()
def testclip(
    output: Annotated[str, typer.Argument(metavar="OUT", help="The video to write: .mp4 or .mkv.", show_default=False)],
    scene: Annotated[
        str,
        typer.Option(
            metavar="demo|arms|face|pan",
            parser=one_of("--scene", "demo", "arms", "face", "pan"),
            help="Moving arms, a talking face, a slow pan, or all three in turn.",
        ),
    ] = "demo",
    seconds: Annotated[
        float, typer.Option(metavar="SECONDS", parser=seconds_of("--seconds", "the length"), help="Length of the clip.")
    ] = 9,
    size: Annotated[
        Size | None,
        typer.Option(
            metavar="WxH",
            parser=size_of("--size", native=False),
            help="Frame size.  [default: 640x360]",
            show_default=False,
        ),
    ] = DEMO_SIZE,
    fps: Annotated[
        int, typer.Option(metavar="FPS", parser=whole("--fps", "the frame rate", 1, 240), help="Frames a second.")
    ] = 25,
    seed: Seed = 0,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Render a clip to try MCode with."""
    from mcode.testclip import write_clip

    asked: dict[str, Any] = {"scene": scene, "seconds": seconds, "fps": fps, "size": size, "seed": seed}
    with progress_bar("rendering") as progress:
        write_clip(output, **asked, force=force, progress=progress)
    file_bytes = os.path.getsize(output)
    if as_json:
        print_json({"path": output, **asked, "file_bytes": file_bytes})
    else:
        print(f"{output}: {minutes(seconds)} of {scene}, {byte_count(file_bytes)}")


def _share_cores() -> None:
    """Before PyTorch is imported: its threads that wait for work sleep. By themselves they spin, and two live programs on the
    same cores then stand still most of the time (docs/log.md)."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@app.command()
def send(
    input: Annotated[
        str,
        typer.Argument(
            metavar="INPUT|camera:0|testsrc",
            help="A video, a camera, or a moving test picture.",
            show_default=False,
        ),
    ],
    to: Annotated[
        str,
        typer.Option(
            metavar="rtp://HOST:PORT",
            help="Where to: MCode goes to PORT, the baseline to PORT + 2, sound to PORT + 4.",
        ),
    ] = "rtp://127.0.0.1:5004",
    n: Interval = 4,
    manifold: Manifold = "general",
    coder: Coder = "huffman",
    quality: Quality = None,
    refresh: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            parser=seconds_of("--refresh", "the time between refreshes"),
            help="Both lanes send a picture whole this often: there a receiver joins or recovers.",
        ),
    ] = 5,
    adaptive: Adaptive = False,
    rate: Annotated[float | None, rate_option(", IP and UDP headers included")] = None,
    bundle: Bundle = 1,
    baseline: Annotated[
        str,
        typer.Option(
            metavar="h264|h265|none",
            parser=one_of("--baseline", "h264", "h265", "none"),
            help="The ordinary codec that is sent beside MCode.",
        ),
    ] = "h264",
    baseline_rate: Annotated[
        Any,
        typer.Option(
            "--baseline-rate",
            metavar="equal|KBPS",
            parser=baseline_rate,
            help="The baseline's rate in kbit/s, or equal to MCode's as measured on the way (by its CRF).",
        ),
    ] = "equal",
    bit_error_rate: BitErrorRate = 0,
    loss: Loss = 0,
    burst: Annotated[
        float,
        typer.Option(
            metavar="PACKETS",
            parser=number("--burst", 1, 1e6, "a mean burst is 1 packet or more"),
            help="Packets are lost so many in a row, on average.",
        ),
    ] = 1,
    delay_ms: Annotated[
        float,
        typer.Option(
            "--delay-ms",
            metavar="MS",
            parser=number("--delay-ms", 0, 60_000, "a delay is from 0 to 60000 ms"),
            help="Hold every packet back by this much.",
        ),
    ] = 0,
    jitter_ms: Annotated[
        float,
        typer.Option(
            "--jitter-ms",
            metavar="MS",
            parser=number("--jitter-ms", 0, 60_000, "a jitter is from 0 to 60000 ms"),
            help="Hold packets back by up to this much more, at random: they overtake each other.",
        ),
    ] = 0,
    seed: Seed = 0,
    realtime: Annotated[
        bool,
        typer.Option("--realtime/--no-realtime", help="Send frames at their time, or as fast as they are coded."),
    ] = True,
    sdp: Annotated[
        str | None,
        typer.Option(
            metavar="OUT.sdp",
            help="Write the session's description; the baseline's alone, for other players, goes beside it.",
            show_default=False,
        ),
    ] = None,
    size: CodedSize = None,
    start: Start = 0,
    duration: Duration = None,
    loop: Annotated[bool, typer.Option("--loop", help="Start a file over at its end, until Ctrl-C.")] = False,
    audio: Annotated[
        str,
        typer.Option(
            metavar="opus|none",
            parser=one_of("--audio", "opus", "none"),
            help="Send the sound as Opus, or leave it out.",
        ),
    ] = "opus",
    audio_rate: Annotated[
        float,
        typer.Option(
            "--audio-rate",
            metavar="KBPS",
            parser=number("--audio-rate", 6, 256, "the sound's rate is from 6 to 256 kbit/s"),
            help="The sound's rate; 6 to 12 is enough for speech.",
        ),
    ] = 32,
    audio_packet: Annotated[
        str,
        typer.Option(
            "--audio-packet",
            metavar="20|40|60|80|100|120",
            parser=one_of("--audio-packet", "20", "40", "60", "80", "100", "120"),
            help="How much sound a packet holds, in ms: more is fewer bytes of headers.",
        ),
    ] = "20",
    fec: Annotated[
        str | None,
        typer.Option(
            metavar="DATA+PARITY",
            parser=fec,
            help="Repair: add PARITY packets to every DATA packets of a picture lane, as 8+2; so many lost ones come "
            "back, as late as the last of their group; a player waits no longer than 2 s. Counted in the rate.",
            show_default=False,
        ),
    ] = None,
    header_twice: Annotated[
        bool,
        typer.Option(
            "--header-twice",
            help="Send the header in each MCode packet twice: damage to one copy is survived. Counted in the rate.",
        ),
    ] = False,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Send a video, a camera or a test picture live, over RTP.

    An ordinary codec and the sound go beside MCode. The simulated channel damages all pictures alike, before they
    leave. Ends with the source, by Ctrl-C or by SIGTERM.
    """
    _share_cores()
    with extras():
        from mcode.send import SendConfig
        from mcode.send import send as send_stream
    from mcode.channel import ChannelSettings

    config = SendConfig(
        input=input,
        to=to,
        n=n,
        manifold=manifold,
        coder=coder,
        quality=quality,
        refresh_s=refresh,
        adaptive=adaptive,
        rate_kbps=rate,
        bundle=bundle,
        baseline=baseline,
        baseline_rate=baseline_rate,
        channel=ChannelSettings(bit_error_rate, loss, burst, delay_ms, jitter_ms, seed),
        realtime=realtime,
        sdp=sdp,
        size=size,
        start_s=start,
        duration_s=duration,
        loop=loop,
        audio=audio == "opus",
        audio_kbps=audio_rate,
        audio_packet_ms=int(audio_packet),
        fec=fec,
        fec_header=header_twice,
        device=device,
    )
    with signals_end() as stop, progress_bar("sending") as progress:
        report = send_stream(config, progress=progress, stop=stop, notify=lambda line: print_warnings([line]))
    print_warnings(report.warnings)
    if as_json:
        print_json(report)
        return
    rows = {
        "frames": f"{report.frames:,} in {minutes(report.duration_s)}: {report.keyframes:,} sent, one in {report.n}",
        "manifold": report.manifold_id,
        "coder": report.coder,
    }
    print_report(to, {**rows, "description": sdp} if sdp else rows)
    print()
    print_table(
        ("lane", "packets", "kbit/s", "with IP", "lost", "damaged", "repair", "receiver's loss", "jitter", "round trip"),
        [
            (
                lane.name,
                f"{lane.packets:,}",
                f"{lane.rate_kbps:.2f}" + (" (its floor)" if lane.at_floor else ""),
                f"{lane.link_kbps:.2f}",
                f"{lane.channel_lost:,}",
                f"{lane.channel_damaged:,}",
                byte_count(lane.fec_bytes),
                "-" if lane.remote_loss is None else f"{lane.remote_loss:.1%}",
                milliseconds(lane.remote_jitter_ms),
                milliseconds(lane.round_trip_ms),
            )
            for lane in report.lanes.values()
        ],
        right=("packets", "kbit/s", "with IP", "lost", "damaged", "repair", "receiver's loss", "jitter", "round trip"),
    )


@app.command()
def receive(
    source: Annotated[
        str,
        typer.Argument(
            metavar="rtp://HOST:PORT|FILE.sdp",
            help="Where to listen, or the description that mcode send --sdp wrote.",
            show_default=False,
        ),
    ],
    output: Annotated[str, output_option("OUT", "A .mp4 or .mkv, with the sound; a .y4m, or images as frames-%05d.png.")],
    duration: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            parser=seconds_of("--duration", "the duration"),
            help="Receive this much; until the sender ends or Ctrl-C if left out.",
            show_default=False,
        ),
    ] = None,
    lane: Annotated[
        str,
        typer.Option(
            metavar="mcode|baseline",
            parser=one_of("--lane", "mcode", "baseline"),
            help="Which of the sender's pictures to write.",
        ),
    ] = "mcode",
    manifold: Annotated[
        str | None,
        typer.Option(
            "--manifold",
            "-m",
            metavar="NAME|FILE",
            help="The manifold it is sent with; looked up among the installed ones if left out.",
            show_default=False,
        ),
    ] = None,
    bind: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Listen on this address of this machine instead, as 0.0.0.0 for all of them.",
            show_default=False,
        ),
    ] = None,
    device: Device = "auto",
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Write what mcode send sends to a file, without a window.

    Ends after --duration, with the sender, by Ctrl-C or by SIGTERM; the file is whole in each case.
    """
    if output == "-":
        raise InputError("-o -: a live stream is written to a file; name one, as out.mp4")
    _share_cores()
    with extras():
        from mcode.receive import receive_to_file

    with signals_end() as stop, progress_bar("receiving") as progress:
        report = receive_to_file(
            source,
            output,
            duration_s=duration,
            lane=lane,
            manifold=manifold,
            bind_to=bind,
            device=device,
            force=force,
            progress=progress,
            stop=stop,
        )
    if not report.frames:  # Ctrl-C before the first picture: no file
        raise KeyboardInterrupt
    print_warnings(report.warnings)
    if as_json:
        print_json(report)
        return
    counts = report.counters
    rows = {
        "frames": f"{report.frames:,} of {report.width}x{report.height} in {minutes(report.duration_s)}",
        "lane": report.lane if report.n is None else f"{report.lane}, every {report.n}. frame, {report.coder}",
        "packets": f"{counts.received:,} ({byte_count(counts.received_bytes)}), {counts.lost:,} lost, "
        f"{counts.damaged + counts.damaged_headers:,} damaged, {counts.fec_recovered:,} rebuilt",
        "dropped": f"{counts.foreign + counts.not_rtp:,} foreign, {counts.duplicate:,} twice, {counts.late:,} too late",
        "jitter": milliseconds(counts.jitter_ms),
    }
    print_report(output, {**rows, "manifold": report.manifold_id} if report.manifold_id else rows)


@app.command()
def play(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="[SOURCE]",
            help="FILE.mcode, any video, camera:0, STREAM.sdp or rtp://HOST:PORT; an empty window if left out.",
            show_default=False,
        ),
    ] = None,
    demo: Annotated[
        bool, typer.Option("--demo", help="Show the built-in comparison; it needs no camera and no network.")
    ] = False,
    manifold: Annotated[
        str | None,
        typer.Option(
            "--manifold",
            "-m",
            metavar="NAME|FILE",
            help="The manifold to encode with live; general, or another that is installed, if left out.",
            show_default=False,
        ),
    ] = None,
    n: Annotated[
        int,
        typer.Option(
            "--n",
            "-n",
            metavar="N",
            parser=whole("--n", "the keyframe interval in the player", 1, 32),
            help="Send every N-th frame; the receiver interpolates the others.",
        ),
    ] = 4,
    adaptive: Adaptive = False,
    rate: Annotated[float | None, rate_option(", RTP headers included")] = None,
    coder: Coder = "huffman",
    quality: Quality = None,
    bit_error_rate: BitErrorRate = 0,
    loss: Loss = 0,
    seed: Seed = 0,
    device: Device = "auto",
    sound: Annotated[bool, typer.Option("--sound/--no-sound", help="Open the sound card, or leave it alone.")] = True,
    fullscreen: Annotated[bool, typer.Option("--fullscreen", help="Fill the screen.")] = False,
) -> None:
    """Play a file, a stream, a video or a camera in a window.

    Videos and cameras are encoded live: MCode stands beside H.264, one simulated channel damaging both. Keys: press ?.
    """
    from importlib import import_module  # mypy checks mcode, and would follow the name into the window

    check_display("`mcode decode` writes a video instead")
    with extras("player"):
        status = import_module("player.app").run(
            source,
            demo=demo,
            manifold=manifold,
            n=n,
            adaptive=adaptive,
            rate_kbps=rate,
            coder=coder,
            quality=quality,
            bit_error_rate=bit_error_rate,
            loss=loss,
            seed=seed,
            device=device,
            sound=sound,
            full_screen=fullscreen,
        )
    raise typer.Exit(status)
