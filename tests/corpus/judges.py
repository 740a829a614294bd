"""Judges that misbehave: what a server sends, byte by byte, and what becomes of the row that it was asked about."""

import gzip
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

GIGABYTE = 1 << 30


@dataclass(frozen=True)
class Case:
    """One server.

    Args:
        sends: pieces of its answer; None: it sends nothing more and stays.
        value: the reward; None: a failure.
        says: what is logged of the failure.
        mistake: what the message says where no question can ever be answered.
        times_out: the limit of time has to end it.
    """

    sends: Iterable[bytes | None]
    value: float | None = None
    says: str = ""
    mistake: str = ""
    times_out: bool = False


def http(body: bytes, status: str = "200 OK", length: int | None = None, **headers: str) -> list[bytes | None]:
    """An answer with its head; what names a header with _ is sent with -."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return ["\r\n".join([*lines, "", ""]).encode() + body]


def completion(content: object) -> bytes:
    """A chat completion."""
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}]}).encode()


def says(content: object, **outcome: object) -> Case:
    """A judge that gives an answer in good form."""
    return Case(http(completion(content)), **outcome)  # type: ignore[arg-type]


class Endless:
    """Pieces up to a gigabyte, counted as they are taken."""

    def __init__(self, head: bytes, piece: bytes) -> None:
        self.head, self.piece, self.sent = head, piece, 0

    def __iter__(self) -> Iterator[bytes]:
        self.sent = 0
        yield self.head
        while self.sent < GIGABYTE:
            self.sent += len(self.piece)
            yield self.piece


class Drip:
    """A good answer, a byte at a time, that would take a day."""

    def __iter__(self) -> Iterator[bytes | None]:
        yield b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"
        yield None


NOTHING = "the judge gives no answer (2 attempts): "
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
GOOD = completion("Score: 7")

CASES: dict[str, Case] = {
    # Refusals.
    "500": Case(http(b"oops", "500 Internal Server Error"), says=NOTHING + "HTTP 500 'oops'"),
    "503 with a page": Case(http(b"<html>\n<b>down</b>", "503 Service Unavailable"), says="HTTP 503 '<html> <b>down"),
    "429, for ever": Case(http(b"slow down", "429 Too Many Requests", Retry_After="0.05"), says="HTTP 429 'slow down'"),
    "429 with a date": Case(
        http(b"", "429 Too Many Requests", Retry_After="Fri, 31 Dec 9999 23:59:59 GMT"), says="HTTP 429 ''"
    ),
    "429 with nonsense": Case(http(b"", "429 Too Many Requests", Retry_After="nan"), says="HTTP 429 ''"),
    "400": Case(http(b"too long", "400 Bad Request"), says="the judge refuses the question: HTTP 400 'too long'"),
    "401": Case(http(b"who?", "401 Unauthorized"), mistake="the key is not accepted (HTTP 401 'who?')"),
    "403": Case(http(b"", "403 Forbidden"), mistake="access is denied"),
    "404": Case(http(b"", "404 Not Found"), mistake="there is no such endpoint or model"),
    "redirects": Case(
        http(b"", "307 Temporary Redirect", Location="http://127.0.0.1:1/v1"),
        mistake="it redirects; give the address that it names (HTTP 307 '' 'http://127.0.0.1:1/v1')",
    ),
    "redirects to itself": Case(http(b"", "301 Moved Permanently", Location="/"), mistake="it redirects"),
    "a status that nobody knows": Case(http(b"?", "799 Odd"), says="HTTP 799 '?'"),
    # No answer at all.
    "never answers": Case([None], says="no answer within 0.3 s", times_out=True),
    "closes at once": Case([], says=NOTHING),
    "half a head": Case([b"HTTP/1.1 200 OK\r\nConte"], says=NOTHING),
    "a head, then silence": Case(
        [b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", None], says="no answer within", times_out=True
    ),
    "a byte now and then": Case(Drip(), says="no answer within", times_out=True),
    "cut off in the middle": Case(http(GOOD[:20], length=len(GOOD)), says=NOTHING),
    "cut off between chunks": Case([CHUNKED + b'5\r\n{"cho\r\n'], says=NOTHING),
    "a chunk of no size": Case([CHUNKED + b"xyz\r\n"], says=NOTHING),
    # No HTTP, or too much of it.
    "garbage": Case([bytes(range(256)) * 4], says=NOTHING),
    "another protocol": Case([b"SSH-2.0-OpenSSH_9.7\r\n"], says=NOTHING),
    "a head of 10 MB": Case([b"HTTP/1.1 200 OK\r\nX: " + b"x" * 10_000_000], says=NOTHING),
    "a negative length": Case(http(GOOD, length=-1), says=NOTHING),
    "a gigabyte in chunks": Case(
        Endless(CHUNKED, b"10000\r\n" + b" " * 0x10000 + b"\r\n"), says="its answer is longer than 1 MiB"
    ),
    "a gigabyte until it closes": Case(
        Endless(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", b"[" * 0x10000), says="its answer is longer than 1 MiB"
    ),
    "a gigabyte of error page": Case(
        Endless(b"HTTP/1.1 500 No\r\nConnection: close\r\n\r\n", b"x" * 0x10000), says="its answer is longer than 1 MiB"
    ),
    "a bomb": Case(http(gzip.compress(bytes(10_000_000)), Content_Encoding="gzip"), says="its answer is compressed"),
    "compressed, and does not say so": Case(http(gzip.compress(GOOD)), says="no chat completion"),
    # No chat completion.
    "an empty body": Case(http(b""), says="no chat completion: ''"),
    "no JSON": Case(http(b"<html>it is cold here</html>"), says="no chat completion: '<html>it is cold here</html>'"),
    "nested for ever": Case(http(b"[" * 100_000), says="no chat completion"),
    "a number of 100,000 digits": Case(http(b"1" * 100_000), says="no chat completion"),
    "not UTF-8": Case(http(b'{"choices": "\xff\xfe"}'), says="no chat completion"),
    "a list": Case(http(b"[]"), says="no chat completion"),
    "no choices": Case(http(b'{"choices": []}'), says="no chat completion"),
    "an error with 200": Case(http(b'{"error": "overloaded"}'), says='no chat completion: \'{"error": "overloaded"}\''),
    "no message": Case(http(b'{"choices": [{"text": "Score: 7"}]}'), says="no chat completion"),
    "a number as the answer": says(7, says="no chat completion"),
    "parts as the answer": says([{"type": "text", "text": "Score: 7"}], says="no chat completion"),
    # No score.
    "null": says(None, says="has no `Score: number`: ''"),
    "no score": says("I would rather not.", says="has no `Score: number`: 'I would rather not.'"),
    "NaN": says("Score: NaN", says="has no `Score: number`"),
    "infinite": says("Score: Infinity", says="has no `Score: number`"),
    "with an exponent": says("Score: 1e300", says="has no `Score: number`"),
    "above what was asked for": says("Score: 11", says="11 is not between 0 and 10"),
    "below what was asked for": says("Score: -0.5", says="-0.5 is not between 0 and 10"),
    "too many digits": says("Score: " + "9" * 400, says="is not between 0 and 10"),
    "made to take long": says("Score: " + "1" * 200_000 + ".1.1" * 100_000, says="has no `Score: number`"),
    "escapes for the terminal": says("\x1b[2J\x1b]0;mine\x07", says="'\\x1b[2J\\x1b]0;mine\\x07'"),
    # Odd, and still an answer.
    "half a character": says("\ud800 Score: 7", value=7.0),
    "null characters": says("\0Score: 7\0", value=7.0),
    "another type of content": Case(http(GOOD, Content_Type="image/png"), 7.0),
    "a character set of its own": Case(http(GOOD, Content_Type="application/json; charset=klingon"), 7.0),
    "a cookie and a lot of fields": Case(http(GOOD[:-1] + b', "usage": {"x": [1, 2]}}', Set_Cookie="a=b"), 7.0),
}
