"""The command ``ray``, of whose node the workers are forks: ``python node.py start ...``."""

from pathlib import Path

from ray._private import ray_constants
from ray.scripts.scripts import main

ray_constants.SETUP_WORKER_FILENAME = str(Path(__file__).with_name("client.py"))
main()
