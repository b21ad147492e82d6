"""A library of videos into .mcode files: long ones cut into segments, encoded by many processes with Ray, joined in order.

Not here: how frames become packets (transcode.py) and how a video is read in parts (video/reading.py).

    inputs -> outputs_of -> _File.plan -> segments -> SegmentEncoder, in any process -> parts -> _File.add -> .mcode
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import ExitStack, closing, redirect_stdout, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, Protocol, Self

from .codec import Encoder
from .container import McodeWriter
from .errors import InputError, McodeError
from .frame import TICKS_PER_S, Frame
from .jobs import cores
from .latents import choose_device
from .manifold import Manifold, load
from .memory import keep_freed_memory, ran_out
from .packet import Packet
from .refine import Refiner
from .transcode import MEDIA, Encoded, EncodeReport, Encoding, Progress, expected_frames, keeps_sound, refuse_same, report_of
from .video import FrameReader, check_size

_STORE_BYTES = 128 << 20  # shared memory of a local Ray, for packets on their way: a segment has some megabytes at most

_LONGEST_KNOCK_S = 10


@dataclass(frozen=True)
class Settings:
    """How to encode, as `encode_file` has it. refine: steps, 0 for none; refine_by, perceptual: see `refine.Refiner`."""

    manifold: str = "general"
    n: int = 4
    coder: str = "huffman"
    quality: int | None = None
    refresh_s: float = 10.0
    device: str = "auto"
    size: tuple[int, int] | None = None
    audio: str | bool = "copy"
    refine: int = 0
    refine_by: str = "eye"
    perceptual: str | None = None
    adaptive: bool = False
    rate_kbps: float | None = None

    def load(self) -> tuple[Manifold, Refiner | None]:
        """Raises McodeError where the manifold does not do what is asked for, and for what is no setting."""
        keeps_sound(self.audio)
        check_size(self.size)
        model = load(self.manifold, self.device)
        width, height = model.frame_size or (64, 64)
        Encoder(
            model,
            width,
            height,
            n=self.n,
            coder=self.coder,
            quality=self.quality,
            refresh_s=self.refresh_s,
            rate_kbps=self.rate_kbps,
        )
        if not self.refine:
            return model, None
        return model, Refiner(model, self.refine, judge=self.refine_by, weights=self.perceptual)


@dataclass(frozen=True)
class Segment:
    """The frames of a video with first <= pts < end, in ticks; end is None in the last one."""

    input: Path
    output: Path
    number: int
    first: int
    end: int | None


class Seam(NamedTuple):
    """A frame at which one segment ends and another begins, as each has read it."""

    pts: int
    checksum: int

    @classmethod
    def of(cls, frame: Frame) -> Seam:
        return cls(frame.pts, zlib.crc32(frame.rgb.tobytes()))


@dataclass(frozen=True)
class Part:
    """What became of a segment. begins: its first frame, or where it has none the one behind it; behind: the first frame behind
    it; both None where the video has no such frame. doubtful: the file's clock runs backwards or its bytes are damaged, so that
    frames may be missing here that the whole has. seconds: that it took."""

    packets: tuple[Packet, ...]
    encoded: Encoded
    begins: Seam | None
    behind: Seam | None
    doubtful: bool
    seconds: float


@dataclass(frozen=True)
class Failure:
    """Why a segment has not become a part, in one line. trace: of a fault in mcode itself."""

    reason: str
    trace: str = ""


def _failure(error: Exception, input: Path) -> Failure:
    """Why the input failed; of what is neither its fault nor the user's, with a traceback. While it is handled."""
    if ran_out(error):
        return Failure(f"{input}: out of memory; try a smaller --size, or fewer --workers")
    if not isinstance(error, (McodeError, OSError)):
        return Failure(f"{input}: a fault in mcode: {type(error).__name__}: {error}", traceback.format_exc())
    if isinstance(error, OSError):
        return Failure(f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error))
    return Failure(str(error))


