"""The same Protocol on uvloop: libuv and Cython, the fastest loop there is for Python."""

import uvloop  # type: ignore[import-not-found, unused-ignore]
from asyncio_protocol import main

uvloop.run(main())
