"""A client of HTTP/2 that sends exactly the frames that a test tells it to, in whatever order, right or wrong."""

import asyncio
import contextlib
import hashlib
import ssl
from collections import Counter, defaultdict
from dataclasses import dataclass, field

from hpack import Decoder, Encoder
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from client import ANSWER_S, Connection

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

# Error codes (RFC 9113 section 7).
NO_ERROR, CANCEL, REFUSED_STREAM, ENHANCE_YOUR_CALM = 0, 8, 7, 11

DEFAULT_WINDOW = 65535
FRAME_SIZE_MAX = 16384


@dataclass
class Stream:
    """What has come of one request."""

    status: int | None = None
    fields: dict = field(default_factory=dict)
    size: int = 0
    digest: object = field(default_factory=hashlib.sha256)
    body: bytearray = field(default_factory=bytearray)
    trailers: dict | None = None
    # The error code of a RST_STREAM.
    reset: int | None = None
    is_ended: bool = False
    # What the gateway still takes of the body.
    window: int = 0

    @property
    def is_over(self):
        """Whether nothing more comes."""
        return self.is_ended or self.reset is not None


class Http2(Connection):
    """One connection in TLS, from where it is opened to where it is left."""

    @classmethod
    async def open(cls, port, authority, *, settings=None, is_granting=True, is_reading=True, **arguments):
        """Connects, and begins HTTP/2 with these settings, which are numbers by numbers.

        It grants room for all that comes unless told otherwise, and may begin without reading at all.
        """
        context = authority.context()
        context.set_alpn_protocols(["h2", "http/1.1"])
        self = await super().open(port, tls=context, **arguments)
        assert self.writer.get_extra_info("ssl_object").selected_alpn_protocol() == "h2"
        self.is_granting, self.answers_pings = is_granting, True
        self._encoder, self._decoder = Encoder(), Decoder()
        self._next_id = 1
        self.streams = defaultdict(Stream)
        # The settings of the gateway, and how many frames of each kind have come of it.
        self.settings, self.frames = {}, Counter()
        # The last stream and the error code of each GOAWAY.
        self.goaways = []
        self.unanswered_pings = []
        self.window, self._initial_window = DEFAULT_WINDOW, DEFAULT_WINDOW
        self.is_gone = False
        self._changed = asyncio.Event()
        self._reading = None
        await self.send(PREFACE + SettingsFrame(settings=settings or {}).serialize())
        if is_reading:
            self.read()
            await self.until(lambda: self.settings, "the gateway's settings")
        return self

    async def __aexit__(self, *exception):
        if self._reading is not None:
            self._reading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reading
        self.writer.transport.abort()
        await super().__aexit__(*exception)

    def read(self):
        """Takes from now on what comes."""
        self._reading = asyncio.create_task(self._read())

    async def _read(self):
        try:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
                while True:
                    frame, size = Frame.parse_frame_header(memoryview(await self.reader.readexactly(9)))
                    frame.parse_body(memoryview(await self.reader.readexactly(size)))
                    self._take(frame, size)
                    self._changed.set()
        finally:
            self.is_gone = True
            self._changed.set()

    def _take(self, frame, size):
        self.frames[type(frame)] += 1
        stream = self.streams[frame.stream_id] if frame.stream_id else None
        if isinstance(frame, SettingsFrame) and "ACK" not in frame.flags:
            self.settings = dict(frame.settings)
            self._initial_window = self.settings.get(SettingsFrame.INITIAL_WINDOW_SIZE, DEFAULT_WINDOW)
            self.write(SettingsFrame(flags=["ACK"]))
        elif isinstance(frame, PingFrame) and "ACK" not in frame.flags:
            self.unanswered_pings.append(frame.opaque_data)
            if self.answers_pings:
                self.answer_pings()
        elif isinstance(frame, WindowUpdateFrame):
            if stream is None:
                self.window += frame.window_increment
            else:
                stream.window += frame.window_increment
        elif isinstance(frame, GoAwayFrame):
            self.goaways.append((frame.last_stream_id, frame.error_code))
        elif isinstance(frame, RstStreamFrame):
            stream.reset = frame.error_code
        elif isinstance(frame, HeadersFrame):
            assert "END_HEADERS" in frame.flags, "no response of the tests has so long a head"
            fields = dict(self._decoder.decode(frame.data))
            if stream.status is None:
                stream.status, stream.fields = int(fields.pop(":status")), fields
            else:
                stream.trailers = fields
            stream.is_ended = "END_STREAM" in frame.flags
        elif isinstance(frame, DataFrame):
            assert stream.status is not None, "content before its head"
            stream.size += len(frame.data)
            stream.digest.update(frame.data)
            if stream.size <= FRAME_SIZE_MAX:
                stream.body += frame.data
            stream.is_ended = "END_STREAM" in frame.flags
            if self.is_granting and size > 0:
                self.grant(size)
                if not stream.is_ended:
                    self.grant(size, frame.stream_id)

    def write(self, frame):
        """Sends a frame without waiting for room."""
        self.writer.write(frame.serialize())

    def grant(self, size, stream_id=0):
        """Gives the gateway room, on the connection or on a stream."""
        self.write(WindowUpdateFrame(stream_id, window_increment=size))

    def answer_pings(self):
        """Answers what was not answered yet."""
        for data in self.unanswered_pings:
            self.write(PingFrame(opaque_data=data, flags=["ACK"]))
        self.unanswered_pings.clear()

    def encode(self, path, more=(), *, method="GET", **fields):
        """The fields of a request, compressed; `more` are pairs, whose names may come more than once."""
        head = [(":method", method), (":scheme", "https"), (":authority", "localhost"), (":path", path), *more]
        head += [(name.replace("_", "-"), value) for name, value in fields.items()]
        return self._encoder.encode(head)

    def take_id(self):
        """The number of the next stream."""
        stream_id, self._next_id = self._next_id, self._next_id + 2
        self.streams[stream_id].window = self._initial_window
        return stream_id

    def request(self, path, *, has_body=False, **arguments):
        """Sends the head of a request, and returns the number of its stream."""
        stream_id = self.take_id()
        block = self.encode(path, **arguments)
        flags = ["END_HEADERS"] if has_body else ["END_HEADERS", "END_STREAM"]
        self.write(
            HeadersFrame(stream_id, block[:FRAME_SIZE_MAX], flags=flags if len(block) <= FRAME_SIZE_MAX else flags[1:])
        )
        for offset in range(FRAME_SIZE_MAX, len(block), FRAME_SIZE_MAX):
            is_last = offset + FRAME_SIZE_MAX >= len(block)
            part = block[offset : offset + FRAME_SIZE_MAX]
            self.write(ContinuationFrame(stream_id, part, flags=["END_HEADERS"] if is_last else []))
        return stream_id

    async def send_body(self, stream_id, body, *, trailers=None):
        """Sends the body of a request as the gateway gives room, and its trailers; stops where the stream is over."""
        stream, offset = self.streams[stream_id], 0
        while offset < len(body):
            await self.until(lambda: stream.is_over or min(stream.window, self.window) > 0, "room for a body")
            if stream.is_over:
                return
            size = min(stream.window, self.window, FRAME_SIZE_MAX, len(body) - offset)
            is_last = trailers is None and offset + size == len(body)
            flags = ["END_STREAM"] if is_last else []
            stream.window, self.window = stream.window - size, self.window - size
            await self.send(DataFrame(stream_id, body[offset : offset + size], flags=flags).serialize())
            offset += size
        if trailers is not None:
            block = self._encoder.encode(list(trailers.items()))
            self.write(HeadersFrame(stream_id, block, flags=["END_HEADERS", "END_STREAM"]))

    def reset_stream(self, stream_id, error_code=CANCEL):
        """Gives up a request."""
        self.write(RstStreamFrame(stream_id, error_code=error_code))

    async def until_gone_or(self, condition):
        """Waits until what came makes the condition true, or the gateway has ended the connection."""
        async with asyncio.timeout(ANSWER_S):
            while not self.is_gone and not condition():
                self._changed.clear()
                await self._changed.wait()

    async def until(self, condition, what):
        """Waits until what came makes the condition true; fails where the connection ends before."""
        await self.until_gone_or(condition)
        assert condition(), f"the connection ended, GOAWAY {self.goaways}, before: {what}"

    async def answered(self, *stream_ids):
        """Waits for all of these responses, which it returns."""
        streams = [self.streams[stream_id] for stream_id in stream_ids]
        await self.until(lambda: all(stream.is_over for stream in streams), "responses")
        return streams

    async def fetch(self, path, *, body=None, trailers=None, **arguments):
        """One whole exchange."""
        stream_id = self.request(path, has_body=body is not None, **arguments)
        if body is not None:
            await self.send_body(stream_id, body, trailers=trailers)
        [stream] = await self.answered(stream_id)
        return stream

    async def gone(self):
        """Waits until the gateway has ended the connection."""
        await self.until_gone_or(lambda: False)