class SegmentEncoder:
    """Encodes segments one after the other. Loads its manifold at the first one and keeps it.

    threads: torch's, in a process of its own; None in one that has seen to that.
    """

    def __init__(self, settings: Settings, threads: int | None = None) -> None:
        self._settings, self._threads = settings, threads
        self._loaded: tuple[Manifold, Refiner | None] | None = None

    def encode(self, segment: Segment) -> Part | Failure:
        """Raises nothing: this is the outermost frame of a process whose errors nobody sees."""
        try:
            return self._part(segment)
        except Exception as error:
            return _failure(error, segment.input)

    def _part(self, segment: Segment) -> Part:
        if self._loaded is None:
            if self._threads is not None:
                import torch

                keep_freed_memory()
                torch.set_num_threads(self._threads)
            self._loaded = self._settings.load()
        started = time.perf_counter()
        model, refiner = self._loaded
        s = self._settings
        run = Encoding(
            segment.input,
            model,
            n=s.n,
            coder=s.coder,
            quality=s.quality,
            refresh_s=s.refresh_s,
            size=s.size,
            refine=refiner,
            adaptive=s.adaptive,
            rate_kbps=s.rate_kbps,
        )
        begins: Seam | None = None
        behind: Seam | None = None

        def frames() -> Iterator[Frame]:
            nonlocal begins, behind
            for frame in run.reader.since(segment.first):
                begins = begins or Seam.of(frame)
                if segment.end is not None and frame.pts >= segment.end:
                    behind = Seam.of(frame)
                    return
                yield frame

        with run.jobs:
            packets = tuple(run.packets(frames()))
        doubtful = run.reader.runs_backwards or run.reader.damaged > 0
        return Part(packets, run.result(to_the_end=behind is None), begins, behind, doubtful, time.perf_counter() - started)


Done = Generator[tuple[Segment, Part | Failure], None, None]
"""Segments and what has become of them."""


class Workers(Protocol):
    """Who encodes segments."""

    def run(self, queue: deque[Segment]) -> Done:
        """Takes segments from the left of the queue until it is empty, and gives each back with what became of it, in the order
        in which they are done. Between two of them the caller may take segments out of the queue or put more in."""
        ...


class Here:
    """Workers: this process alone."""

    def __init__(self, settings: Settings) -> None:
        self._encoder = SegmentEncoder(settings)

    def run(self, queue: deque[Segment]) -> Done:
        while queue:
            segment = queue.popleft()
            yield segment, self._encoder.encode(segment)


@dataclass(frozen=True)
class FileReport:
    """What became of an input. error: why it failed, in one line, else None; trace: of a fault in mcode itself; report: of what
    was encoded, else None. Its encode_fps counts the time of all workers together."""

    input: Path
    output: Path
    state: Literal["encoded", "skipped", "failed"]
    error: str | None = None
    trace: str = ""
    report: EncodeReport | None = None


@dataclass(frozen=True)
class BatchReport:
    """files: in the order of the inputs. notes: what was left out, and why."""

    files: tuple[FileReport, ...]
    seconds: float
    notes: tuple[str, ...] = ()

    def count(self, state: str) -> int:
        return sum(file.state == state for file in self.files)


def encode_files(
    inputs: Sequence[str | os.PathLike[str]],
    folder: str | os.PathLike[str],
    settings: Settings,
    workers: Workers,
    *,
    segment_s: float = 60.0,
    force: bool = False,
    progress: Progress | None = None,
    tell: Callable[[FileReport], None] | None = None,
) -> BatchReport:
    """Encodes files, and the videos and pictures in folders, into .mcode files under `folder`, see `outputs_of`.

    A video longer than segment_s is cut there, each segment starts with a refresh, and the file's bytes do not depend on who
    encodes which segment when; a shorter one becomes what `encode_file` makes of it. Outputs that exist stay as they are, but
    with force. tell: called with each file when it is done. Raises InputError and ManifoldError for what concerns all inputs;
    where one fails the others go on.
    """
    started = time.perf_counter()
    if not segment_s >= 1:
        raise InputError(f"a segment of {segment_s:g} s: it is 1 second or longer")
    links: list[Path] = []
    files = [_File(input, output, force) for input, output in outputs_of(inputs, folder, links)]
    model, _ = replace(settings, device="cpu").load()  # where the networks run is for the workers to say
    is_new = not Path(folder).exists()
    Path(folder).mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise InputError(f"{os.fspath(folder)}: not allowed to write into this folder")
    reports: dict[Path, FileReport] = {}

    def done(report: FileReport) -> None:
        reports[report.output] = report
        if tell:
            tell(report)

    queue: deque[Segment] = deque()
    open_files: dict[Path, _File] = {}
    frames = total = 0
    unknown = False
    report: FileReport | None
    for file in files:
        if file.output.is_file() and not force:
            done(FileReport(file.input, file.output, "skipped"))
            continue
        try:
            queue += file.plan(segment_s, settings.audio)
        except Exception as error:
            done(file.failed(_failure(error, file.input)))
            continue
        open_files[file.output] = file
        unknown, total = unknown or file.expected is None, total + (file.expected or 0)
    try:
        with closing(workers.run(queue)) as parts:
            for segment, part in parts:
                current = open_files.get(segment.output)
                if current is None or segment not in current.segments:
                    continue  # of a file that has failed, or has been begun anew
                try:
                    if isinstance(part, Failure):
                        report = current.failed(part)
                    else:
                        frames += part.encoded.frames
                        current.add(segment, part)
                        report = current.close(model, settings.rate_kbps) if current.is_whole else None
                except Exception as error:
                    report = current.failed(_failure(error, current.input))
                if report is not None:
                    del open_files[current.output]
                    _drop(queue, current.output)
                    done(report)
                elif current.mismatch:  # what the segments show is not what the whole does
                    frames -= current.encode_in_one_piece()
                    _drop(queue, current.output)
                    queue.appendleft(current.segments[0])
                if progress:
                    progress(frames, None if unknown else max(total, frames))
    finally:
        for file in open_files.values():
            file.abort()
        if is_new:
            with suppress(OSError):  # it is not empty
                Path(folder).rmdir()
    notes = (_left_out(links),) if links else ()
    return BatchReport(tuple(reports[file.output] for file in files), time.perf_counter() - started, notes)


