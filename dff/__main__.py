"""``python -m dff``: the ``dff`` command."""

from dff.commands.app import main

main()
