"""A worker: `python -m benchmarks.peers MODULE`, started by protocol.Worker."""

import sys

from benchmarks.peers.protocol import serve

serve(sys.argv[1])
