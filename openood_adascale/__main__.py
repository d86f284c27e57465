"""``python -m openood_adascale …``: the command line, also where the entry points are not installed."""

from .cli import main

raise SystemExit(main())
