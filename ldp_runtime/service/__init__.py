"""``ldp serve``: a local HTTP service on FastAPI, and the page that it serves. Needs the extra ``serve``.

A request goes one way: connection (``server``), gate (``gate``: host, origin, token), upload (``uploads``: size, rate,
how many at a time), queue (``jobs``: bounded, one thread per worker), restoration (``restore``), answer (``app``); or
its result is kept for a while (``results``).
"""
