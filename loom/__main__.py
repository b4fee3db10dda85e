"""`python -m loom` is `loom-node`."""

import sys

from loom.cli.main import main

sys.exit(main())
