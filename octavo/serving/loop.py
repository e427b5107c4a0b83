"""The event loop of a serving process, and the signals that end it: those of `server.loop`, which
the gateway has, too.
"""

from octavo.server.loop import Signals, first_of, new_loop

__all__ = ["Signals", "first_of", "new_loop"]