def outputs_of(
    inputs: Iterable[str | os.PathLike[str]], folder: str | os.PathLike[str], links: list[Path] | None = None
) -> list[tuple[Path, Path]]:
    """Each input file and its output: a.mp4 -> folder/a.mcode, and of an input folder a, a/b/c.mp4 -> folder/b/c.mcode.

    Folders are searched for names of videos and pictures, but for hidden ones and for linked folders, which are added to
    `links` where they are no inputs themselves. Raises InputError for a folder without any, or that cannot be read, and for
    two inputs of one output.
    """
    if not os.fspath(folder):
        raise InputError("no output folder given: its name is empty")
    target = Path(folder)
    if target.exists() and not target.is_dir():
        raise InputError(f"{target} is a file: name a folder for the .mcode files")
    of_output: dict[Path, Path] = {}
    roots, passed = set(), []
    for given in inputs:
        if not os.fspath(given):
            raise InputError("no input given: its name is empty, name a video or a folder")
        root = Path(given)
        roots.add(os.path.realpath(root))
        linked: list[Path] = []
        found = list(_media(root, linked)) if root.is_dir() else [root]
        if not found and linked:
            raise InputError(f"{root}: no video or picture in this folder itself; {_left_out(linked)}")
        if not found:
            raise InputError(f"{root}: no video or picture in this folder; a file of another suffix can be given by its name")
        passed += linked
        for input in found:
            name = input.relative_to(root) if root.is_dir() else Path(input.name)
            output = target / name.with_suffix(".mcode")
            other = of_output.setdefault(output, input)
            if other != input and not (other.exists() and input.exists() and other.samefile(input)):
                raise InputError(f"{other} and {input} would both become {output}: rename one, or encode them into two folders")
    if links is not None:
        links += dict.fromkeys(link for link in passed if os.path.realpath(link) not in roots)
    return [(input, output) for output, input in of_output.items()]


def _left_out(links: Sequence[Path]) -> str:
    more = f", and {len(links) - 1:,} more" if len(links) > 1 else ""
    return f"{links[0]}: linked folders are not searched{more}; give them as inputs"


