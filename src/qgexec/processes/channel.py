"""Carries whole messages between a driver and a process that was forked for it, whatever they say."""

from __future__ import annotations

import marshal
import socket
from contextlib import suppress
from typing import Any

__all__ = ["Channel", "Message"]

Message = tuple[Any, ...]
"""What a `Channel` carries: a tuple of what `marshal` knows: numbers, text, bytes, `None`, such tuples."""

MAX_MESSAGE_BYTES = 32768
"""Longest message: the socket keeps messages apart, and cuts what is longer than the receiver asks for."""


class Channel:
    """One end of a pair of sockets that carries whole messages; about 3 us a message and end.

    Parameters
    ----------
    end
        A connected ``SOCK_SEQPACKET`` socket; closed with the channel.
    """

    __slots__ = ("_buffer", "_socket", "at_end")

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._buffer = memoryview(bytearray(MAX_MESSAGE_BYTES))
        self.at_end = False
        """The other end will send nothing more."""

    def fileno(self) -> int:
        """Return the file descriptor, readable when a message or the end is there."""
        return self._socket.fileno()

    def send(self, message: Message) -> None:
        """Send a message; blocks while about 200 are under way.

        Raises
        ------
        OSError
            The other end is gone.
        """
        self._socket.send(marshal.dumps(message))

    def try_send(self, message: Message) -> bool:
        """Send a message unless that would block or the other end is gone; say whether it was sent."""
        try:
            self._socket.send(marshal.dumps(message), socket.MSG_DONTWAIT)
        except (BlockingIOError, ConnectionError):
            return False
        return True

    def peek(self) -> Message | None:
        """Return the next message if there is one, and leave it where it is; `None` otherwise."""
        try:
            return self._receive(socket.MSG_DONTWAIT | socket.MSG_PEEK)
        except BlockingIOError:
            return None

    def receive(self) -> Message | None:
        """Return the next message; block until there is one; `None` at the end."""
        return self._receive(0)

    def try_receive(self) -> Message | None:
        """Return the next message if there is one; `None` otherwise, and at the end."""
        try:
            return self._receive(socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None

    def _receive(self, flags: int) -> Message | None:
        try:
            size = self._socket.recv_into(self._buffer, 0, flags)
        except ConnectionError:
            size = 0
        if not size:
            self.at_end = True
            return None
        message: Message = marshal.loads(self._buffer[:size])  # noqa: S302 - our own process wrote it
        return message

    def finish(self) -> None:
        """Send nothing more: the other end receives what is under way, then `None`."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close this end; may be called twice."""
        self._socket.close()
