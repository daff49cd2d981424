"""``python -m vmdump``."""

import sys

from vmdump.cli.main import main

sys.exit(main())