def _media(root: Path, links: list[Path]) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename}: cannot read this folder ({error.strerror})") from error

    for path, folders, names in os.walk(root, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        links += (Path(path) / name for name in folders if os.path.islink(os.path.join(path, name)))
        for name in sorted(names):
            if not name.startswith(".") and Path(name).suffix.lower() in MEDIA:
                yield Path(path) / name


def _drop(queue: deque[Segment], output: Path) -> None:
    """Takes the segments of a file out of the queue."""
    kept = [segment for segment in queue if segment.output != output]
    queue.clear()
    queue.extend(kept)


class _File:
    """An input on its way: its segments, and the output, which is written as far as the parts have come without a gap."""

    def __init__(self, input: Path, output: Path, force: bool) -> None:
        self.input, self.output, self._force = input, output, force
        self.segments: list[Segment] = []
        self.expected: int | None = None
        self._has_sound = False
        self._begin()

    def _begin(self) -> None:
        self._parts: dict[int, Part] = {}  # that have come before their turn
        self._next = 0
        self._writer: McodeWriter | None = None
        self._encoded: Encoded | None = None
        self._behind: Seam | None = None
        self._frames = 0
        self._seconds = 0.0
        self.mismatch = False

    def plan(self, segment_s: float, audio: str | bool) -> list[Segment]:
        """Raises InputError for an input that is no video."""
        refuse_same(self.input, self.output)
        if self.output.is_dir():
            raise InputError(f"{self.output} is a folder, where {self.input} would become a file of that name")
        reader = FrameReader(self.input)
        self.expected = expected_frames(reader.info)
        self._has_sound = keeps_sound(audio) and reader.info.audio_codec is not None
        length_s = reader.info.duration_s or 0
        count = math.ceil(length_s / segment_s) if length_s > segment_s and reader.is_seekable() else 1
        firsts = [round(segment_s * TICKS_PER_S * number) for number in range(count)]
        ends = [*firsts[1:], None]
        self.segments = [Segment(self.input, self.output, i, *ticks) for i, ticks in enumerate(zip(firsts, ends, strict=True))]
        return self.segments

    def add(self, segment: Segment, part: Part) -> None:
        """Writes what now follows without a gap. Where the frame behind one part is not the first of the next, or where
        one of several parts is doubtful, `mismatch` is set and nothing more is written."""
        self._parts[segment.number] = part
        self._frames += part.encoded.frames
        if part.doubtful and len(self.segments) > 1:
            self.mismatch = True
            return
        while (following := self._parts.pop(self._next, None)) is not None:
            if self._next and following.begins != self._behind:
                self.mismatch = True
                return
            if self._writer is None:
                self.output.parent.mkdir(parents=True, exist_ok=True)
                sound = self.input if self._has_sound else None
                self._writer = McodeWriter(self.output, audio_from=sound, force=self._force)
            for packet in following.packets:
                self._writer.write(packet, following.encoded.n)
            self._encoded = following.encoded if self._encoded is None else self._encoded + following.encoded
            self._behind = following.behind
            self._seconds += following.seconds
            self._next += 1

    def encode_in_one_piece(self) -> int:
        """Begins anew, as one segment. Returns how many frames have been encoded in vain."""
        in_vain = self._frames
        self.abort()
        self._begin()
        self.segments = [Segment(self.input, self.output, 0, 0, None)]
        return in_vain

    @property
    def is_whole(self) -> bool:
        return self._next == len(self.segments)

    def close(self, model: Manifold, rate_kbps: float | None) -> FileReport:
        assert self._writer is not None and self._encoded is not None
        if not self._encoded.frames:
            raise InputError(f"{self.input}: no frames in it")
        self._writer.close(self._encoded.last_ticks)
        report = report_of(self._encoded, self.input, model, self._writer, self._seconds, rate_kbps)
        return FileReport(self.input, self.output, "encoded", report=report)

    def abort(self) -> None:
        if self._writer is not None:
            self._writer.abort()

    def failed(self, failure: Failure) -> FileReport:
        self.abort()
        return FileReport(self.input, self.output, "failed", error=failure.reason, trace=failure.trace)


class RayWorkers:
    """Workers: processes of Ray, on this machine or a cluster, started with the first segment and stopped with the context.
    In it standard output is standard error.

    count: processes; None for one per GPU where the networks run on CUDA, else one per processor core. cluster: the address of
    a Ray that runs, else one is started here and stopped again, which nothing but this process can use. On a cluster MCode,
    the manifold and all files must be found under the same paths on every machine. Raises InputError where the cluster does
    not answer, or does not let MCode in.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        count: int | None = None,
        cluster: str | None = None,
        encoder: type[SegmentEncoder] = SegmentEncoder,
    ) -> None:
        # Ray reads these at its import. Without a token, whoever reaches its ports could run code in its processes.
        if cluster is None and "ray" not in sys.modules:
            os.environ.setdefault("RAY_AUTH_MODE", "token")
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else it warns of what that will be
        import ray

        self._ray: Any = ray
        self._settings, self._count, self._cluster, self._encoder = settings, count, cluster, encoder
        self._stack = ExitStack()
        self._new: Callable[[], Any] | None = None
        self._processes = 0

    def __enter__(self) -> Self:
        self._stack.enter_context(redirect_stdout(sys.stderr))  # Ray prints there that a process has died
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        self._stack.close()

    def _start(self) -> None:
        import torch

        device = choose_device(self._settings.device).type
        gpus = torch.cuda.device_count() if device == "cuda" else 0
        count = self._count or gpus or (1 if device == "mps" else cores())
        # not $TMPDIR, which may be long: sockets lie in it, whose paths have 107 bytes at most
        place = tempfile.TemporaryDirectory(prefix="mcode-", dir="/tmp", ignore_cleanup_errors=True)
        folder = self._stack.enter_context(place)
        self._stack.callback(self._ray.shutdown)  # before the folder goes
        self._init(
            address="local",
            num_cpus=count,
            num_gpus=gpus,
            include_dashboard=False,
            object_store_memory=_STORE_BYTES,
            _temp_dir=folder,
        )
        self._make(device, count, gpus, max(1, torch.get_num_threads() // count))

    def _join(self, address: str) -> None:
        reason = "no Ray runs on this machine" if address == "auto" else "no Ray answers there"
        host, _, port = address.rpartition(":")
        answered = False
        try:
            if address != "auto":  # asked first, as Ray itself waits for minutes
                socket.create_connection((host, int(port)), _LONGEST_KNOCK_S).close()
                answered = True
            self._stack.callback(self._ray.shutdown)
            self._init(address=address)
        except (OSError, RuntimeError, ValueError, OverflowError) as error:
            if answered or str(error).startswith("Failed to connect"):  # and not "Could not find any running Ray instance"
                raise InputError(
                    f"--cluster {address}: Ray does not let MCode in; for a cluster with tokens set RAY_AUTH_MODE=token and "
                    "RAY_AUTH_TOKEN to its token, else see that HOST:PORT is the head's and that its version of Ray is this one"
                ) from error
            raise InputError(f"--cluster {address}: {reason}; give HOST:PORT of the head, as 10.0.0.1:6379, or auto") from error
        has = self._ray.cluster_resources()
        gpus = int(has.get("GPU", 0)) if self._settings.device in ("auto", "cuda") else 0
        self._make(self._settings.device, self._count or gpus or max(1, int(has.get("CPU", 1))), gpus, 1)

    def _init(self, **options: Any) -> None:
        in_main = threading.current_thread() is threading.main_thread()
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM) if in_main}
        # Ray names its job by this process' command line, and fails where a file's name in it is no UTF-8
        utils = self._ray._private.utils
        named, utils.get_entrypoint_name = getattr(utils, "get_entrypoint_name", None), lambda: "mcode batch"
        try:
            self._ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
        except SystemExit as end:  # by Ray's handler of SIGTERM
            sys.exit(128 + signal.SIGTERM if end.code == signal.SIGTERM else end.code)
        finally:
            utils.get_entrypoint_name = named
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _make(self, device: str, count: int, gpus: int, threads: int) -> None:
        share = 1 / math.ceil(count / gpus) if gpus else 0
        actor = self._ray.remote(num_cpus=1, num_gpus=share)(self._encoder)
        settings = replace(self._settings, device=device)
        self._processes = count
        self._new = lambda: actor.remote(settings, threads)

    def run(self, queue: deque[Segment]) -> Done:
        if not queue:
            return
        if self._new is None:
            self._start() if self._cluster is None else self._join(self._cluster)
        # With futures Python itself waits: signals that come while Ray does lose their exit status.
        new = self._new
        assert new is not None
        starting: dict[Future[Any], Any] = {}  # a cluster without a free processor lets them wait, maybe for ever
        at_work: dict[Future[Any], tuple[Any, Segment, bool]] = {}  # whether it is the second try
        idle: list[Any] = []
        again: deque[Segment] = deque()  # whose process has died
        count = self._processes
        try:
            while queue or again or at_work:
                while len(starting) + len(idle) + len(at_work) < min(count, len(queue) + len(again) + len(at_work)):
                    actor = new()
                    starting[actor.__ray_ready__.remote().future()] = actor
                while idle and (again or queue):
                    actor, second = idle.pop(), bool(again)
                    segment = (again or queue).popleft()
                    at_work[actor.encode.remote(segment).future()] = actor, segment, second
                if not count:
                    segment = (again or queue).popleft()
                    yield segment, Failure(f"{segment.input}: no worker process could be started")
                    continue
                for done in wait([*starting, *at_work], return_when=FIRST_COMPLETED).done:
                    if done in starting:
                        actor = starting.pop(done)
                        if done.exception() is None:
                            idle.append(actor)
                        else:
                            count -= 1
                        continue
                    actor, segment, second = at_work.pop(done)
                    part = self._result(done, segment)
                    if part is not None:
                        idle.append(actor)
                    elif not second:
                        again.append(segment)
                        continue
                    yield segment, part or Failure(f"{segment.input}: its worker process died, twice; try fewer --workers")
        finally:
            for actor in [*starting.values(), *idle, *(actor for actor, _, _ in at_work.values())]:
                self._ray.kill(actor)

    def _result(self, done: Future[Part | Failure], segment: Segment) -> Part | Failure | None:
        """None where the process has died."""
        try:
            return done.result()
        except self._ray.exceptions.RayTaskError as error:  # not of `encode`, but of what brings its result
            return Failure(f"{segment.input}: a fault in mcode: {type(error).__name__}", str(error))
        except self._ray.exceptions.RayError:
            return None
