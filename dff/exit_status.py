"""Exit statuses of the ``dff`` command after a signal, as of shells.

Apart, since the command knows them before it imports anything else.
"""

import signal

TERMINATED = 128 + signal.SIGTERM
INTERRUPTED = 128 + signal.SIGINT
