"""Where ours is meant to differ from Debian's Perlbal.

docs/perlbal.md has a table with the same names, in the same order, under "What differs". A
conversation that differs names its row. Both a difference without a row and a row that no
conversation shows are faults.
"""

from __future__ import annotations

DIFFERENCES = {
    "strict heads": "the original closes without a word, or lets it through",
    "strict chunks": "extensions, odd lengths, lines of LF: the original takes them",
    "nothing behind a POST": "what comes in one go with a body could be anybody's request",
    "a body nobody reads closes": "the original takes it for the next request",
    "a dropped body is read": "the original closes the connection for it",
    "no more than the length": "the original passes on what could be taken for the next answer",
    "garbage is a 502": "in the original the client waits until it has been idle too long",
    "a lost backend closes its client": "in the original it waits until it has been idle too long",
    "half an answer closes the client": "in the original a kept client waits for the rest",
    "100 Continue is ours": "the original takes a backend's 100 for the answer",
    "411 without buffering": "the original calls the body pipelining",
    "a refusal says close": "the original says keep-alive, and closes",
    "the last answer says close": "the original says keep-alive, and closes",
    "SIGTERM is graceful": "and SIGINT; they, and SIGHUP, end the original at once",
    "space behind a value": "RFC 9110 5.5 has it removed, and so has the next one who reads it",
    "hosts in any form": "RFC 9110 4.2.3; the original compares letters, and the dot of the root",
    "default_service counts": "in the original Vhosts says 404 first",
    "back to the first service": "the original leaves the client with the second for good",
    "a folder is no file": "the original promises its size, and closes",
    "no /.. at the end": "the original shows the folder above",
    "no body to HEAD": "the original sends a listing, which is taken for the next answer",
    "a PUT that was broken off": "the original may have written less of it",
    "Content-Range in plain numbers": "the original repeats the client's zeros",
    "no OK behind an ERROR": "the original says both, and the service is dead",
    "unknown pool parameters": "the original says nothing at all",
    "the service that was not found": "the original names ''",
    "DUMPCONFIG can be read in again": "the original leaves out plugins and writes ARRAY(0x...)",
    "INCLUDE tells of errors": "the original says OK",
    "an empty line of LF": "the original's port hangs on it",
    "a new node serves at once": "in the original those who wait go on waiting until another comes",
    "a removed node is not asked": "the original goes on by the connections that it has",
    "max_reproxy_connections with its host": "the original shows the same line for every host",
    "values that can't work are refused": "the original says OK, and what they are for fails",
    "a plugin is taken off": "the original keeps it at its services, or fails for want of a method",
    "DEFAULT checks its value": "the original says OK, and the services that come later have none",
    "names in a list are escaped": "in the original a file's name may be any HTML",
    "chunks are no way round": "in the original they are one, past two limits of PUT",
    "an empty line before a request": "the original closes, but behind POST and chunks",
    "an end of its own": "the original says of a file or a URL what was said of the answer before",
    "what is over is not asked": "in the original the request is lost on it, and the client waits",
    "a length said again is one": "the original passes on 3, 3",
    "a body in the latency": "the original loses it, and the client waits",
    "no other protocol": "the original asks for h2c, and what is said behind the 101 is lost",
}
"""Name -> reason."""
