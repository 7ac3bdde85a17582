"""`python -m lossland` is the command line."""

import sys

from lossland.cli import main

sys.exit(main())
