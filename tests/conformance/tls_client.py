"""A client of TLS on a blocking socket whose records pass through the test's hands."""

import contextlib
import socket
import ssl
import struct

from client import ACCEPT, ANSWER_S, BINARY, CLOSE, close_frame, frame, upgrade

# Types of records (RFC 8446 section 5.1), and how long the longest header and body of one are.
CHANGE_CIPHER_SPEC, ALERT, HANDSHAKE, APPLICATION_DATA = 20, 21, 22, 23
RECORD_HEAD_SIZE, RECORD_BODY_SIZE_MAX = 5, (1 << 14) + 2048

# Alerts (RFC 8446 section 6).
CLOSE_NOTIFY, UNEXPECTED_MESSAGE, INTERNAL_ERROR, NO_RENEGOTIATION = 0, 10, 80, 100
WARNING, FATAL = 1, 2


def record(kind, body, *, version=0x0303, size=None):
    """A record as it is on the wire; `size` claims another length."""
    return struct.pack("!BHH", kind, version, len(body) if size is None else size) + body


def records(data):
    """Takes bytes apart into records, type and body of each; the last may be cut."""
    found = []
    while data:
        (size,) = struct.unpack("!H", data[3:5])
        found.append((data[0], data[RECORD_HEAD_SIZE : RECORD_HEAD_SIZE + size]))
        data = data[RECORD_HEAD_SIZE + size :]
    return found


class TlsClient:
    """A connection to a port on the loopback interface, which asks for `name`; nothing is sent before it is told to."""

    def __init__(self, port, context, *, name="localhost", receive_buffer_size=None, segment_size=None, session=None):
        self.socket = socket.socket()
        self.socket.settimeout(ANSWER_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if receive_buffer_size is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_size)
        if segment_size is not None:
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, segment_size)
        self.socket.connect(("127.0.0.1", port))
        self._received, self._unsent = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._received, self._unsent, server_hostname=name, session=session)
        # What was read and belongs to what comes next.
        self._plaintext = b""
        # Whether the handshake of TLS is done.
        self.is_open = False
        # What was first said and heard: the hellos, and what came with them.
        self.first_said = self.first_heard = b""

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        self.socket.close()

    def flight(self):
        """Goes on with the handshake until more has to be heard: what is to be sent, and whether it is done."""
        try:
            self.tls.do_handshake()
            self.is_open = True
        except ssl.SSLWantReadError:
            pass
        data = self._unsent.read()
        self.first_said = self.first_said or data
        return data, self.is_open

    def hear(self):
        """Takes in what comes next, and says whether it was not the end of the stream."""
        data = self.socket.recv(65536)
        self.first_heard = self.first_heard or data
        if data:
            self._received.write(data)
        else:
            self._received.write_eof()
        return bool(data)

    def handshake(self):
        """Does the handshake; a fault is `ssl.SSLError`, and its alert has been sent."""
        try:
            while True:
                data, is_done = self.flight()
                self.socket.sendall(data)
                if is_done:
                    return self
                self.hear()
        except ssl.SSLError:
            # What is told is told to a gateway that may be gone already.
            self.socket.sendall(self._unsent.read())
            raise

    def seal(self, data):
        """What is sent for these bytes."""
        self.tls.write(data)
        return self._unsent.read()

    def send(self, data):
        """Sends bytes in TLS."""
        self.socket.sendall(self.seal(data))

    def _read(self):
        """The next plaintext; nothing at an end in order. An end without the alert is `ssl.SSLEOFError`."""
        while True:
            try:
                return self.tls.read(65536)
            except ssl.SSLWantReadError:
                self.hear()
            except ssl.SSLZeroReturnError:
                return b""

    def read(self, size):
        """Reads so many bytes."""
        while len(self._plaintext) < size:
            more = self._read()
            assert more, f"the end after {self._plaintext[:100]}"
            self._plaintext += more
        data, self._plaintext = self._plaintext[:size], self._plaintext[size:]
        return data

    def read_to_end(self):
        """Reads all that comes, up to an end in order."""
        data, self._plaintext = self._plaintext, b""
        while more := self._read():
            data += more
        return data

    def head(self):
        """Reads the head of an answer."""
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += self.read(1)
        return head.decode("latin-1")

    def accepted(self, head=None):
        """Does the opening handshake within TLS, whose own handshake comes first where it has not been done."""
        if not self.is_open:
            self.handshake()
        self.send(head or upgrade())
        answer = self.head()
        assert answer.startswith("HTTP/1.1 101 ") and ACCEPT in answer, answer
        return self

    def echo(self, payload=b"hello"):
        """Sends a message and expects it back."""
        self.send(frame(BINARY, payload))
        expected = frame(BINARY, payload, mask=None)
        assert self.read(len(expected)) == expected, f"another answer to {len(payload)} bytes"

    def closes(self):
        """Closes the WebSocket and then TLS, both in order."""
        self.send(close_frame(1000))
        assert self.read_to_end() == frame(CLOSE, struct.pack("!H", 1000), mask=None)
        self.say_goodbye()

    def say_goodbye(self):
        """Sends the alert that ends our side."""
        # It would wait for the other side's.
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.unwrap()
        self.socket.sendall(self._unsent.read())

    def alert(self):
        """Reads the raw stream to its end, which has nothing but one alert that is not encrypted: its description."""
        found = records(self.raw_rest())
        assert len(found) == 1 and found[0][0] == ALERT and len(found[0][1]) == 2, found
        return found[0][1][1]

    def raw_rest(self):
        """Reads the raw stream to its end."""
        rest = b""
        while data := self.socket.recv(65536):
            rest += data
        return rest
