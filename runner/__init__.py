"""runner merges diffusion models from declarative recipes."""

import sys

if sys.argv[:1] == ["-m"] and not sys.flags.safe_path:
    # `python -m runner` puts the working folder first: modules of a stranger could stand there.
    # Here and not later, before anything else is imported.
    del sys.path[0]

import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler and sys.argv[:1] == ["-m"]:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until run() says what an interruption is to do

__version__ = "0.1.0"
