"""`legato serve`: HTTP in front of one engine.

Knows: HTTP, keys, limits, and protocols that are thin encoders of one request type and one event stream.
Does not know: arrays, pages, how a token is computed.

    app          finds the route, asks for the key, hands over; every fault becomes an answer
    exchange     one HTTP request and its response
    protocols/   bodies to `Ask`, `Delta`s and `Result` to bytes
    service      admission: what is asked becomes token ids, requests, and a stream of answers
    bridge       the way to an engine and back: engine_thread, or engine_process (with engine_child behind a socket)
    lifecycle    binding, loading, readiness, the watchdog, draining
"""
