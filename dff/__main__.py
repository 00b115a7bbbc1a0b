"""``python -m dff``: the ``dff`` command."""

from dff.entry import main

main()
