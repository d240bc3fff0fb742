"""`python -m vprompt`."""

import sys

from vprompt.cli.main import main

sys.exit(main())
