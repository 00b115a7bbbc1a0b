"""The command ``ray``, of whose node the workers are forks: ``python node.py start ...``.

A head has no server of remote clients (``ray://``): nothing needs it.
"""

from pathlib import Path

from ray._private import ray_constants
from ray.scripts import scripts

ray_constants.SETUP_WORKER_FILENAME = str(Path(__file__).with_name("client.py"))
scripts.get_ray_client_dependency_error = lambda: "none is wanted"
scripts.main()
