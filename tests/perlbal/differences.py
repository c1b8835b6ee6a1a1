"""Where ours is meant to differ from Debian's Perlbal.

docs/perlbal.md has a table of the same names, in the same order, under "What differs". A
conversation that differs names its row. A row that no conversation shows is a fault, and so is a
difference without a row.
"""

from __future__ import annotations

DIFFERENCES = {
    "strict heads": "the original accepts it, or closes without an answer",
    "strict chunks": "extensions, odd lengths, LF line ends: the original accepts them",
    "nothing after a POST": "bytes read together with a body could be anybody's request",
    "an unread body closes": "the original takes it for the next request",
    "a dropped body is read": "the original closes the connection at once",
    "no more than the length": "the original passes on what could be taken for the next answer",
    "garbage is a 502": "in the original the client waits until its idle timeout",
    "a lost backend closes its client": "in the original it waits until its idle timeout",
    "half an answer closes the client": "in the original a persistent client waits for the rest",
    "100 Continue is ours": "the original takes a backend's 100 for the answer",
    "411 without buffering": "the original calls the body pipelining",
    "a refusal says close": "the original says keep-alive, and closes",
    "the last answer says close": "the original says keep-alive, and closes",
    "SIGTERM is graceful": "SIGTERM, SIGINT and SIGHUP end the original at once",
    "space after a value": "RFC 9110 5.5 requires removing it; the original passes it on",
    "hosts in any form": "RFC 9110 4.2.3; the original heeds case and the root's dot",
    "default_service is used": "in the original Vhosts answers 404 first",
    "back to the first service": "the original leaves the client with the second service",
    "a directory is not a file": "the original promises its size, and closes",
    "no /.. at the end": "the original shows the parent directory",
    "no body to HEAD": "the original sends a listing, which is taken for the next answer",
    "an interrupted PUT": "the original may have written less of it",
    "Content-Range in plain numbers": "the original repeats the client's leading zeros",
    "no OK after an ERROR": "the original prints both, and the service is dead",
    "unknown pool parameters": "the original ignores them without a message",
    "the service that was not found": "the original names ''",
    "DUMPCONFIG can be read in again": "the original leaves out plugins and writes ARRAY(0x...)",
    "INCLUDE reports errors": "the original says OK",
    "an empty line of LF": "the original's port hangs",
    "a new node serves at once": "in the original, waiting requests wait until another arrives",
    "a removed node is not used": "the original goes on using its connections",
    "max_reproxy_connections with its host": "the original shows the same line for every host",
    "values that can't work are refused": "the original says OK, and fails when it uses them",
    "a plugin is removed": "the original leaves it on its services, or lacks a method",
    "DEFAULT checks its value": "the original says OK, and later services don't have it",
    "names in a list are escaped": "in the original a file's name may contain any HTML",
    "chunks do not evade limits": "in the original they evade two limits of PUT",
    "an empty line before a request": "the original closes, except after a POST or a chunked body",
    "the length of the new body": "the original sends the Transfer-Encoding of the first answer",
    "a dead connection is not used": "in the original the request is lost on it, and the client waits",
    "a repeated length is one": "the original passes on 3, 3",
    "a body during the latency": "the original loses it, and the client waits",
    "no other protocol": "the original requests h2c, and what follows the 101 is lost",
}
"""Name -> why."""
