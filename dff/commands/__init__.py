"""The ``dff`` command: one module for each of its commands, registered in ``app``."""
